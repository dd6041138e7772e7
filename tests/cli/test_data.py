"""`ivl3 data`."""

import json

import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.data.meta import open_source, read_meta
from tests.data.pictures import picture

pytest.importorskip("array_record")
TALK = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "7"}]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A directory with pictures and meta.json of two sources: a/b of three samples, of which one is bad, and text."""
    monkeypatch.chdir(tmp_path)
    picture(30, 20).save("a.jpg")
    lines = [{"image": name, "conversations": TALK} for name in ("a.jpg", "none.jpg", "a.jpg")]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "text.jsonl").write_text(json.dumps({"conversations": TALK}) + "\n")
    sources = {
        "a/b": {"root": ".", "annotation": "a.jsonl", "data_augment": True, "repeat_time": 2, "max_dynamic_patch": 3},
        "text": {"root": "", "annotation": "text.jsonl", "length": 3},
    }
    (tmp_path / "meta.json").write_text(json.dumps(sources))
    return tmp_path


def test_shard(work, capsys):
    assert main(["data", "shard", "meta.json", "out"]) == 1
    said = capsys.readouterr()
    assert said.err.splitlines()[-1] == "ivl3: error: a.jsonl:2: none.jpg: no such image file"
    assert main(["data", "shard", "meta.json", "out", "--faults", "skip", "--shard_mb", "0.000001"]) == 0
    out = capsys.readouterr().out
    assert "a/b: 2 samples, 0.3 MB, shards: 2\n" in out
    assert "a/b: left out: image 1; see out/a%2Fb/skipped.jsonl\n" in out
    assert "text: 1 samples, 0.1 MB, shards: 1\n" in out
    assert out.endswith("out/meta.json lists the sources\n")
    first, second = read_meta("out/meta.json")
    assert (first.name, first.root, first.annotation) == ("a/b", str(work), "out/a%2Fb")
    assert (first.augment, first.repeat, first.length, first.max_tiles) == (True, 2, 2, 3)
    assert [len(open_source(spec)) for spec in (first, second)] == [2, 1]
    assert open_source(first)[1].images[0].data == (work / "a.jpg").read_bytes()
    assert main(["data", "shard", "meta.json", "out", "--faults", "skip"]) == 0


def test_another_meta_file_is_not_written_over(work, capsys):
    before = (work / "meta.json").read_text()
    assert main(["data", "shard", "meta.json", ".", "--faults", "skip"]) == 1
    assert "meta.json lists other data and would be written over" in capsys.readouterr().err
    assert (work / "meta.json").read_text() == before


def test_an_interruption_says_how_to_go_on(work, capsys, monkeypatch):
    from ivl3_jax.data import shard_writer

    def interrupt(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(shard_writer, "write_shards", interrupt)
    assert main(["data", "shard", "meta.json", "out"]) == 130
    assert "interrupted; the same command continues after the last complete shard" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["shrd"], 2, "'shrd' is not a command of ivl3 data; there are shard"),
        (["shard", "meta.json", "out", "--shard_mb", "0"], 2, "--shard-mb is 0.0; it must be more than 0"),
        (["shard", "meta.json", "gs://b/out"], 2, "output is 'gs://b/out'; write to a directory and copy it there"),
        (["shard", "none.json", "out"], 1, "none.json: No such file or directory"),
        (["shard", "a.jsonl", "out"], 1, "a.jsonl: not a meta file, but data that one names as annotation"),
        (["shard", "meta.json", "out", "--faults", "ignore"], 2, "faults"),
    ],
)
def test_mistakes(work, capsys, argv, code, told):
    assert main(["data", *argv]) == code
    error = capsys.readouterr().err
    assert error.startswith("ivl3: error: ")
    assert told in error
    assert not (work / "out").exists()


def test_help_lists_the_subcommands(capsys):
    assert main(["data", "--help"]) == 0
    assert "example: ivl3 data shard meta.json shards/" in capsys.readouterr().out
    assert main(["data"]) == 2
    assert "usage: ivl3 data COMMAND" in capsys.readouterr().err
