"""Parameters to a checkpoint directory: `-hf`, which transformers opens as it is, or the original layout."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from flax.traverse_util import flatten_dict

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.arrays import ArrayLayers, is_writer, together
from ivl3_jax.conversion.card import write_card
from ivl3_jax.conversion.checksums import write_checksums
from ivl3_jax.conversion.companions import write_companions, write_json
from ivl3_jax.conversion.names import Parameter, parameters
from ivl3_jax.conversion.safetensors_file import DTYPES, INDEX_FILE
from ivl3_jax.conversion.shards import Chunks, Tensor, split, write_shard
from ivl3_jax.conversion.unfinished import unfinished
from ivl3_jax.hf_config import to_hf
from ivl3_jax.original_config import to_original

Report = Callable[[int, int], None]


class Layers(Protocol):
    """Where the values of a checkpoint that is being written come from, one tensor at a time.

    Attributes:
        origin: the same in words, for the model card.
    """

    origin: str

    def dtype(self, parameter: Parameter, layer: int) -> np.dtype:
        """What a layer of a parameter is stored in."""

    def chunks(self, tensor: Tensor) -> Chunks:
        """The values of a tensor in its dtype, as contiguous arrays one after the other."""


def write_params(
    params: Mapping[str, Any], config: InternVLConfig, directory: str | Path, *, layout: str = "hf", **options: Any
) -> None:
    """Writes parameters as a checkpoint directory; see `write_layers`.

    Where the parameters are spread over several processes, all of them call this alike; the first one writes.

    Args:
        params: nested dictionary of arrays; padding of the vocabulary is dropped.

    Raises:
        ValueError: parameters and config do not fit.
    """
    leaves = flatten_dict(dict(params), sep="/")
    paths = {parameter.path for parameter in parameters(config, layout)}
    if leaves.keys() != paths:
        raise ValueError(f"the parameters do not fit the config: {sorted(leaves.keys() ^ paths)}")
    layers = ArrayLayers(leaves)
    if is_writer():
        with together():
            write_layers(layers, config, directory, layout=layout, **options)
    else:
        with together():
            for tensor in plan(layers, config, layout, options.get("dtype")):
                for _ in layers.chunks(tensor):
                    pass


def write_layers(
    layers: Layers,
    config: InternVLConfig,
    directory: str | Path,
    *,
    layout: str = "hf",
    dtype: str | np.dtype | None = None,
    max_shard_bytes: float = 5e9,
    copy_from: str | Path | None = None,
    identity: Mapping[str, Any] | None = None,
    report: Report = lambda done, total: None,
) -> None:
    """Writes config.json, safetensors (with an index if there are several), the files of `companions`, a model card.

    Everything is written to `directory.unfinished` and renamed at the end, so that the directory is complete or not
    there. One tensor is in memory at a time.

    Args:
        layers: where the values come from.
        config: says which parameters there are.
        directory: must not exist, or be empty.
        layout: one of `names.LAYOUTS`.
        dtype: of the tensors in the files; by default each keeps its own.
        max_shard_bytes: a larger checkpoint is split into several files.
        copy_from: a checkpoint directory whose tokenizer and processor files are copied.
        identity: of what is written, in JSON's types. An interrupted attempt with an equal one is resumed.
        report: takes the bytes written so far, and those to be written in all.

    Raises:
        FileExistsError: `directory` holds something, or another process is writing it.
        OSError: the disk has no room.
        ValueError: a dtype has no name in safetensors, or what one tensor is to hold has several.
    """
    directory = Path(directory)
    tensors = plan(layers, config, layout, dtype)
    total, shards = sum(tensor.nbytes for tensor in tensors), split(tensors, max_shard_bytes)
    with unfinished(directory, identity) as filling:
        done = sum(tensor.nbytes for name in filling.done for tensor in shards[name])
        free = shutil.disk_usage(filling.path).free
        if total - done > free:
            raise OSError(
                f"{directory}: {(total - done) / 1e9:.2f} GB are to be written, but {free / 1e9:.2f} are free"
            )

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            report(done, total)

        for name, shard in shards.items():
            if name not in filling.done:
                filling.finish(name, write_shard(filling.path / name, shard, layers.chunks, wrote))
        if len(shards) > 1:
            weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
            write_json(filling.path / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        fields = to_hf(config) if layout == "hf" else to_original(config, copy_from)
        table = next(t for t in tensors if any(p.path == "decoder/embed/table" for p in t.parameters))
        write_json(filling.path / "config.json", fields | {"torch_dtype": table.dtype.name})
        if copy_from is not None:
            write_companions(copy_from, filling.path, layout, config)
        write_card(filling.path, directory.name, layers.origin, config, layout, tensors, copy_from)
        write_checksums(filling.path, filling.done)


def plan(layers: Layers, config: InternVLConfig, layout: str, dtype: str | np.dtype | None) -> list[Tensor]:
    """Every tensor of a checkpoint in `layout`, in the order in which they are written."""
    holders: dict[str, list[tuple[Parameter, int]]] = {}
    for parameter in parameters(config, layout):
        for number, name in enumerate(parameter.tensors):
            holders.setdefault(name, []).append((parameter, number))
    return [_tensor(name, held, layers, dtype) for name, held in holders.items()]


def _tensor(name: str, held: Sequence[tuple[Parameter, int]], layers: Layers, dtype: str | np.dtype | None) -> Tensor:
    parts, (layer, *_) = zip(*held, strict=True)
    found = {np.dtype(dtype) if dtype else layers.dtype(parameter, layer) for parameter in parts}
    if len(found) > 1:
        raise ValueError(
            f"{', '.join(p.path for p in parts)} become one tensor, {name}, but have the dtypes "
            f"{', '.join(sorted(map(str, found)))}; choose one dtype for the file"
        )
    (stored,) = found
    if stored not in DTYPES.values():
        raise ValueError(f"dtype {stored} cannot be written; supported: {', '.join(map(str, DTYPES.values()))}")
    return Tensor(name, parts, layer, stored)
