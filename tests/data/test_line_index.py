"""The index of lines: equal to a naive reader on anything, kept, rebuilt, and never trusted when damaged."""

import io
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data import line_index
from ivl3_jax.data.line_index import HEADER, LineIndex, scan

PIECES = [b"{}", b"a", b" ", b"\t", b"\n", b"\n\n", b"\r\n", b"\x0c", b"\r", b"\xff", b"x" * 30]


def naive(content):
    return [(number, line) for number, line in enumerate(io.BytesIO(content), 1) if line.strip()]


def found(content, block, monkeypatch):
    monkeypatch.setattr(line_index, "BLOCK", block)
    starts, blanks = (np.concatenate([[], *parts]) for parts in zip(*scan(io.BytesIO(content)), strict=True))
    index = LineIndex(np.append(starts, len(content)), blanks)
    return [(index.line_number(i), content[slice(*index.span(i))]) for i in range(len(index))]


@given(st.lists(st.sampled_from(PIECES), max_size=40).map(b"".join), st.integers(1, 40))
@settings(max_examples=400, deadline=None)
def test_any_bytes_in_blocks_of_any_size(content, block):
    with pytest.MonkeyPatch.context() as monkeypatch:
        expected = naive(content)
        if not list(scan(io.BytesIO(content))):
            assert not expected
            return
        lines = found(content, block, monkeypatch)
    assert [(number, line.strip()) for number, line in lines] == [(number, line.strip()) for number, line in expected]


def write(file, content):
    file.write_bytes(content)
    return file


def read(index, file):
    content = file.read_bytes()
    return [(index.line_number(i), content[slice(*index.span(i))].strip()) for i in range(len(index))]


@pytest.mark.parametrize("content", [b"", b"\n", b" \n\n", b"a", b"a\n", b"\na\n\n\nb\r\n\r\nc", b"a\n  "])
def test_a_file(tmp_path, content):
    file = write(tmp_path / "a.jsonl", content)
    expected = [(number, line.strip()) for number, line in naive(content)]
    assert read(LineIndex.open(file), file) == expected
    assert (tmp_path / "a.jsonl.index").exists()
    assert read(LineIndex.open(file), file) == expected


def test_it_is_kept_and_follows_the_file(tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", b"a\nb\n")
    before = LineIndex.open(file)
    assert isinstance(before.starts, np.memmap)
    with monkeypatch.context() as patch:
        patch.setattr(line_index, "scan", None)
        assert len(LineIndex.open(file)) == 2
    write(file, b"a\nb\nc\n")
    assert len(LineIndex.open(file)) == 3
    write(file, b"aa\n\nc\n")
    os.utime(file, ns=(1, 1))  # of the same size
    assert read(LineIndex.open(file), file) == [(1, b"aa"), (3, b"c")]
    assert len(before) == 2  # who has an earlier one open keeps it


def test_a_damaged_index_is_made_anew(tmp_path):
    file = write(tmp_path / "a.jsonl", b"a\n\nb\nc\n")
    LineIndex.open(file)
    place = tmp_path / "a.jsonl.index"
    whole = place.read_bytes()
    damaged = [bytes(b ^ (255 * (i == at)) for i, b in enumerate(whole)) for at in range(len(whole))]
    for content in [*damaged, *(whole[:length] for length in range(len(whole))), whole + b"\0" * 8]:
        place.write_bytes(content)
        assert read(LineIndex.open(file), file) == [(1, b"a"), (3, b"b"), (4, b"c")]
        assert place.read_bytes() == whole


def test_beside_a_file_that_cannot_be_it_goes_to_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "data"
    folder.mkdir()
    file = write(folder / ("a" * 250), b"a\nb\n")  # no longer name fits into a directory
    assert len(LineIndex.open(file)) == 2
    assert list(folder.iterdir()) == [file]
    assert len(list((tmp_path / "cache/ivl3_jax").glob("*.index"))) == 1
    with monkeypatch.context() as patch:
        patch.setattr(line_index, "scan", None)
        assert len(LineIndex.open(file)) == 2
    (tmp_path / "not a directory").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "not a directory"))
    with pytest.raises(NotADirectoryError):
        LineIndex.open(file)


def test_a_file_that_changes_meanwhile_is_told(tmp_path, monkeypatch):
    file = write(tmp_path / "a.jsonl", b"a\nb\n")

    def slow(stream):
        write(file, b"something else\n")
        yield from scan(stream)

    monkeypatch.setattr(line_index, "scan", slow)
    with pytest.raises(ValueError, match=f"{file}: was changed while its lines were looked for"):
        LineIndex.open(file)
    with pytest.raises(FileNotFoundError):
        LineIndex.open(tmp_path / "none.jsonl")


def count(file):
    return len(LineIndex.open(file))


def test_several_processes_at_once(tmp_path):
    file = write(tmp_path / "a.jsonl", b"line\n\n" * 50_000)
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        assert list(pool.map(count, [file] * 6)) == [50_000] * 6
    assert {path.name for path in tmp_path.iterdir()} == {"a.jsonl", "a.jsonl.index"}
    assert (tmp_path / "a.jsonl.index").stat().st_size == HEADER.size + 8 * 100_001
