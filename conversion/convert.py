"""From checkpoint directory to checkpoint directory, a tensor at a time: no model is built."""

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ivl3_jax import __version__
from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.card import LAYOUTS
from ivl3_jax.conversion.checksums import check_weights
from ivl3_jax.conversion.layout import CHUNK_BYTES
from ivl3_jax.conversion.lora import open_weights
from ivl3_jax.conversion.names import Parameter, layout_of, parameters, parameters_alone
from ivl3_jax.conversion.reader import match_names, resolve_tying
from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory
from ivl3_jax.conversion.shards import Chunks, Tensor, assemble
from ivl3_jax.conversion.writer import write_layers
from ivl3_jax.hf_config import read_config


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    layout: str,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    report: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> InternVLConfig:
    """Writes the checkpoint `source`, in either layout, as `destination` in `layout`, bit by bit unless cast.

    If it is interrupted, the same call continues after the last complete file. Weights that have a SHA256SUMS beside
    them are compared with it first.

    Args:
        source, destination: directories; the second must not exist, or be empty.
        layout: one of `names.LAYOUTS`. dtype: of all tensors; by default each keeps its own.
        report: takes what is being done ("checking", "writing"), the bytes done so far, and those of all.

    Returns:
        The config of both.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `read_params` and `write_layers`.
    """
    source = Path(source)
    config = resolve_tying(source, read_config(source))
    with open_weights(source) as file:
        layers = DirectoryLayers(file, config)
        write_layers(
            layers,
            config,
            destination,
            layout=layout,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            copy_from=source,
            identity={
                "from": identity_of(source),
                "layout": layout,
                "dtype": dtype,
                "max_shard_bytes": max_shard_bytes,
            },
            check=partial(check_weights, source, partial(report, "checking")),
            report=report,
        )
    return config


def identity_of(directory: Path) -> list[Any]:
    """What the content of a directory is told by."""
    files = sorted(file for file in directory.iterdir() if file.is_file())
    return [__version__, *([file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files)]


class DirectoryLayers:
    """The layers that a checkpoint directory holds, read one at a time.

    Raises:
        ValueError: tensors and config do not fit, see `match_names`.
    """

    def __init__(self, file: SafetensorsDirectory, config: InternVLConfig, component: str | None = None) -> None:
        """`component`: the only one that the directory holds, see `names.parameters_alone`; by default it holds all."""
        self._file, self._names = file, match_names(file, config, component)
        layout = layout_of(file.tensors)
        held = parameters_alone(config, component) if component else parameters(config, layout)
        self._parameters = {parameter.path: parameter for parameter in held}
        self.origin = f"`{file.directory.resolve().name}`, in {LAYOUTS[layout]}"

    def __getitem__(self, path: str) -> Parameter:
        """A parameter as the directory holds it."""
        return self._parameters[path]

    def holds(self, path: str) -> bool:
        return path in self._parameters

    def _tensor(self, parameter: Parameter, layer: int) -> str:
        return self._names[self._parameters[parameter.path].tensors[layer]]

    def dtype(self, parameter: Parameter, layer: int) -> np.dtype:
        return self._file.dtype(self._tensor(parameter, layer))

    def read(self, parameter: Parameter, layer: int) -> np.ndarray:
        """A layer of a parameter as ours, [*parameter.layout.our_shape], in blocks and in the dtype of the file."""
        layout, name = self._parameters[parameter.path].layout, self._tensor(parameter, layer)
        values = np.empty(layout.our_shape, self._file.dtype(name))
        read = partial(self._file.read, name, layout.width)
        layout.fill(values, tuple(slice(0, size) for size in layout.our_shape), read, values.itemsize)
        return values

    def chunks(self, tensor: Tensor) -> Chunks:
        """As they are in the file where source and destination hold the tensor alike, else put together in memory."""
        sources = [self._parameters[parameter.path] for parameter in tensor.parameters]
        if len(sources) == 1 and sources[0].layout.holds_as(tensor.parameters[0].layout):
            rows, width = math.prod(tensor.shape) // sources[0].layout.width, sources[0].layout.width
            name = self._tensor(sources[0], tensor.layer)
            step = max(1, CHUNK_BYTES // (self._file.dtype(name).itemsize * width))
            for at in range(0, rows, step):
                block = self._file.read(name, width, range(at, min(at + step, rows)), range(width))
                yield block.astype(tensor.dtype, copy=False)
            return

        def whole(parameter: Parameter, layer: int) -> np.ndarray:
            layout, name = self._parameters[parameter.path].layout, self._tensor(parameter, layer)
            rows = math.prod(layout.their_shape) // layout.width
            return layout.to_ours(self._file.read(name, layout.width, range(rows), range(layout.width)))

        yield from assemble(tensor, whole)
