"""Tensors to safetensors files: how a checkpoint is split, and writing one file with its checksum."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ivl3_jax.conversion.names import Parameter
from ivl3_jax.conversion.safetensors_file import DTYPES, SINGLE_FILE

Chunks = Iterator[np.ndarray]


@dataclass(frozen=True)
class Tensor:
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


def assemble(tensor: Tensor, read: Callable[[Parameter, int], np.ndarray]) -> Chunks:
    """A tensor's values from what `read` gives for a layer of each of its parameters, [*layout.our_shape]."""
    if len(tensor.parameters) == 1:
        (parameter,) = tensor.parameters
        yield from parameter.layout.slabs(read(parameter, tensor.layer), tensor.dtype)
        return
    values = np.empty(tensor.shape, tensor.dtype)
    for parameter in tensor.parameters:
        parameter.layout.put(read(parameter, tensor.layer), values)
    yield values


def split(tensors: Sequence[Tensor], max_shard_bytes: float) -> dict[str, list[Tensor]]:
    """Consecutive tensors by the file they go to, each of at most that size (more only for a single larger tensor)."""
    shards: list[list[Tensor]] = [[]]
    size = 0
    for tensor in tensors:
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(tensor)
        size += tensor.nbytes
    if len(shards) == 1:
        return {SINGLE_FILE: shards[0]}
    return {f"model-{n:05}-of-{len(shards):05}.safetensors": shard for n, shard in enumerate(shards, 1)}


def header(tensors: Iterable[Tensor]) -> bytes:
    """What a safetensors file begins with."""
    fields: dict[str, Any] = {"__metadata__": {"format": "pt"}}  # transformers refuses a file that does not say so
    codes = {dtype: code for code, dtype in DTYPES.items()}
    end = 0
    for tensor in tensors:
        start, end = end, end + tensor.nbytes
        fields[tensor.name] = {"dtype": codes[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(fields, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # so that tensors start at a multiple of 8
    return len(text).to_bytes(8, "little") + text


def write_shard(
    file: Path, tensors: Sequence[Tensor], chunks: Callable[[Tensor], Chunks], wrote: Callable[[int], None]
) -> str:
    """Writes one file and syncs it to the disk.

    Args:
        file: where. tensors: in order.
        chunks: the values of a tensor as contiguous arrays of its dtype, one after the other.
        wrote: takes the bytes of each chunk when it is written.

    Returns:
        The file's SHA-256 as hexadecimal digits.

    Raises:
        OSError: it cannot be written; the error names the file.
    """
    try:
        return _write(file, tensors, chunks, wrote)
    except OSError as error:
        error.filename = error.filename or str(file)
        raise


def _write(
    file: Path, tensors: Sequence[Tensor], chunks: Callable[[Tensor], Chunks], wrote: Callable[[int], None]
) -> str:
    digest, hashed = hashlib.sha256(), Future()
    hashed.set_result(None)
    # Hashing takes as long as everything else; it runs one chunk behind.
    with file.open("wb") as stream, ThreadPoolExecutor(1) as hasher:

        def write(values: memoryview | bytes) -> None:
            nonlocal hashed
            hashed.result()
            hashed = hasher.submit(digest.update, values)
            stream.write(values)

        write(header(tensors))
        for tensor in tensors:
            for chunk in chunks(tensor):
                write(chunk.reshape(-1).view(np.uint8).data)
                wrote(chunk.nbytes)
        stream.flush()
        os.fsync(stream.fileno())
    return digest.hexdigest()
