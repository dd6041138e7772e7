"""InternVL's JSONL conversations: what is read, and how a bad line is reported."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data import Message, read_jsonl
from tests.data.pictures import picture

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "7"}]


def write(tmp_path, *records):
    file = tmp_path / "train.jsonl"
    lines = [record if isinstance(record, bytes) else json.dumps(record).encode() for record in records]
    file.write_bytes(b"\n".join(lines) + b"\n")
    return file


def test_every_kind_of_line(tmp_path):
    file = write(
        tmp_path,
        {"id": 0, "image": "a.png", "width": 4, "height": 4, "conversations": TALK},
        {"image": ["a.png", "sub/b.png"], "conversations": TALK, "width_list": [1, 2]},
        b"",
        {"conversations": [{"from": "system", "value": "Be brief."}, *TALK], "length": 12},
        {"image": "", "conversations": TALK},
        {"image": None, "conversations": [{"from": "human", "value": "line\u2028separator é"}]},
    )
    samples = read_jsonl(file, source=3)
    root = str(tmp_path)
    assert [s.images for s in samples] == [(f"{root}/a.png",), (f"{root}/a.png", f"{root}/sub/b.png"), (), (), ()]
    assert [s.where for s in samples] == [f"{file}:{n}" for n in (1, 2, 4, 5, 6)]
    assert samples[2].messages == (Message("system", "Be brief."), Message("user", "What?"), Message("assistant", "7"))
    assert samples[4].messages[0].text == "line\u2028separator é"
    assert {s.source for s in samples} == {3}


def test_root(tmp_path):
    file = write(tmp_path, {"image": "a/../b.png", "conversations": TALK})
    assert read_jsonl(file, "/pictures")[0].images == ("/pictures/b.png",)


@pytest.mark.parametrize(
    ("record", "told"),
    [
        (b"{", "not a JSON object"),
        (b"\xff\xfe", "not a JSON object"),
        (b"[" * 100_000, "not a JSON object"),
        ([1], "found a JSON list; a line must be an object"),
        ({}, "'conversations' is None; it must be a list of at least one turn"),
        ({"conversations": []}, "it must be a list of at least one turn"),
        ({"conversations": ["x"]}, r"conversations\[0\] is 'x'; it must be an object"),
        ({"conversations": [{"from": "user", "value": "x"}]}, r"\[0\].from is 'user'; valid: system, human, gpt"),
        ({"conversations": [{"from": [], "value": "x"}]}, r"\[0\].from is \[\]; valid"),
        ({"conversations": [*TALK, {"from": "gpt", "value": 7}]}, r"\[2\].value is 7; it must be a string"),
        ({"conversations": [*TALK, {"from": "system", "value": "x"}]}, "only the first turn may be"),
        ({"conversations": [{"from": "human", "value": "caf\udce9"}]}, r"lone surrogate '\\udce9' at character 3"),
        ({"image": 3, "conversations": TALK}, "'image' is 3; it must be a path or a list of paths"),
        ({"image": ["a", ""], "conversations": TALK}, "it must be a path or a list of paths"),
        ({"image": "../a.png", "conversations": TALK}, "'../a.png' leaves the root"),
        ({"image": "/etc/a.png", "conversations": TALK}, "'/etc/a.png' leaves the root"),
        ({"video": "a.mp4", "conversations": TALK}, "has the key 'video'; only"),
    ],
)
def test_bad_lines(tmp_path, record, told):
    file = write(tmp_path, {"conversations": TALK}, record)
    with pytest.raises(ValueError, match=f"^{file}:2: .*{told}"):
        read_jsonl(file)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "a"]), inner),
    max_leaves=6,
)


@given(st.dictionaries(st.sampled_from(["image", "conversations", "video"]), json_values) | json_values)
@settings(max_examples=200, deadline=None)
def test_any_json_is_a_sample_or_a_value_error(tmp_path_factory, record):
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_text(json.dumps(record) + "\n")
    try:
        assert len(read_jsonl(file)) == 1
    except ValueError as error:
        assert str(error).startswith(f"{file}:1: ")


def test_a_file_on_disk_is_encoded(tmp_path, processor):
    picture(70, 40).save(tmp_path / "a.png")
    file = write(tmp_path, {"image": "a.png", "conversations": TALK}, {"image": "b.png", "conversations": TALK})
    good, bad = read_jsonl(file)
    assert len(processor.encode(good).tiles) > 1
    with pytest.raises(ValueError, match=r"train.jsonl:2: .*b.png: no such image file"):
        processor.encode(bad)
