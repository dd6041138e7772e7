"""InternVL's JSONL conversations: what is read, and how a bad line is reported."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data import Message, Video
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.jsonl import JsonlSource
from ivl3_jax.data.records import CHAT_LABEL, TRAINING_LABEL, Pair
from ivl3_jax.data.sources import SourceSpec
from tests.data.pictures import picture

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "7"}]
PAIR = {"question": "What?", "chosen": "7", "rejected": "8"}


def read_jsonl(file, root=None, source=0):
    return list(JsonlSource(SourceSpec("lines", str(root or file.parent), str(file)), source))


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


def test_videos(tmp_path):
    file = write(
        tmp_path,
        {"video": "a.mp4", "conversations": TALK},
        {"video": "frames/", "clip": [2, 3.5], "conversations": TALK, "image": "a.png"},
        {"video": "", "clip": None, "conversations": TALK},
        {**PAIR, "video": "a.mp4"},
    )
    first, second, third, pair = JsonlSource(SourceSpec("x", "/r", str(file)))
    assert first.videos == (Video("/r/a.mp4", label=TRAINING_LABEL),)
    assert second.videos == (Video("/r/frames", clip=(2.0, 3.5), label=TRAINING_LABEL),)
    assert (second.images, third.videos) == (("/r/a.png",), ())
    assert pair.videos == (Video("/r/a.mp4", label=CHAT_LABEL),)


def test_preference_pairs(tmp_path):
    file = write(
        tmp_path,
        {"id": 1, "image": "a.png", **PAIR, "answer_gt": "7", "chosen_meta": {}},
        {"image": ["a.png", "b.png"], **PAIR},
        {"chosen": None, "rejected": None, "conversations": TALK},
        {**PAIR, "image": None},
    )
    one, two, talk, none = JsonlSource(SourceSpec("x", "r", str(file)), 5)
    assert one == Pair((Message("user", "What?"),), "7", "8", ("r/a.png",), source=5, where=f"{file}:1")
    assert (two.images, none.images) == (("r/a.png", "r/b.png"), ())
    assert [message.role for message in talk.messages] == ["user", "assistant"]


@pytest.mark.parametrize(("root", "joined"), [("gs://b/dir", "gs://b/dir/a/b.png"), ("gs://b/dir/", "gs://b/dir/a/b.png"),
                                              ("", "a/b.png"), (".", "a/b.png"), ("x/", "x/a/b.png")])  # fmt: skip
def test_roots_are_joined(tmp_path, root, joined):
    file = write(tmp_path, {"image": "a/./b.png", "conversations": TALK})
    assert JsonlSource(SourceSpec("x", root, str(file)))[0].images == (joined,)


def test_a_source_reads_lines_in_any_order(tmp_path):
    file = tmp_path / "train.jsonl"
    lines = [json.dumps({"conversations": [{"from": "gpt", "value": str(n)}]}).encode() for n in range(7)]
    file.write_bytes(b"\r\n\r\n".join(lines))
    source = JsonlSource(SourceSpec("x", "", str(file)), 2)
    for n in (6, 0, 3):
        assert source[n].messages[0].text == str(n)
        assert (source[n].where, source[n].source) == (f"{file}:{2 * n + 1}", 2)
    assert len(source) == len(list(source)) == 7
    for outside in (7, -1):
        with pytest.raises(IndexError, match=f"source x has 7 samples, and none of number {outside}"):
            source[outside]


def test_a_fraction_keeps_the_first_lines(tmp_path):
    file = write(tmp_path, *[{"conversations": TALK}] * 7)
    assert [len(JsonlSource(SourceSpec("x", "", str(file), repeat=r))) for r in (0.5, 0.99, 1, 3)] == [3, 6, 7, 7]
    with pytest.raises(ValueError, match=r"^x.repeat_time is 0.1, which keeps none of 7 records"):
        JsonlSource(SourceSpec("x", "", str(file), repeat=0.1))
    file.write_bytes(b"\n")
    with pytest.raises(ValueError, match=f"^{file}: has no records"):
        JsonlSource(SourceSpec("x", "", str(file)))


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
        ({"image": "a/../../b.png", "conversations": TALK}, "'a/../../b.png' leaves the root"),
        ({"image": "s3://b/a.png", "conversations": TALK}, "'s3://b/a.png' is a URL; .*s3:// is not read: mount"),
        ({"image": "a\0.png", "conversations": TALK}, "has a null character"),
        ({"video": ["a.mp4"], "conversations": TALK}, r"'video' is \['a.mp4'\]; it must be a path"),
        ({"video": "../a.mp4", "conversations": TALK}, "video path '../a.mp4' leaves the root"),
        ({"video": "a.mp4", "clip": [1], "conversations": TALK}, r"'clip' is \[1\]; it must be \[start, end\]"),
        ({"video": "a.mp4", "clip": [True, 2], "conversations": TALK}, "'clip' is"),
        ({"video": "a.mp4", "clip": [3, 2], "conversations": TALK}, "the clip is 3 to 2 s; it must begin"),
        ({"chosen": "7", "conversations": TALK}, "'question' is None; a preference pair has the strings"),
        ({**PAIR, "rejected": None}, "'rejected' is None; a preference pair"),
        ({**PAIR, "chosen": "caf\udce9"}, "lone surrogate"),
    ],
)
def test_bad_lines(tmp_path, record, told):
    file = write(tmp_path, {"conversations": TALK}, record)
    with pytest.raises(Fault, match=f"^{file}:2: .*{told}") as raised:
        JsonlSource(SourceSpec("x", str(tmp_path), str(file)))[1]
    assert raised.value.reason == ("path" if "path '" in str(raised.value) else "line")
    with pytest.raises(Fault) as also:
        read_jsonl(file)
    assert str(also.value) == str(raised.value)


@pytest.mark.parametrize("root", ["", ".", "gs://b/dir"])
def test_no_root_can_be_left(tmp_path, root):
    file = write(tmp_path, {"image": "../a.png", "conversations": TALK}, {"video": "../a.mp4", "conversations": TALK})
    for index in range(2):
        with pytest.raises(Fault, match="leaves the root|videos are read from disk: mount or copy"):
            JsonlSource(SourceSpec("x", root, str(file)))[index]


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "a"]), inner),
    max_leaves=6,
)


KEYS = ["image", "conversations", "video", "clip", "question", "chosen", "rejected"]


@given(st.dictionaries(st.sampled_from(KEYS), json_values) | json_values)
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
