"""Adapters on disk: a directory as peft writes it, and a whole checkpoint as InternVL's own fine-tuning writes it.

The third way, merging them, is `checkpoint.save`.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from ivl3_jax.conversion.adapter_config import FILE, adapter_fields
from ivl3_jax.conversion.adapter_tensors import AdapterLayers, LinearLayer, halves, linear_layers
from ivl3_jax.conversion.arrays import together
from ivl3_jax.conversion.checkpoint import check_options
from ivl3_jax.conversion.companions import write_json
from ivl3_jax.conversion.lora import INTERNVL_SCALE
from ivl3_jax.conversion.shards import Tensor, write_shard
from ivl3_jax.conversion.unfinished import unfinished
from ivl3_jax.conversion.writer import plan, write_layers
from ivl3_jax.hf_config import ADAPTERS
from ivl3_jax.models.adapters import scales
from ivl3_jax.models.model import Model

# The parts of an original model that InternVL's fine-tuning wraps, and the field of config.json that has their rank.
WRAPPED = {"decoder": ("language_model", "use_llm_lora"), "vision": ("vision_model", "use_backbone_lora")}
INSIDE = "base_model.model"


def save_adapter(model: Model, directory: str | Path, *, layout: str = "hf") -> None:
    """Writes the adapters alone, as peft does: adapter_model.safetensors and adapter_config.json.

    `peft.PeftModel.from_pretrained(base, directory)` opens them, with the base opened by transformers (layout `hf`) or
    by the authors' remote code (`original`); `load_adapter` opens both. They keep their dtype.

    Where the parameters are spread over several processes, all of them call this alike; the first one writes.

    Raises:
        FileExistsError: `directory` exists and is not empty.
        ValueError: an unknown layout, a model without adapters, or adapters that the layout has no form for.
    """
    check_options(layout)
    factors, leaves = _adapters(model)
    used = [layer for layer in linear_layers(model.config, layout) if factors.keys() & set(layer.paths)]
    pairs = [halves(layer, f"{INSIDE}.{layer.name}.lora_{{}}.weight", leaves) for layer in used]
    modules = {layer.pattern: (a.rank, _scale(layer, factors)) for layer, (a, _) in zip(used, pairs, strict=True)}
    layers, tensors = AdapterLayers(leaves), [half for pair in pairs for half in pair]

    def write() -> None:
        with unfinished(Path(directory).absolute(), None, ADAPTERS[:1]) as filling:
            filling.mark()
            write_shard(filling.path / ADAPTERS[0], tensors, layers.chunks, lambda count: None)
            write_json(filling.path / FILE, adapter_fields(modules, model.source))

    together(layers, tensors, write)


def save_unmerged(model: Model, directory: str | Path, *, dtype: str | None = None) -> None:
    """Writes a checkpoint in the original layout with adapters beside the weights, as InternVL's fine-tuning does.

    There the decoder and the ViT are wrapped by peft, each with one rank for all linear layers of its blocks, and
    alpha = 2 r. An adapter of smaller rank is filled up with zeros, and so are those that the model does not have;
    adapters of the projector, which is not wrapped, are merged. The authors' training code goes on from such a
    directory; here it is opened as if merged.

    Args:
        dtype: of every tensor, by default its own: adapters are in at least float32.

    Raises:
        FileExistsError: `directory` exists and is not empty.
        ValueError: an unknown dtype, a model without adapters, or another alpha.
    """
    check_options("original", dtype)
    factors, leaves = _adapters(model)
    wrapped = {component for component in WRAPPED if any(path.startswith(f"{component}/") for path in factors)}
    beside = {path: scale for path, scale in factors.items() if path.split("/")[0] in wrapped}
    for path, scale in beside.items():
        if scale != INTERNVL_SCALE:
            raise ValueError(
                f"the adapter of {path} has alpha / r = {scale:g}; InternVL's fine-tuning knows alpha = 2 r only: "
                "write it with save_adapter, or merged with save"
            )
    modules = {layer.name: layer for layer in linear_layers(model.config, "original")}
    sums = {
        name: sum(leaves[f"{path}/lora_a"].shape[-1] for path in layer.paths if path in beside)
        for name, layer in modules.items()
    }
    ranks = {c: max(rank for name, rank in sums.items() if modules[name].paths[0].startswith(c)) for c in wrapped}
    stored = np.dtype(dtype) if dtype else None
    merging = {path: scale for path, scale in factors.items() if path not in beside}
    layers = AdapterLayers(leaves, merging)

    def unmerged(tensor: Tensor) -> Iterator[Tensor]:
        component = tensor.parameters[0].path.split("/")[0]
        if component not in wrapped:
            yield tensor
            return
        part, _ = WRAPPED[component]
        module, leaf = tensor.name.rsplit(".", 1)
        inside = module.replace(f"{part}.", f"{part}.{INSIDE}.", 1)
        if module not in modules:
            yield dataclasses.replace(tensor, name=f"{inside}.{leaf}")
            return
        yield dataclasses.replace(tensor, name=f"{inside}.base_layer.{leaf}")
        if leaf == "weight":
            name = f"{inside}.lora_{{}}.default.weight"
            yield from halves(modules[module], name, leaves, stored, ranks[component])

    planned = plan(layers, model.config, "original", dtype)
    tensors = [tensor for base in planned for tensor in unmerged(base)]
    write = partial(
        write_layers,
        layers,
        model.config,
        Path(directory).absolute(),
        layout="original",
        dtype=dtype,
        copy_from=model.source,
        tensors=tensors,
        stated={WRAPPED[component][1]: rank for component, rank in ranks.items()},
    )
    together(layers, tensors, write)


def _adapters(model: Model) -> tuple[dict[str, float], Mapping[str, Any]]:
    """What `scales` says, and all parameters by path."""
    factors = scales(model.graphdef, model.params)
    if not factors:
        raise ValueError("the model has no adapters to write; save writes it as it is")
    return factors, flatten_dict(model.params, sep="/")


def _scale(layer: LinearLayer, factors: Mapping[str, float]) -> float:
    found = {path: factors[path] for path in layer.paths if path in factors}
    if len(set(found.values())) > 1:
        each = ", ".join(f"{path}: {scale:g}" for path, scale in found.items())
        raise ValueError(f"{layer.name} holds adapters of different alpha / r ({each}); use layout 'hf'")
    return next(iter(found.values()))
