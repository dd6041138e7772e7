"""Parquet files of records."""

import json

import numpy as np
import pytest

from ivl3_jax.data import parquet as ours
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.parquet import ParquetSource
from ivl3_jax.data.records import Message, Pair, Stored
from ivl3_jax.data.sources import SourceSpec

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "7"}]
MESSAGES = (Message("user", "What?"), Message("assistant", "7"))


def opened(tmp_path, group=2, **columns):
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table(columns), file, row_group_size=group)
    return ParquetSource(SourceSpec("x", "root", str(file)), 4)


@pytest.mark.parametrize("as_text", [True, False])
def test_conversations(tmp_path, as_text):
    source = opened(tmp_path, conversations=[json.dumps(TALK) if as_text else TALK] * 5, id=list(range(5)))
    assert [sample.messages for sample in source] == [MESSAGES] * 5
    assert (source[4].where, source[4].source, len(source)) == (f"{tmp_path}/a.parquet:5", 4, 5)


@pytest.mark.parametrize(
    ("column", "images"),
    [
        (["a.png", None, ""], [("root/a.png",), (), ()]),
        ([["a.png", "b.png"], [], None], [("root/a.png", "root/b.png"), (), ()]),
        ([b"JPEG", b"PNG", None], [(Stored("image 1", b"JPEG"),), (Stored("image 1", b"PNG"),), ()]),
        ([[b"J", b"P"], [], None], [(Stored("image 1", b"J"), Stored("image 2", b"P")), (), ()]),
        (
            [{"bytes": b"J", "path": "a.jpg"}, {"bytes": None, "path": "b.jpg"}, {"bytes": b"P", "path": None}],
            [(Stored("a.jpg", b"J"),), ("root/b.jpg",), (Stored("image 1", b"P"),)],
        ),
        ([[{"bytes": b"J", "path": "a.jpg"}], [], None], [(Stored("a.jpg", b"J"),), (), ()]),
        ([{"bytes": None, "path": None}, {"bytes": None, "path": ""}, None], [(), (), ()]),
    ],
)
def test_images_however_they_are_written(tmp_path, column, images):
    source = opened(tmp_path, conversations=[TALK] * 3, image=column)
    assert [sample.images for sample in source] == images


def test_preference_pairs_and_videos(tmp_path):
    source = opened(
        tmp_path, question=["Q", "Q"], chosen=["a", "b"], rejected=["c", None], image=["x.png", None],
        video=[None, "a.mp4"], clip=[None, [1.0, 2.0]],
    )  # fmt: skip
    assert source[0] == Pair((Message("user", "Q"),), "a", "c", ("root/x.png",), source=4, where=source[0].where)
    with pytest.raises(Fault, match="a.parquet:2: 'rejected' is None"):
        source[1]


def test_groups_are_read_once_and_bounded(tmp_path, monkeypatch):
    source = opened(tmp_path, group=3, conversations=[json.dumps(TALK)] * 10, image=[bytes(1000)] * 10)
    reads = []
    read = type(source._file).read_row_group
    monkeypatch.setattr(type(source._file), "read_row_group", lambda *a, **k: reads.append(a[1]) or read(*a, **k))
    monkeypatch.setattr(ours, "CACHE", 7000)  # two groups of three rows
    for index in (0, 2, 4, 1, 9, 3, 0):
        assert source[index].messages == MESSAGES
    assert reads == [0, 1, 3, 1, 0]
    assert len(source._kept) == 2
    monkeypatch.setattr(ours, "CACHE", 0)
    assert source[5].images == (Stored("image 1", bytes(1000)),)
    assert list(source._kept) == [1]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"conversations": ["{"]}, "'conversations' is text that is not JSON"),
        ({"conversations": ["[" * 100_000]}, "'conversations' is text that is not JSON"),
        (
            {"conversations": [[{"from": "gpt", "value": None}]]},
            r"conversations\[0\].value is None; it must be a string",
        ),
        ({"conversations": [TALK], "image": ["../a.png"]}, "leaves the root"),
        ({"conversations": [TALK], "image": [3]}, "'image' is 3; it must be a path"),
    ],
)
def test_bad_rows(tmp_path, columns, told):
    source = opened(tmp_path, **columns)
    with pytest.raises(Fault, match=f"^{tmp_path}/a.parquet:1: .*{told}"):
        source[0]


def test_files_that_cannot_be_used(tmp_path):
    with pytest.raises(ValueError, match="a.parquet: has the columns text; it must have conversations, or question"):
        opened(tmp_path, text=["a"])
    with pytest.raises(ValueError, match="a.parquet: has no records"):
        opened(tmp_path, conversations=pa.array([], pa.string()))
    file = tmp_path / "a.parquet"
    file.write_bytes(b"PAR1 no")
    with pytest.raises(ValueError, match="a.parquet: cannot be read as Parquet"):
        ParquetSource(SourceSpec("x", "", str(file)))
    with pytest.raises(FileNotFoundError):
        ParquetSource(SourceSpec("x", "", str(tmp_path / "none.parquet")))


def test_a_damaged_row_group_is_a_fault_of_its_rows(tmp_path):
    text = np.random.default_rng(0).bytes(4000).hex()
    file = tmp_path / "a.parquet"
    pq.write_table(pa.table({"conversations": [json.dumps(TALK)] * 2 + [text] * 2}), file, row_group_size=2)
    whole = file.read_bytes()
    at = pq.ParquetFile(file).metadata.row_group(1).column(0)
    begin = at.dictionary_page_offset or at.data_page_offset
    file.write_bytes(whole[:begin] + b"\xff" * 40 + whole[begin + 40 :])
    source = ParquetSource(SourceSpec("x", "", str(file)))
    assert source[0].messages == MESSAGES
    with pytest.raises(Fault, match="a.parquet:3: its row group cannot be read"):
        source[2]
