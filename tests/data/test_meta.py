"""InternVL's meta file: what is read, which source is opened, and how a mistake is reported."""

import json

import pytest

from ivl3_jax.data.jsonl import JsonlSource
from ivl3_jax.data.meta import open_source, read_meta, write_meta
from ivl3_jax.data.sources import SourceSpec

LINE = b'{"conversations": [{"from": "gpt", "value": "7"}]}\n'


def write(folder, content):
    file = folder / "meta.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return file


def test_every_key(tmp_path, monkeypatch):
    (tmp_path / "cwd").mkdir()
    (tmp_path / "b.jsonl").touch()
    monkeypatch.chdir(tmp_path / "cwd")
    file = write(
        tmp_path,
        {
            "all": {
                "root": "pictures/", "annotation": "a.jsonl", "data_augment": True, "repeat_time": 0.5, "length": 10,
                "max_dynamic_patch": 6, "media": "published files have more keys",
            },
            "least": {"annotation": "/data/b.jsonl"},
            "beside the meta file": {"root": "", "annotation": "b.jsonl", "repeat_time": 2.0},
            "remote": {"root": "gs://b/pictures", "annotation": "gs://b/shards"},
        },
    )  # fmt: skip
    assert read_meta(file) == [
        SourceSpec("all", "pictures/", "a.jsonl", True, 0.5, 10, 6),
        SourceSpec("least", "/data", "/data/b.jsonl"),
        SourceSpec("beside the meta file", "", str(tmp_path / "b.jsonl"), repeat=2),
        SourceSpec("remote", "gs://b/pictures", "gs://b/shards"),
    ]


def test_what_is_written_is_read(tmp_path):
    specs = [SourceSpec("é", "gs://r", "gs://a", True, 0.25, 9, 3), SourceSpec("b", "/r", "/a")]
    write_meta(tmp_path / "meta.json", specs)
    assert read_meta(tmp_path / "meta.json") == specs


def test_in_a_bucket_paths_start_beside_it(bucket):
    bucket("gs://b/sets/meta.json", b'{"x": {"root": "pictures", "annotation": "shards/x"}}')
    assert read_meta("gs://b/sets/meta.json") == [SourceSpec("x", "gs://b/sets/pictures", "gs://b/sets/shards/x")]


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not a meta file"),
        ("\xff", "not a meta file"),
        ("[" * 100_000, "not a meta file"),
        ('{"x": {"annotation": "a"}, "x": {"annotation": "b"}}', "not a meta file .*'x' stands in it twice"),
        ('{"x": {"length": 1, "length": 2}}', "'length' stands in it twice"),
        ([], "must be a JSON object with an entry for each"),
        ({}, "must be a JSON object with an entry for each"),
        ({"x": 3}, "x is 3; it must be an object with root, annotation, "),
        ({"x": {"root": "a"}}, "x has no 'annotation'; it must name"),
        ({"x": {"annotation": ""}}, "x.annotation is ''; it must be a path"),
        ({"x": {"annotation": 3}}, "x.annotation is 3; it must be a path"),
        ({"x": {"annotation": "s3://b/a.jsonl"}}, "x.annotation is 's3://b/a.jsonl'; .*mount the bucket"),
        ({"x": {"annotation": "a", "root": "s3://b"}}, "x.root is 's3://b'; .*mount the bucket"),
        ({"x": {"annotation": "a", "root": None}}, "x.root is None; it must be a path"),
        ({"x": {"annotation": "a", "repeat_tme": 1}}, "x has the key 'repeat_tme'; did you mean repeat_time"),
        ({"x": {"annotation": "a", "repeat_time": 0}}, "x.repeat_time is 0; it must be a fraction above 0"),
        ({"x": {"annotation": "a", "repeat_time": 1.5}}, "x.repeat_time is 1.5; it must be a fraction .*whole"),
        ({"x": {"annotation": "a", "repeat_time": float("nan")}}, "x.repeat_time is nan"),
        ({"x": {"annotation": "a", "repeat_time": float("inf")}}, "x.repeat_time is inf"),
        ({"x": {"annotation": "a", "repeat_time": True}}, "x.repeat_time is True"),
        ({"x": {"annotation": "a", "repeat_time": None}}, "x.repeat_time is None"),
        ({"x": {"annotation": "a", "data_augment": "no"}}, "x.data_augment is 'no'; it must be true or false"),
        ({"x": {"annotation": "a", "length": -1}}, "x.length is -1; it must be a whole number"),
        (
            {"x": {"annotation": "a", "max_dynamic_patch": 0}},
            "x.max_dynamic_patch is 0; it must be a whole number from 1 to 256",
        ),
    ],
)
def test_mistakes(tmp_path, content, told):
    file = write(tmp_path, content)
    with pytest.raises(ValueError, match=f"^{file}: .*{told}"):
        read_meta(file)


@pytest.mark.parametrize(
    ("annotation", "told"),
    [
        ("list.json", "of no known kind; valid: a .jsonl or .parquet file"),
        ("none", "which does not exist, neither beside the meta file nor from the current directory on"),
        ("none.jsonl", "which does not exist, neither beside"),
        ("gs://b/a.jsonl", r"a .jsonl file is read from disk: copy or mount it, or make shards"),
        ("gs://b/a.parquet", r"a .parquet file is read from disk"),
    ],
)
def test_annotations_that_cannot_be_opened(tmp_path, monkeypatch, annotation, told):
    (tmp_path / "list.json").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=f"^x.annotation is {annotation!r}[,;] {told}"):
        open_source(SourceSpec("x", "", annotation))


@pytest.mark.parametrize(("length", "repeat", "told"), [(None, 1, False), (4, 1, False), (5, 1, True), (4, 0.5, False),
                                                         (2, 0.5, False), (3, 0.5, True), (4, 2, False)])  # fmt: skip
def test_a_wrong_length_is_told(tmp_path, caplog, length, repeat, told):
    file = tmp_path / "a.JSONL"
    file.write_bytes(LINE * 4)
    source = open_source(SourceSpec("x", "", str(file), repeat=repeat, length=length), 3)
    assert isinstance(source, JsonlSource)
    assert (source.name, source[0].source) == ("x", 3)
    expected = f"x.length is {length}, but {file} has {len(source)} samples to use"
    assert caplog.messages == ([expected] if told else [])


def test_a_root_that_is_not_there_is_told(tmp_path, caplog):
    file = tmp_path / "a.jsonl"
    file.write_bytes(LINE)
    for root in ("", str(tmp_path), "gs://b/x"):
        open_source(SourceSpec("x", root, str(file)))
    assert not caplog.messages
    open_source(SourceSpec("x", "gone", str(file)))
    assert caplog.messages == ["x.root is 'gone', which is no directory: its images and videos will not be found"]
