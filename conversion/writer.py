"""Parameters to a checkpoint directory: `-hf`, which transformers opens as it is, or the original layout."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from flax.traverse_util import flatten_dict

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.arrays import ArrayLayers, together
from ivl3_jax.conversion.card import write_card
from ivl3_jax.conversion.checksums import write_checksums
from ivl3_jax.conversion.companions import write_companions, write_json
from ivl3_jax.conversion.names import Parameter, parameters
from ivl3_jax.conversion.safetensors_file import DTYPES, INDEX_FILE
from ivl3_jax.conversion.shards import Chunks, Tensor, split, write_shard
from ivl3_jax.conversion.unfinished import unfinished
from ivl3_jax.hf_config import to_hf
from ivl3_jax.models.adapters import LEAVES
from ivl3_jax.original_config import to_original
from ivl3_jax.written_fields import with_dtype

Report = Callable[[str, int, int], None]


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
    params: Mapping[str, Any],
    config: InternVLConfig,
    directory: str | Path,
    *,
    layout: str = "hf",
    scales: Mapping[str, float] | None = None,
    **options: Any,
) -> None:
    """Writes parameters as a checkpoint directory; see `write_layers`.

    Where the parameters are spread over several processes, all of them call this alike; the first one writes.

    Args:
        params: nested dictionary of arrays; padding of the vocabulary is dropped.
        scales: of the adapters among them, see `models.adapters.scales`; they are merged while they are written.

    Raises:
        ValueError: parameters and config do not fit.
    """
    leaves = flatten_dict(dict(params), sep="/")
    paths = {parameter.path for parameter in parameters(config, layout)}
    paths |= {f"{path}/{name}" for path in scales or {} for name in LEAVES}
    if leaves.keys() != paths:
        raise ValueError(f"the parameters do not fit the config: {sorted(leaves.keys() ^ paths)}")
    layers = ArrayLayers(leaves, scales)
    tensors = plan(layers, config, layout, options.get("dtype"))
    together(layers, tensors, lambda: write_layers(layers, config, directory, layout=layout, **options))


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
    check: Callable[[], None] = lambda: None,
    report: Report = lambda phase, done, total: None,
    tensors: Sequence[Tensor] | None = None,
    stated: Mapping[str, Any] | None = None,
) -> None:
    """Writes config.json, safetensors (with an index if there are several), the files of `companions`, a model card.

    Whatever can be refused is refused before any weight is written. From the first file to the last the directory is
    marked as unfinished, and is not opened. A few megabytes are in memory at a time, or one fused tensor.

    Args:
        layers: where the values come from.
        config: says which parameters there are.
        directory: must not exist, or be empty, or hold an interrupted attempt.
        layout: one of `names.LAYOUTS`.
        dtype: of the tensors in the files; by default each keeps its own.
        max_shard_bytes: a larger checkpoint is split into several files.
        copy_from: a checkpoint directory whose tokenizer and processor files are copied.
        identity: of what is written, in JSON's types. An interrupted attempt with an equal one is resumed.
        check: called before the first weight is written, and may refuse by raising.
        report: takes what is being done ("checking", "writing"), the bytes done so far, and those of all.
        tensors: what the files hold, in order; by default those of `plan`.
        stated: fields of config.json beside those of `config`.

    Raises:
        FileExistsError: `directory` holds something, or another process is writing it.
        OSError: the disk has no room.
        ValueError: a dtype has no name in safetensors, what one tensor is to hold has several, or a value is beyond the
            range of `dtype`.
    """
    directory = Path(directory)
    tensors = plan(layers, config, layout, dtype) if tensors is None else tensors
    fields = (to_hf if layout == "hf" else to_original)(config, copy_from) | dict(stated or {})
    total, shards = sum(tensor.nbytes for tensor in tensors), split(tensors, max_shard_bytes)
    with unfinished(directory, identity, shards, partial(report, "checking")) as filling:
        table = next(t for t in tensors if any(p.path == "decoder/embed/table" for p in t.parameters))
        write_json(filling.path / "config.json", with_dtype(fields, table.dtype.name))
        if copy_from is not None:
            write_companions(copy_from, filling.path, layout, config)
        write_card(filling.path, filling.path.name, layers.origin, config, layout, tensors, copy_from)
        filling.mark()
        done = sum(tensor.nbytes for name in filling.done for tensor in shards[name])
        free = shutil.disk_usage(filling.path).free
        if total - done > free:
            raise OSError(
                f"{directory}: {(total - done) / 1e6:,.0f} MB are to be written, but {free / 1e6:,.0f} are free"
            )
        check()

        def wrote(count: int) -> None:
            nonlocal done
            done += count
            report("writing", done, total)

        for name, shard in shards.items():
            if name not in filling.done:
                values = partial(_in_range, layers) if dtype else layers.chunks
                filling.finish(name, write_shard(filling.path / name, shard, values, wrote))
        if len(shards) > 1:
            weight_map = {tensor.name: name for name, shard in shards.items() for tensor in shard}
            write_json(filling.path / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
        write_checksums(filling.path, filling.done)


def _in_range(layers: Layers, tensor: Tensor) -> Chunks:
    """The values of a tensor, none of which the cast to its dtype made infinite."""
    with np.errstate(over="ignore"):
        for chunk in layers.chunks(tensor):
            if not np.isfinite(chunk).all():
                raise ValueError(
                    f"tensor {tensor.name} has values that are not finite in {tensor.dtype}, whose largest is "
                    f"{float(ml_dtypes.finfo(tensor.dtype).max):.4g}; choose bfloat16 or float32"
                )
            yield chunk


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
            f"{', '.join(sorted(map(str, found)))}; choose one for the file (--dtype)"
        )
    (stored,) = found
    if stored not in DTYPES.values():
        raise ValueError(f"dtype {stored} cannot be written; supported: {', '.join(map(str, DTYPES.values()))}")
    return Tensor(name, parts, layer, stored)
