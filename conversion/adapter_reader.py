"""A peft adapter directory onto a model in hand: to go on training it, or to merge it."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.adapter_config import FILE, read_adapter_config
from ivl3_jax.conversion.adapter_tensors import half_layouts, linear_layers
from ivl3_jax.conversion.lora import ADAPTER, WRAPPED
from ivl3_jax.conversion.names import LAYOUTS, Parameter, canonical
from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory
from ivl3_jax.hf_config import ADAPTERS
from ivl3_jax.models.adapters import LEAVES, Adapter, attach
from ivl3_jax.models.model import Model


class _Pair(NamedTuple):
    """The adapter of one linear layer of theirs: A [r, in], B [out, r], alpha / r, and its name in the file."""

    a: np.ndarray
    b: np.ndarray
    scale: float
    name: str


class _Ours(NamedTuple):
    """That of one of ours: A [layers, *inputs, r], B [layers, r, *outputs], without `layers` where not stacked."""

    a: np.ndarray
    b: np.ndarray
    scale: float


def load_adapter(model: Model, directory: str | Path) -> Model:
    """The model with the adapters of a directory, not merged.

    A layer of a stack that has none there gets zeros, which do not train; smaller ranks among the layers are filled up
    with zeros. Of a linear layer that is several of ours (`qkv`, `wqkv`) each gets the whole A and its rows of B; what
    is zero there in every layer, as `save_adapter` leaves it, is taken out again.

    Args:
        directory: with adapter_config.json and adapter_model.safetensors, by peft or `save_adapter`, in either layout.

    Raises:
        FileNotFoundError: one of the two is missing.
        ValueError: they are broken, more than A and B of linear layers, or do not fit the model; or the model has
            adapters already.
    """
    found = _read(Path(directory), model.config)
    adapters = {path: Adapter(ours.a.shape[-1], ours.scale) for path, ours in found.items()}
    graphdef, params = attach(model.graphdef, model.params, adapters, model.plan, model.mesh)
    leaves = flatten_dict(params, sep="/")
    for path, ours in found.items():
        for name, values in zip(LEAVES, ours, strict=False):
            leaf = leaves[f"{path}/{name}"]
            values = values.astype(leaf.dtype)
            leaves[f"{path}/{name}"] = jax.make_array_from_callback(leaf.shape, leaf.sharding, values.__getitem__)
    return dataclasses.replace(model, graphdef=graphdef, params=unflatten_dict(leaves, sep="/"))


def _read(directory: Path, config: InternVLConfig) -> dict[str, _Ours]:
    """The adapters of a directory by the paths of our linear layers."""
    pairs = _pairs(directory)
    by_layout = {layout: {canonical(name, layout): pair for name, pair in pairs.items()} for layout in LAYOUTS}
    known = {layout: {layer.name: layer for layer in linear_layers(config, layout)} for layout in LAYOUTS}
    strange = {layout: [name for name in by_layout[layout] if name not in known[layout]] for layout in LAYOUTS}
    layout = min(LAYOUTS, key=lambda layout: len(strange[layout]))
    if strange[layout]:
        raise ValueError(
            f"{directory / ADAPTERS[0]}: there is an adapter of {strange[layout][0]}; those of linear layers of this "
            f"model's blocks and of its projector are taken, as of {next(iter(known[layout]))}"
        )
    held: dict[str, tuple[Parameter, dict[int, _Pair]]] = {}
    for name, pair in by_layout[layout].items():
        layer = known[layout][name]
        shape = layer.kernels[0].layout.their_shape
        if (pair.b.shape[0], pair.a.shape[1]) != shape:
            raise ValueError(
                f"{directory / ADAPTERS[0]}: {pair.name} has lora_A {list(pair.a.shape)} and lora_B "
                f"{list(pair.b.shape)}, [r, in] and [out, r] of another weight than this model's {list(shape)}"
            )
        for path, kernel in zip(layer.paths, layer.kernels, strict=True):
            held.setdefault(path, (kernel, {}))[1][layer.layer] = pair
    found = {path: _ours(path, kernel, of, directory) for path, (kernel, of) in held.items()}
    beside = {path: layer.paths for layer in known[layout].values() for path in layer.paths}
    idle = {path for path, ours in found.items() if not ours.b.any()}
    return {path: ours for path, ours in found.items() if path not in idle or idle.issuperset(beside[path])}


def _pairs(directory: Path) -> dict[str, _Pair]:
    """Every adapter by the name of the linear layer in the model that peft wrapped."""
    config = read_adapter_config(directory)
    if config is None:
        raise FileNotFoundError(f"{directory / FILE} does not exist; an adapter has it beside {ADAPTERS[0]}")
    if not (directory / ADAPTERS[0]).is_file():
        raise FileNotFoundError(f"{directory / ADAPTERS[0]} does not exist; pickles, as {ADAPTERS[1]}, are not opened")
    halves: dict[str, dict[str, np.ndarray]] = {}
    with SafetensorsDirectory(directory, ADAPTERS[0]) as file:
        for name, info in file.tensors.items():
            match = ADAPTER.match(name)
            if match is None or len(info.shape) != 2:
                raise ValueError(f"{info.file}: {name} {list(info.shape)} is no lora_A or lora_B of a linear layer")
            module, half, _ = match.groups()
            rows, columns = info.shape
            values = file.read(name, columns, range(rows), range(columns))
            halves.setdefault(WRAPPED.split(module)[-1], {})[half] = values
    found = {}
    for module, parts in halves.items():
        if len(parts) < 2 or parts["A"].shape[0] != parts["B"].shape[1]:
            shapes = ", ".join(f"lora_{half} {list(values.shape)}" for half, values in sorted(parts.items()))
            raise ValueError(f"{directory / ADAPTERS[0]}: {module} has {shapes}; it must have [r, in] and [out, r]")
        found[module] = _Pair(parts["A"], parts["B"], config.scale(module, len(parts["A"])), module)
    return found


def _ours(path: str, kernel: Parameter, pairs: Mapping[int, _Pair], directory: Path) -> _Ours:
    """One of our linear layers' adapters from those of its layers."""
    factors = {pair.scale: pair.name for pair in pairs.values()}
    if len(factors) > 1:
        each = ", ".join(f"{scale:g} in {name}" for scale, name in factors.items())
        raise ValueError(f"{directory}: alpha / r of {path} is {each}; it must be the same in all layers")
    rank = max(len(pair.a) for pair in pairs.values())
    down, up = half_layouts(kernel.layout, rank)
    dtype = np.result_type(np.float32, *(half.dtype for pair in pairs.values() for half in (pair.a, pair.b)))
    layers = len(kernel.tensors)
    a, b = np.zeros((layers, *down.our_shape), dtype), np.zeros((layers, *up.our_shape), dtype)
    for layer, pair in pairs.items():
        fill = ((0, rank - len(pair.a)), (0, 0))
        a[layer] = down.to_ours(np.pad(pair.a.astype(dtype), fill))
        b[layer] = up.to_ours(np.pad(pair.b.astype(dtype), fill[::-1]))
    if kernel.layout.shared:
        used = b.any(axis=(0, *range(2, b.ndim)))
        if used.any():
            a, b = a[..., used], b[:, used]
    return _Ours(a, b, *factors) if kernel.stacked else _Ours(a[0], b[0], *factors)
