"""The layers of parameters in memory, on the devices of one process or of several, for a checkpoint to be written."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ivl3_jax.conversion.names import Parameter
from ivl3_jax.conversion.shards import Chunks, Tensor, assemble


def is_writer() -> bool:
    """Whether this process is the one that writes files."""
    return jax.process_index() == 0


@contextmanager
def leading() -> Iterator[None]:
    """What the writer does while the others `follow`; if it fails, they are told, and fail too."""
    try:
        yield
    except BaseException:
        _agree(False)
        raise
    _agree(True)


def follow() -> None:
    """Waits for the writer's next word.

    Raises:
        RuntimeError: it could not go on.
    """
    if not _agree(True):
        raise RuntimeError("process 0 could not write the checkpoint; its own message says why")


def _agree(ok: bool) -> bool:
    """What the writer says, heard by all processes at once."""
    if jax.process_count() == 1:
        return ok
    return bool(multihost_utils.broadcast_one_to_all(np.int32(ok)))


class ArrayLayers:
    """The layers of arrays by their paths, on devices or on the host."""

    origin = "a model in memory"

    def __init__(self, leaves: Mapping[str, Any]) -> None:
        self._leaves = leaves

    def dtype(self, parameter: Parameter, layer: int) -> np.dtype:
        return np.dtype(self._leaves[parameter.path].dtype)

    def chunks(self, tensor: Tensor) -> Chunks:
        follow()
        return assemble(tensor, lambda parameter, layer: _to_host(self._leaves[parameter.path], parameter, layer))


def _to_host(array: jax.Array | np.ndarray, parameter: Parameter, number: int) -> np.ndarray:
    """Layer `number` of a parameter, without padding; from every device only the slices of that layer."""
    ours, path = parameter.layout.our_shape, parameter.path
    shape = array.shape[1:] if parameter.stacked else array.shape
    if len(shape) != len(ours) or any(have < want for have, want in zip(shape, ours, strict=True)):
        raise ValueError(f"{path} has shape {array.shape}, but the config makes it {parameter.shape}")
    if isinstance(array, np.ndarray):
        layer = array[number] if parameter.stacked else array
    elif array.is_fully_addressable:
        layer = _assemble(array, parameter.stacked, number)
    else:
        layer = _gather(array, parameter.stacked, number)
    return layer[tuple(slice(size) for size in ours)]


def _assemble(array: jax.Array, stacked: bool, number: int) -> np.ndarray:
    layer = np.empty(array.shape[1:] if stacked else array.shape, array.dtype)
    for shard in array.addressable_shards:
        if shard.replica_id:
            continue
        index, part = shard.index, shard.data
        if stacked:
            start, stop, _ = index[0].indices(array.shape[0])
            if not start <= number < stop:
                continue
            index = index[1:]
            # On the host the whole stack is at hand as it is; from elsewhere only the layer is fetched.
            part = (np.asarray(part) if shard.device.platform == "cpu" else part)[number - start]
        if part.shape == layer.shape:
            return np.asarray(part)
        layer[index] = np.asarray(part)
    return layer


def _gather(array: jax.Array, stacked: bool, number: int) -> np.ndarray:
    """A layer whose slices lie with several processes, all of which call this: the whole of it for each."""
    return multihost_utils.process_allgather(array[number] if stacked else array, tiled=True)
