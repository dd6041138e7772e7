"""Shards: ArrayRecord files that hold records together with their images, for pods (extra `shards`).

A directory has the shards and `shards.json`, which says what they were made of and how many samples, bytes and which
SHA-256 each has. An entry of a shard is msgpack of {"line": the record as JSON, "where": where it was, "images": [the
bytes of each image's file]}. Videos stay paths, which start from the root of the source.
"""

import bisect
import json
import os
import posixpath
from dataclasses import asdict, dataclass
from functools import lru_cache
from itertools import accumulate
from pathlib import Path
from typing import Any, Self, cast

from ivl3_jax.data.conversations import as_list, parse_line
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.files import is_remote, read_bytes, replacing
from ivl3_jax.data.json_values import parse_json, shown
from ivl3_jax.data.records import Stored
from ivl3_jax.data.sources import RecordSource, SourceSpec

FILE = "shards.json"
FORMAT = "ivl3 shards 1"
OPEN_SHARDS = 256  # readers, each of which holds a file open

# As array_record advises for random access: nothing is read in advance.
READER = "readahead_buffer_size:0,max_parallelism:0"


@dataclass(frozen=True)
class Shard:
    """A complete shard.

    Attributes:
        file: its name. samples: in it. bytes, sha256: of the file.
        end: how many records of the source are used up with it.
        skipped: how many of these were left out, by reason.
        told: bytes of skipped.jsonl about them.
    """

    file: str
    samples: int
    bytes: int
    sha256: str
    end: int
    skipped: dict[str, int]
    told: int

    def __post_init__(self) -> None:
        if not isinstance(self.file, str) or not self.file.strip(".") or posixpath.basename(self.file) != self.file:
            raise ValueError(f"a shard is {shown(self.file)}; it must be the name of a file in the same directory")
        for name in ("samples", "bytes", "end", "told"):
            if type(number := getattr(self, name)) is not int or number < 0:
                raise ValueError(f"{name} of {self.file} is {shown(number)}; it must be a whole number")
        if not isinstance(self.skipped, dict):
            raise ValueError(f"skipped of {self.file} is {shown(self.skipped)}; it must be an object")


@dataclass(frozen=True)
class Manifest:
    """What `shards.json` says.

    Attributes:
        source: what the shards were made of, by which it is told whether they can be continued.
        shards: complete ones in order.
        skipped: how many samples were left out, by reason. complete: whether nothing is missing.
    """

    source: dict[str, Any]
    shards: tuple[Shard, ...] = ()
    skipped: dict[str, int] | None = None
    complete: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.source, dict):
            raise ValueError(f"source is {shown(self.source)}; it must be an object")
        if type(self.complete) is not bool:
            raise ValueError(f"complete is {shown(self.complete)}; it must be true or false")

    @property
    def samples(self) -> int:
        return sum(shard.samples for shard in self.shards)

    @classmethod
    def read(cls, directory: str) -> Self:
        """Reads it from a directory, local or remote.

        Raises:
            OSError: it cannot be read. ValueError: it is damaged, or of another version.
        """
        file = posixpath.join(directory, FILE)
        try:
            found = parse_json(read_bytes(file))
            version = found["format"]
            if version == FORMAT:
                shards = tuple(Shard(**shard) for shard in found["shards"])
                return cls(found["source"], shards, found["skipped"], found["complete"])
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{file}: is damaged ({type(error).__name__}: {error})") from error
        raise ValueError(f"{file}: format is {shown(version)}; valid: {FORMAT!r}")

    def write(self, directory: Path) -> None:
        """Writes it, so that it is there completely or as it was."""
        with replacing(directory / FILE) as stream:
            stream.write(json.dumps({"format": FORMAT, **asdict(self)}, indent=2).encode() + b"\n")


def pack(record: dict[str, Any], where: str, images: list[bytes]) -> bytes:
    """An entry of a shard.

    Args:
        record: its images are written by name. where: where it was. images: the bytes of their files.
    """
    import msgpack

    names = [image.name if isinstance(image, Stored) else image for image in as_list(record.get("image"))]
    return msgpack.packb({"line": json.dumps({**record, "image": names}), "where": where, "images": images})


class ShardSource(RecordSource):
    """The samples of a directory of shards, local or at gs://, where only the entries that are asked for are read."""

    def __init__(self, spec: SourceSpec, number: int = 0) -> None:
        """Reads `shards.json`; shards are opened when they are first needed.

        Raises:
            ValueError: it is damaged, not complete, or a local shard has another size.
            OSError: it cannot be read.
        """
        manifest = Manifest.read(spec.annotation)
        if not manifest.complete:
            raise ValueError(f"{spec.annotation}: is not complete; the same `ivl3 data shard` continues it")
        for shard in manifest.shards:
            file = self._path(spec, shard)
            if not is_remote(file) and (size := os.path.getsize(file)) != shard.bytes:
                raise ValueError(f"{file}: has {size} bytes, but {FILE} says {shard.bytes}; copy or make it again")
        self._shards = manifest.shards
        self._ends = list(accumulate(shard.samples for shard in manifest.shards))
        self._reader = lru_cache(OPEN_SHARDS)(self._open)
        super().__init__(spec, number, manifest.samples)

    def record(self, index: int) -> tuple[dict[str, Any], str]:
        import msgpack

        place = bisect.bisect_right(self._ends, index)
        begin = self._ends[place - 1] if place else 0
        where = f"{self._path(self.spec, self._shards[place])}:{index - begin + 1}"
        try:
            entry = msgpack.unpackb(self._reader(place).read([index - begin])[0])
            record = parse_line(entry["line"], entry["where"])
            names = cast(list[str], as_list(record.get("image")))
            record["image"] = [Stored(name, data) for name, data in zip(names, entry["images"], strict=True)]
        except (RuntimeError, IndexError, ValueError, KeyError, TypeError, msgpack.UnpackException) as error:
            raise Fault("line", f"{where}: the shard is damaged ({type(error).__name__}: {error})") from error
        return record, f"{where} ({entry['where']})"

    def _open(self, place: int) -> Any:
        from array_record.python import array_record_module  # late: it is an extra

        file = self._path(self.spec, self._shards[place])
        reader = array_record_module.ArrayRecordReader(file, options=READER, file_reader_buffer_size=32 << 10)
        if not reader.ok() or reader.num_records() != self._shards[place].samples:
            raise ValueError(f"{reader.num_records()} samples instead of {self._shards[place].samples}")
        return reader

    @staticmethod
    def _path(spec: SourceSpec, shard: Shard) -> str:
        return posixpath.join(spec.annotation, shard.file)
