"""From checkpoint directory to checkpoint directory, a tensor at a time: no model is built."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.lora import open_weights
from ivl3_jax.conversion.names import Parameter, layout_of, parameters
from ivl3_jax.conversion.reader import match_names, resolve_tying
from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory
from ivl3_jax.conversion.writer import write_layers
from ivl3_jax.hf_config import read_config


def convert(
    source: str | Path,
    destination: str | Path,
    *,
    layout: str,
    dtype: str | None = None,
    max_shard_bytes: float = 5e9,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> InternVLConfig:
    """Writes the checkpoint `source`, in either layout, as `destination` in `layout`, bit by bit unless cast.

    Args:
        source, destination: directories; the second must not exist, or be empty.
        layout: one of `names.LAYOUTS`. dtype: of all tensors; by default each keeps its own.
        report: takes the bytes written so far, and those to be written in all.

    Returns:
        The config of both.

    Raises:
        FileNotFoundError, FileExistsError, ValueError: as `read_params` and `write_layers`.
    """
    config = resolve_tying(source, read_config(source))
    with open_weights(source) as file:
        write_layers(
            DirectoryLayers(file, config),
            config,
            destination,
            layout=layout,
            dtype=dtype,
            max_shard_bytes=max_shard_bytes,
            copy_from=source,
            report=report,
        )
    return config


class DirectoryLayers:
    """The layers that a checkpoint directory holds, read one at a time.

    Raises:
        ValueError: tensors and config do not fit, see `match_names`.
    """

    def __init__(self, file: SafetensorsDirectory, config: InternVLConfig) -> None:
        self._file, self._names = file, match_names(file, config)
        self._parameters = {p.path: p for p in parameters(config, layout_of(file.tensors))}

    def _tensor(self, parameter: Parameter, number: int) -> str:
        return self._names[self._parameters[parameter.path].tensors[number]]

    def dtype(self, parameter: Parameter, number: int) -> np.dtype:
        return self._file.dtype(self._tensor(parameter, number))

    def read(self, parameter: Parameter, number: int) -> np.ndarray:
        layout, name = self._parameters[parameter.path].layout, self._tensor(parameter, number)
        dtype = self._file.dtype(name)
        layer = np.empty(layout.our_shape, dtype)
        read = partial(self._file.read, name, layout.width)
        layout.fill(layer, tuple(slice(0, size) for size in layout.our_shape), read, dtype.itemsize)
        return layer
