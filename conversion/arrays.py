"""The layers of parameters in memory, on the devices of one process or of several, for a checkpoint to be written."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from ivl3_jax.conversion.names import Parameter
from ivl3_jax.conversion.shards import Chunks, Tensor, assemble
from ivl3_jax.layers.lora import merge
from ivl3_jax.models.adapters import LEAVES


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


def together(layers: "ArrayLayers", tensors: Sequence[Tensor], write: Callable[[], None]) -> None:
    """The first process runs `write`, which takes the values of each tensor once and in order; the others give theirs.

    Raises:
        RuntimeError: in the others, if the first failed.
    """
    if is_writer():
        with leading():
            write()
    else:
        for tensor in tensors:
            for _ in layers.chunks(tensor):
                pass
        follow()


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

    def __init__(self, leaves: Mapping[str, Any], scales: Mapping[str, float] | None = None) -> None:
        """`scales`: the linear layers, by their paths, whose adapters are merged, and by what A B is multiplied."""
        self._leaves, self._scales = leaves, scales or {}

    def dtype(self, parameter: Parameter, layer: int) -> np.dtype:
        return np.dtype(self._leaves[parameter.path].dtype)

    def chunks(self, tensor: Tensor) -> Chunks:
        follow()
        return assemble(tensor, self._read)

    def _read(self, parameter: Parameter, layer: int) -> np.ndarray:
        """A layer of a parameter without padding; merged, it is in at least float32, for the caller to round once."""
        values = self.on_host(parameter.path, parameter.stacked, layer)
        ours, path = parameter.layout.our_shape, parameter.path.removesuffix("/kernel")
        if values.ndim != len(ours) or any(have < want for have, want in zip(values.shape, ours, strict=True)):
            shape = self._leaves[parameter.path].shape
            raise ValueError(f"{parameter.path} has shape {shape}, but the config makes it {parameter.shape}")
        if path in self._scales:
            a, b = (self.on_host(f"{path}/{name}", parameter.stacked, layer) for name in LEAVES)
            left, right = a.reshape(-1, a.shape[-1]), b.reshape(len(b), -1)
            matrix = values.reshape(len(left), -1)
            values = merge(matrix, left, right, self._scales[path]).reshape(values.shape)
        return values[tuple(slice(size) for size in ours)]

    def on_host(self, path: str, stacked: bool, number: int) -> np.ndarray:
        """Layer `number` of an array, or the whole of one that is not stacked, as it is stored."""
        array = self._leaves[path]
        if isinstance(array, np.ndarray):
            return array[number] if stacked else array
        if array.is_fully_addressable:
            return _assemble(array, stacked, number)
        return _gather(array, stacked, number)


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
