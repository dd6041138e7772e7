"""Parameters to a checkpoint directory: `-hf`, which transformers opens as it is, or the original layout."""

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
from ivl3_jax.original_config import to_original

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
    """A tensor to be written: its name, and the parameters, one or several, of which it holds a layer."""

    name: str
    parameters: tuple[Parameter, ...]
    layer: int

    @property
    def shape(self) -> tuple[int, ...]:
        return self.parameters[0].layout.their_shape


def write_params(
    params: Mapping[str, Any],
    config: InternVLConfig,
    directory: str | Path,
    *,
    layout: str = "hf",
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
        layout: one of `names.LAYOUTS`.
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
    expected = list(parameters(config, layout))
    if leaves.keys() != {parameter.path for parameter in expected}:
        paths = {parameter.path for parameter in expected}
        raise ValueError(f"the parameters do not fit the config: {sorted(leaves.keys() ^ paths)}")
    stored = np.dtype(dtype or leaves["decoder/embed/table"].dtype)
    if stored not in DTYPES.values():
        raise ValueError(f"dtype {stored} cannot be written; supported: {', '.join(map(str, DTYPES.values()))}")
    holders: dict[str, list[tuple[Parameter, int]]] = {}
    for parameter in expected:
        for layer, name in enumerate(parameter.tensors):
            holders.setdefault(name, []).append((parameter, layer))
    tensors = [_Tensor(name, tuple(p for p, _ in held), held[0][1]) for name, held in holders.items()]
    directory.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".partial", dir=directory.parent))
    try:
        temporary.chmod(0o777 & ~_umask())
        _write_weights(temporary, leaves, tensors, stored, max_shard_bytes)
        fields = to_hf(config) if layout == "hf" else to_original(config, copy_from)
        _write_json(temporary / "config.json", fields | {"torch_dtype": stored.name})
        if copy_from is not None:
            # The remote code of an original checkpoint is the user's own, and goes where its layout goes.
            code = sorted(file.name for file in Path(copy_from).glob("*.py")) if layout == "original" else []
            for name in (*COMPANIONS, *code):
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
            values = np.empty(tensor.shape, dtype)
            for parameter in tensor.parameters:
                parameter.layout.put(_to_host(leaves[parameter.path], parameter, tensor.layer), values)
            stream.write(values.reshape(-1).view(np.uint8).data)
        stream.flush()
        os.fsync(stream.fileno())


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


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
