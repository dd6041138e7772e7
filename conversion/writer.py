"""Parameters to a checkpoint directory: `-hf`, which transformers opens as it is, or the original layout."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.companions import write_companions, write_json
from ivl3_jax.conversion.names import Parameter, parameters
from ivl3_jax.conversion.safetensors_file import DTYPES, INDEX_FILE, SINGLE_FILE
from ivl3_jax.hf_config import to_hf
from ivl3_jax.original_config import to_original


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written: its name, and the parameters, one or several, of which it holds a layer."""

    name: str
    parameters: tuple[Parameter, ...]
    layer: int
    dtype: np.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameters[0].layout.their_shape

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class Layers(Protocol):
    """Where the layers of parameters come from when a checkpoint is written, one at a time."""

    def dtype(self, parameter: Parameter, number: int) -> np.dtype:
        """What layer `number` of a parameter is stored in."""

    def read(self, parameter: Parameter, number: int) -> np.ndarray:
        """Layer `number` of a parameter, [*parameter.layout.our_shape]."""


def write_params(
    params: Mapping[str, Any], config: InternVLConfig, directory: str | Path, *, layout: str = "hf", **options: Any
) -> None:
    """Writes parameters as a checkpoint directory; see `write_layers`.

    Args:
        params: nested dictionary of arrays, wholly addressable by this process; padding of the vocabulary is dropped.

    Raises:
        ValueError: parameters and config do not fit.
    """
    leaves = flatten_dict(dict(params), sep="/")
    paths = {parameter.path for parameter in parameters(config, layout)}
    if leaves.keys() != paths:
        raise ValueError(f"the parameters do not fit the config: {sorted(leaves.keys() ^ paths)}")
    write_layers(_Arrays(leaves), config, directory, layout=layout, **options)


def write_layers(
    layers: Layers,
    config: InternVLConfig,
    directory: str | Path,
    *,
    layout: str = "hf",
    dtype: str | np.dtype | None = None,
    max_shard_bytes: float = 5e9,
    copy_from: str | Path | None = None,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> None:
    """Writes config.json, safetensors (with an index if there are several), and the files of `companions`.

    Everything is written beside `directory` under a temporary name and renamed at the end, so that the directory is
    complete or not there. One tensor is in memory at a time.

    Args:
        layers: where the values come from.
        config: says which parameters there are.
        directory: must not exist, or be empty.
        layout: one of `names.LAYOUTS`.
        dtype: of the tensors in the files; by default each keeps its own.
        max_shard_bytes: a larger checkpoint is split into several files.
        copy_from: a checkpoint directory whose tokenizer and processor files are copied.
        report: takes the bytes written so far, and those to be written in all.

    Raises:
        FileExistsError: `directory` holds something.
        ValueError: a dtype has no name in safetensors, or what one tensor is to hold has several.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty; choose another directory, or remove it first")
    holders: dict[str, list[tuple[Parameter, int]]] = {}
    for parameter in parameters(config, layout):
        for number, name in enumerate(parameter.tensors):
            holders.setdefault(name, []).append((parameter, number))
    tensors = [_tensor(name, held, layers, dtype) for name, held in holders.items()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        _write_weights(temporary, layers, tensors, max_shard_bytes, report)
        fields = to_hf(config) if layout == "hf" else to_original(config, copy_from)
        table = next(t for t in tensors if any(p.path == "decoder/embed/table" for p in t.parameters))
        write_json(temporary / "config.json", fields | {"torch_dtype": table.dtype.name})
        if copy_from is not None:
            write_companions(copy_from, temporary, layout, config)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _tensor(name: str, held: Sequence[tuple[Parameter, int]], layers: Layers, dtype: str | np.dtype | None) -> _Tensor:
    parts, (number, *_) = zip(*held, strict=True)
    found = {np.dtype(dtype) if dtype else layers.dtype(parameter, number) for parameter in parts}
    if len(found) > 1:
        raise ValueError(
            f"{', '.join(p.path for p in parts)} become one tensor, {name}, but have the dtypes "
            f"{', '.join(sorted(map(str, found)))}; choose one dtype for the file"
        )
    (stored,) = found
    if stored not in DTYPES.values():
        raise ValueError(f"dtype {stored} cannot be written; supported: {', '.join(map(str, DTYPES.values()))}")
    return _Tensor(name, parts, number, stored)


def _write_weights(
    directory: Path,
    layers: Layers,
    tensors: Sequence[_Tensor],
    max_shard_bytes: float,
    report: Callable[[int, int], None],
) -> None:
    shards = list(_split(tensors, max_shard_bytes))
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    names = names if len(shards) > 1 else [SINGLE_FILE]
    total, done = sum(tensor.nbytes for tensor in tensors), 0
    for name, shard in zip(names, shards, strict=True):
        for tensor in _write_shard(directory / name, layers, shard):
            done += tensor.nbytes
            report(done, total)
    if len(shards) > 1:
        weight_map = {tensor.name: name for name, shard in zip(names, shards, strict=True) for tensor in shard}
        write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(tensors: Iterable[_Tensor], max_shard_bytes: float) -> Iterator[list[_Tensor]]:
    """Groups consecutive tensors into files of at most that size (more only if a single tensor is larger)."""
    shard: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        if shard and size + tensor.nbytes > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += tensor.nbytes
    yield shard


def _write_shard(file: Path, layers: Layers, tensors: Sequence[_Tensor]) -> Iterator[_Tensor]:
    """Writes one file; yields each tensor when it is written."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not say so
    codes = {dtype: code for code, dtype in DTYPES.items()}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {"dtype": codes[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors start at a multiple of 8
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = np.empty(tensor.shape, tensor.dtype)
            for parameter in tensor.parameters:
                parameter.layout.put(layers.read(parameter, tensor.layer), values)
            stream.write(values.reshape(-1).view(np.uint8).data)
            yield tensor
        stream.flush()
        os.fsync(stream.fileno())


class _Arrays:
    """The layers of arrays by their paths, on devices or on the host."""

    def __init__(self, leaves: Mapping[str, Any]) -> None:
        self._leaves = leaves

    def dtype(self, parameter: Parameter, number: int) -> np.dtype:
        return np.dtype(self._leaves[parameter.path].dtype)

    def read(self, parameter: Parameter, number: int) -> np.ndarray:
        return _to_host(self._leaves[parameter.path], parameter, number)


def _to_host(array: jax.Array | np.ndarray, parameter: Parameter, number: int) -> np.ndarray:
    """Layer `number` of a parameter, without padding; from every device only the slices of that layer."""
    ours, path = parameter.layout.our_shape, parameter.path
    shape = array.shape[1:] if parameter.stacked else array.shape
    if len(shape) != len(ours) or any(have < want for have, want in zip(shape, ours, strict=True)):
        raise ValueError(f"{path} has shape {array.shape}, but the config makes it {parameter.shape}")
    if isinstance(array, np.ndarray):
        layer = array[number] if parameter.stacked else array
        return layer[tuple(slice(size) for size in ours)]
    if not array.is_fully_addressable:
        raise ValueError(f"{path} lies on devices of several processes; gather it before writing")
    layer = np.empty(shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        index, data = shard.index, shard.data
        if parameter.stacked:
            start, stop, _ = index[0].indices(array.shape[0])
            if not start <= number < stop:
                continue
            index, data = index[1:], data[number - start]
        layer[index] = np.asarray(data)
    return layer[tuple(slice(size) for size in ours)]


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
