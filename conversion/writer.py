"""Parameters to a checkpoint directory in the `-hf` layout, which transformers opens as it is."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.names import Parameter, parameters
from ivl3_jax.conversion.safetensors_file import DTYPES, INDEX_FILE, SINGLE_FILE
from ivl3_jax.hf_config import to_hf

GENERATION_FILE = "generation_config.json"
# What a checkpoint directory holds beside weights and config.
COMPANIONS = (
    GENERATION_FILE,
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "chat_template.jinja",
    "chat_template.json",
    "processor_config.json",
    "preprocessor_config.json",
    "video_preprocessor_config.json",
)


@dataclass(frozen=True)
class _Tensor:
    """A tensor to be written: its name, and the layer of the parameter that it is."""

    name: str
    parameter: Parameter
    layer: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameter.layout.their_shape


def write_hf(
    params: Mapping[str, Any],
    config: InternVLConfig,
    directory: str | Path,
    *,
    dtype: str | np.dtype | None = None,
    max_shard_bytes: float = 5e9,
    copy_from: str | Path | None = None,
) -> None:
    """Writes config.json, safetensors (with an index if there are several) and generation_config.json.

    Everything is written beside `directory` under a temporary name and renamed at the end, so that the directory is
    complete or not there. Tensors are brought to the host one at a time.

    Args:
        params: nested dictionary of arrays, wholly addressable by this process; padding of the vocabulary is dropped.
        config: says which parameters there are.
        directory: must not exist, or be empty.
        dtype: of the tensors in the files; by default that of the parameters.
        max_shard_bytes: a larger checkpoint is split into several files.
        copy_from: a checkpoint directory whose tokenizer and processor files are copied.

    Raises:
        FileExistsError: `directory` holds something.
        ValueError: parameters and config do not fit, or the dtype has no name in safetensors.
    """
    directory = Path(directory)
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise FileExistsError(f"{directory} exists and is not empty; choose another directory, or remove it first")
    leaves = flatten_dict(dict(params), sep="/")
    expected = list(parameters(config))
    if leaves.keys() != {parameter.path for parameter in expected}:
        paths = {parameter.path for parameter in expected}
        raise ValueError(f"the parameters do not fit the config: {sorted(leaves.keys() ^ paths)}")
    stored = np.dtype(dtype or leaves["decoder/embed/table"].dtype)
    if stored not in DTYPES.values():
        raise ValueError(f"dtype {stored} cannot be written; supported: {', '.join(map(str, DTYPES.values()))}")
    tensors = [_Tensor(name, p, layer) for p in expected for layer, name in enumerate(p.tensors)]
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        _write_weights(temporary, leaves, tensors, stored, max_shard_bytes)
        _write_json(temporary / "config.json", to_hf(config) | {"torch_dtype": stored.name})
        if copy_from is not None:
            for name in COMPANIONS:
                if (Path(copy_from) / name).is_file():
                    shutil.copyfile(Path(copy_from) / name, temporary / name)
        temporary.rename(directory)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _write_weights(
    directory: Path, leaves: Mapping[str, Any], tensors: Sequence[_Tensor], dtype: np.dtype, max_shard_bytes: float
) -> None:
    shards = list(_split(tensors, dtype, max_shard_bytes))
    if len(shards) == 1:
        _write_shard(directory / SINGLE_FILE, leaves, shards[0], dtype)
        return
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_shard(directory / name, leaves, shard, dtype)
        weight_map |= {tensor.name: name for tensor in shard}
    total = sum(math.prod(tensor.shape) for tensor in tensors) * dtype.itemsize
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


def _split(tensors: Iterable[_Tensor], dtype: np.dtype, max_shard_bytes: float) -> Iterator[list[_Tensor]]:
    """Groups consecutive tensors into files of at most that size (more only if a single tensor is larger)."""
    shard: list[_Tensor] = []
    size = 0
    for tensor in tensors:
        nbytes = math.prod(tensor.shape) * dtype.itemsize
        if shard and size + nbytes > max_shard_bytes:
            yield shard
            shard, size = [], 0
        shard.append(tensor)
        size += nbytes
    yield shard


def _write_shard(file: Path, leaves: Mapping[str, Any], tensors: Sequence[_Tensor], dtype: np.dtype) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not say so
    code = next(code for code, known in DTYPES.items() if known == dtype)
    end = 0
    for tensor in tensors:
        start, end = end, end + math.prod(tensor.shape) * dtype.itemsize
        header[tensor.name] = {"dtype": code, "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors start at a multiple of 8
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            values = tensor.parameter.layout.to_theirs(_to_host(leaves[tensor.parameter.path], tensor))
            stream.write(np.ascontiguousarray(values.astype(dtype, copy=False)).reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


def _to_host(array: jax.Array | np.ndarray, tensor: _Tensor) -> np.ndarray:
    """One layer of a parameter, without padding; from every device only the slices of that layer."""
    ours, path = tensor.parameter.layout.our_shape, tensor.parameter.path
    shape = array.shape[1:] if tensor.parameter.stacked else array.shape
    if len(shape) != len(ours) or any(have < want for have, want in zip(shape, ours, strict=True)):
        raise ValueError(f"{path} has shape {array.shape}, but the config makes it {tensor.parameter.shape}")
    if isinstance(array, np.ndarray):
        layer = array[tensor.layer] if tensor.parameter.stacked else array
        return layer[tuple(slice(size) for size in ours)]
    if not array.is_fully_addressable:
        raise ValueError(f"{path} lies on devices of several processes; gather it before writing")
    layer = np.empty(shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        index, data = shard.index, shard.data
        if tensor.parameter.stacked:
            start, stop, _ = index[0].indices(array.shape[0])
            if not start <= tensor.layer < stop:
                continue
            index, data = index[1:], data[tensor.layer - start]
        layer[index] = np.asarray(data)
    return layer[tuple(slice(size) for size in ours)]


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
