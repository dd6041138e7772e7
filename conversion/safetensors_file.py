"""Reading tensors out of a directory of safetensors files, a block at a time.

The files are read, not mapped: pages of a mapping count as this process's memory for as long as it exists, and a shard
has gigabytes of them. The format: eight bytes of header length, little-endian; a JSON header of name -> {dtype, shape,
data_offsets}; the tensors' bytes.
"""

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, Self

import ml_dtypes
import numpy as np

from ivl3_jax.hf_config import refuse_adapter

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
HEADER_LIMIT = 100_000_000  # bytes, the limit of the safetensors library
SEEK_BYTES = 32 << 10  # parts of a row at least this long are read alone, shorter ones by reading whole rows

PICKLES = ("pytorch_model*.bin", "*.pth", "*.pt", "*.ckpt")


@dataclass(frozen=True)
class TensorInfo:
    """Where a tensor lies: its file, dtype as the file calls it (`BF16`), shape, and first byte in the file."""

    file: Path
    dtype: str
    shape: tuple[int, ...]
    start: int


class SafetensorsDirectory:
    """All tensors of a checkpoint directory: one `model.safetensors`, or shards with an index.

    A context manager: shards stay open inside.

    Attributes:
        directory: where.
        tensors: every tensor by its name in the files.
    """

    def __init__(self, directory: str | Path, name: str | None = None) -> None:
        """Reads and checks the headers of all files; with `name` those of the one file of that name in the directory.

        Raises:
            FileNotFoundError: no safetensors weights, or a shard or that one file is missing.
            ValueError: a file is truncated or corrupt, or index and shards disagree.
        """
        self.directory = Path(directory)
        self._open: dict[Path, int] = {}
        self._opening = Lock()
        self.tensors: Mapping[str, TensorInfo] = (
            dict(_header(self.directory / name)) if name else _tensors(self.directory)
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def dtype(self, name: str) -> np.dtype:
        """A tensor's dtype.

        Raises:
            ValueError: it is not a float dtype that can be read.
        """
        info = self.tensors[name]
        if info.dtype not in DTYPES:
            raise ValueError(f"{info.file}: tensor {name} has dtype {info.dtype}; supported: {', '.join(DTYPES)}")
        return DTYPES[info.dtype]

    def read(self, name: str, width: int, rows: range, columns: range) -> np.ndarray:
        """A block of a tensor seen as a matrix.

        Args:
            name: as in the files.
            width: columns of the whole matrix.
            rows, columns: what to read, steps of one.

        Returns:
            [rows, columns] in the tensor's dtype, or in a wider one to be rounded by the caller.
        """
        info, dtype = self.tensors[name], self.dtype(name)
        if len(columns) < width and len(columns) * dtype.itemsize >= SEEK_BYTES:
            block = np.empty((len(rows), len(columns)), dtype)
            for line, row in zip(block, rows, strict=True):
                self._fill(info, line, (row * width + columns.start) * dtype.itemsize)
            return block
        block = np.empty((len(rows), width), dtype)
        self._fill(info, block, rows.start * width * dtype.itemsize)
        return block[:, columns.start : columns.stop]

    def _fill(self, info: TensorInfo, out: np.ndarray, offset: int) -> None:
        """Reads out.nbytes bytes from `offset` on in a tensor."""
        with self._opening:  # several threads read
            if info.file not in self._open:
                self._open[info.file] = os.open(info.file, os.O_RDONLY)
        target = out.view(np.uint8).data.cast("B")
        while target:
            count = os.preadv(self._open[info.file], [target], info.start + offset)
            if count == 0:
                raise ValueError(f"{info.file} ended {len(target)} bytes early: it was cut while being read")
            target, offset = target[count:], offset + count


def _tensors(directory: Path) -> dict[str, TensorInfo]:
    if not directory.is_dir():
        raise FileNotFoundError(
            f"{directory} is not a directory; a checkpoint is one, with config.json and safetensors"
        )
    single, index = directory / SINGLE_FILE, directory / INDEX_FILE
    if single.is_file():
        return dict(_header(single))
    if index.is_file():
        return _indexed(index)
    refuse_adapter(directory)
    shards = sorted(file.name for file in directory.glob("*.safetensors"))
    if shards:
        raise FileNotFoundError(f"{index} does not exist, but shards do ({', '.join(shards[:3])}); they need the index")
    pickles = sorted(file.name for pattern in PICKLES for file in directory.glob(pattern))
    if pickles:
        raise FileNotFoundError(
            f"{directory} holds weights as Python pickles only ({', '.join(pickles[:3])}), which are not loaded: they "
            "can run any code. Convert them to safetensors first: load with transformers, then save_pretrained"
        )
    raise FileNotFoundError(f"{directory} holds no weights: neither {SINGLE_FILE} nor {INDEX_FILE} is there")


def _indexed(index: Path) -> dict[str, TensorInfo]:
    """The tensors of a sharded checkpoint, index and shards checked against each other."""
    weight_map = _json(index, index.read_bytes()).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise ValueError(f"{index}: weight_map is missing or malformed; it maps each tensor's name to its file")
    names = sorted(set(weight_map.values()))
    for name in names:
        if name != Path(name).name:
            raise ValueError(f"{index}: weight_map names the file {name!r}; shards lie in the directory of the index")
    missing = [name for name in names if not (index.parent / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"{index} names {len(names)} files; missing: {', '.join(missing[:5])}{', ...' if missing[5:] else ''}"
        )
    found: dict[str, TensorInfo] = {}
    for name in names:
        for tensor, info in _header(index.parent / name):
            if tensor in found:
                raise ValueError(f"{info.file}: tensor {tensor} is also in {found[tensor].file.name}")
            found[tensor] = info
    for tensor, name in weight_map.items():
        if tensor not in found or found[tensor].file.name != name:
            raise ValueError(f"{index}: weight_map says that {name} holds {tensor}, but that file does not")
    for tensor, info in found.items():
        if tensor not in weight_map:
            raise ValueError(f"{index}: weight_map lacks {tensor}, which {info.file.name} holds; it must list all")
    return found


def _header(file: Path) -> Iterator[tuple[str, TensorInfo]]:
    """The tensors of one file, its header checked against its length."""
    size = file.stat().st_size
    with file.open("rb") as stream:
        start = stream.read(8)
        if start.startswith(b"version "):
            raise ValueError(f"{file} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`")
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > min(HEADER_LIMIT, size - 8):
            raise ValueError(
                f"{file}: the header should be {length} bytes long, but the file has {size}: it is truncated, or not "
                "safetensors"
            )
        header = _json(file, stream.read(length))
    parts = []
    for name, fields in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype, shape, (begin, end) = str(fields["dtype"]), tuple(fields["shape"]), fields["data_offsets"]
            well_formed = all(isinstance(n, int) and n >= 0 for n in (*shape, begin, end)) and begin <= end
        except (KeyError, TypeError, ValueError):
            well_formed = False
        if not well_formed:
            raise ValueError(
                f"{file}: corrupt header, tensor {name} is {str(fields)[:200]}; expected dtype, shape and data_offsets"
            )
        if 8 + length + end > size:
            raise ValueError(
                f"{file}: truncated, tensor {name} ends at byte {8 + length + end} but the file has {size} bytes"
            )
        if dtype in DTYPES and end - begin != math.prod(shape) * DTYPES[dtype].itemsize:
            raise ValueError(
                f"{file}: corrupt header, tensor {name} of dtype {dtype} and shape {list(shape)} has {end - begin} "
                f"bytes instead of {math.prod(shape) * DTYPES[dtype].itemsize}"
            )
        parts.append((begin, end, name))
        yield name, TensorInfo(file, dtype, shape, 8 + length + begin)
    _check_cover(file, sorted(parts), size - 8 - length)


def _check_cover(file: Path, parts: Sequence[tuple[int, int, str]], size: int) -> None:
    """As the format asks, each byte behind the header belongs to one tensor; `parts` are (begin, end, name), sorted."""
    at, before = 0, "the header"
    for begin, end, name in parts:
        if begin != at:
            what = "shares bytes with" if begin < at else "leaves a gap behind"
            raise ValueError(
                f"{file}: corrupt header, tensor {name} {what} {before}: its bytes begin at {begin} instead of {at}"
            )
        at, before = end, name
    if at != size:
        raise ValueError(f"{file}: corrupt, {size - at} bytes follow the last tensor, {before}; none may")


def _json(file: Path, content: bytes) -> dict[str, Any]:
    try:
        fields = json.loads(content)
    except ValueError as error:  # also what a wrong encoding raises
        raise ValueError(f"{file}: corrupt, its JSON cannot be read: {error}") from None
    if not isinstance(fields, dict):
        raise ValueError(f"{file}: corrupt, its JSON is {str(fields)[:100]} instead of an object")
    return fields
