"""Where the lines of a file begin, kept on disk beside it, so that any line is one read away.

The index `NAME.index` is a header, then little-endian uint64: the offsets at which lines begin, then the size of the
file, then for each blank line how many lines that are not blank come before it. Blank lines are left out of the count,
but a line's number remains that of an editor.
"""

import hashlib
import os
import struct
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np

from ivl3_jax.data.files import replacing

MAGIC = b"ivl3idx1"
HEADER = struct.Struct("<8s5Q")  # MAGIC, size and mtime in ns of the file, lines, blank lines, crc32 of the rest
BLOCK = 2 << 20  # bytes read at a time; the arrays over a block of nothing but line breaks have 32 times as many

_BLANK = np.isin(np.arange(256), np.frombuffer(b" \t\n\r\v\f", np.uint8))


@dataclass(frozen=True)
class LineIndex:
    """The lines of a file that are not blank, as `iter(open(file, "rb"))` cuts them.

    Attributes:
        starts: uint64 [lines + 1], memory-mapped: where each begins, at last the size of the file.
        blanks: uint64 [blank lines], ascending: how many lines come before each.
    """

    starts: np.ndarray
    blanks: np.ndarray

    @classmethod
    def open(cls, file: str | os.PathLike) -> Self:
        """The index of a file: that on disk if it is whole and fits the size and time of the file, else a new one.

        It is put beside the file, or where that cannot be into the user's cache directory.

        Raises:
            OSError: the file cannot be read, or the index be written in either place.
            ValueError: the file changes meanwhile.
        """
        stamp = _stamp(file)
        places = [Path(f"{os.fspath(file)}.index"), _cached(file)]
        for place in places:
            if (found := cls._load(place, stamp)) is not None:
                return found
        for place in places:
            try:
                place.parent.mkdir(parents=True, exist_ok=True)
                _build(file, place, stamp)
                break
            except OSError:
                if place is places[-1]:
                    raise
        if (built := cls._load(place, _stamp(file))) is None:
            raise ValueError(f"{os.fspath(file)}: was changed while its lines were looked for; try again")
        return built

    def __len__(self) -> int:
        return len(self.starts) - 1

    def span(self, index: int) -> tuple[int, int]:
        """The bytes [start, end) of a line with its line break, and with blank lines that follow it."""
        return int(self.starts[index]), int(self.starts[index + 1])

    def line_number(self, index: int) -> int:
        """The number from 1 that an editor shows for it."""
        return index + 1 + int(np.searchsorted(self.blanks, index, side="right"))

    @classmethod
    def _load(cls, place: Path, stamp: tuple[int, int]) -> Self | None:
        """What is there, if it is whole and belongs to a file of that size and time."""
        try:
            with place.open("rb") as stream:
                magic, *stated, lines, blanks, crc = HEADER.unpack(stream.read(HEADER.size))
                size = HEADER.size + 8 * (lines + 1 + blanks)
                fits = magic == MAGIC and tuple(stated) == stamp and os.fstat(stream.fileno()).st_size == size
                if not fits or _crc(stream) != crc:
                    return None
                offsets = np.memmap(stream, "<u8", "r", HEADER.size)
        except (OSError, struct.error):
            return None
        return cls(offsets[: lines + 1], offsets[lines + 1 :])


def scan(stream: BinaryIO) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Finds the lines of a file, a block at a time.

    Yields:
        int64 where the next lines begin, and int64 how many lines came before each blank line among them.
    """
    buffer = bytearray(BLOCK)
    view = np.frombuffer(buffer, np.uint8)
    offset = lines = begin = 0
    blank = True  # what has been seen of the line that begins at `begin`
    while size := stream.readinto(buffer):  # type: ignore[attr-defined]
        block = view[:size]
        breaks = np.flatnonzero(block == ord("\n"))
        begins = np.concatenate([[0], breaks[:-1] + 1])[: len(breaks)]
        is_blank = _BLANK[block[begins]]
        for line in np.flatnonzero(is_blank & (begins < breaks)):
            is_blank[line] = not buffer[begins[line] : breaks[line]].strip()
        rest = breaks[-1] + 1 if len(breaks) else 0
        if len(breaks):
            is_blank[0] &= blank
            starts = begins + offset
            starts[0], begin, blank = begin, offset + rest, True
            before = lines + np.cumsum(~is_blank)
            yield starts[~is_blank], before[is_blank]
            lines = int(before[-1])
        blank = blank and not buffer[rest:size].strip()
        offset += size
    if not blank:
        yield np.array([begin]), np.array([], np.int64)


def _build(file: str | os.PathLike, place: Path, stamp: tuple[int, int]) -> None:
    """Writes offsets as they are found: there may be more than fit into memory."""
    counts = [0, 0]
    with open(file, "rb", buffering=0) as stream, replacing(place) as out, tempfile.TemporaryFile() as aside:
        out.write(bytes(HEADER.size))
        for found in scan(stream):
            for kind, (to, numbers) in enumerate(zip((out, aside), found, strict=True)):
                to.write(numbers.astype("<u8"))
                counts[kind] += len(numbers)
        out.write(np.uint64(stamp[0]).astype("<u8").tobytes())
        aside.seek(0)
        while piece := aside.read(BLOCK):
            out.write(piece)
        out.flush()
        with open(out.name, "rb") as written:
            written.seek(HEADER.size)
            crc = _crc(written)
        out.seek(0)
        out.write(HEADER.pack(MAGIC, *stamp, *counts, crc))


def _crc(stream: BinaryIO) -> int:
    """Of what follows; read rather than mapped, so that it does not stay in memory."""
    crc = 0
    while piece := stream.read(BLOCK):
        crc = zlib.crc32(piece, crc)
    return crc


def _stamp(file: str | os.PathLike) -> tuple[int, int]:
    found = os.stat(file)
    return found.st_size, found.st_mtime_ns


def _cached(file: str | os.PathLike) -> Path:
    name = hashlib.sha256(os.path.realpath(file).encode(errors="surrogateescape")).hexdigest()[:32]
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ivl3_jax" / f"{name}.index"
