"""The tensors of adapters in PyTorch layouts: lora_A [r, in] and lora_B [out, r] of each linear layer.

Where a linear layer of theirs is several of ours (`qkv`, `wqkv`), theirs has the A of ours one below the other and the
B of ours as the blocks of one matrix, so that B A is the same; its r is the sum of ours.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.arrays import ArrayLayers, follow
from ivl3_jax.conversion.layout import Layout
from ivl3_jax.conversion.names import Parameter, bias_pattern, parameters
from ivl3_jax.conversion.shards import Chunks, Tensor
from ivl3_jax.models.adapters import can_have_adapter


@dataclass(frozen=True)
class LinearLayer:
    """A linear layer of a checkpoint layout that can have an adapter.

    Attributes:
        name: of the module. kernels: those of ours that its weight holds. layer: which of their stacked layers.
    """

    name: str
    kernels: tuple[Parameter, ...]
    layer: int

    @property
    def paths(self) -> tuple[str, ...]:
        """Of our linear layers."""
        return tuple(kernel.path.removesuffix("/kernel") for kernel in self.kernels)

    @property
    def pattern(self) -> str:
        """A regular expression of its name and of that of the same module in every layer."""
        return re.escape(self.name).replace(rf"\.{self.layer}\.", r"\.\d+\.")


def linear_layers(config: InternVLConfig, layout: str) -> list[LinearLayer]:
    """All of them, in one of `names.LAYOUTS`."""
    held: dict[str, list[tuple[Parameter, int]]] = {}
    for parameter in parameters(config, layout):
        if parameter.path.endswith("/kernel") and can_have_adapter(parameter.path.removesuffix("/kernel")):
            for layer, tensor in enumerate(parameter.tensors):
                held.setdefault(tensor.removesuffix(".weight"), []).append((parameter, layer))
    return [LinearLayer(name, tuple(kernel for kernel, _ in of), of[0][1]) for name, of in held.items()]


def half_layouts(kernel: Layout, rank: int) -> tuple[Layout, Layout]:
    """How lora_A and lora_B of a weight, or of that part of one which is a kernel of ours, hold our A and B."""
    both = kernel.pattern, bias_pattern(kernel.pattern)
    (theirs, ours), (rows, outputs) = (map(str.strip, pattern.split("->")) for pattern in both)
    inputs, our_inputs, sizes = theirs.removeprefix(rows), ours.removesuffix(outputs), {**kernel.sizes, "rank": rank}
    return Layout(f"rank {inputs} -> {our_inputs} rank", sizes), Layout(f"{rows} rank -> rank {outputs}", sizes)


@dataclass(frozen=True)
class Half(Tensor):
    """lora_A or lora_B of a linear layer of theirs.

    Attributes:
        leaf: `lora_a` or `lora_b`. ranks: of the adapter of each of `parameters`, 0 where one has none.
        rank: of the whole; beyond the sum of `ranks` it is filled up with zeros.
    """

    leaf: str
    ranks: tuple[int, ...]
    rank: int

    @property
    def shape(self) -> tuple[int, ...]:
        rows, columns = self.parameters[0].layout.their_shape
        return (self.rank, columns) if self.leaf == "lora_a" else (rows, self.rank)


def halves(
    layer: LinearLayer, name: str, leaves: Mapping[str, Any], dtype: np.dtype | None = None, least: int = 0
) -> tuple[Half, Half]:
    """lora_A and lora_B of a linear layer.

    Args:
        name: in which `{}` becomes `A` and `B`.
        leaves: our parameters by path, of which some of `layer.paths` have adapters.
        dtype: of the tensors, by default that of ours. least: their rank.
    """
    found = [leaves.get(f"{path}/lora_a") for path in layer.paths]
    ranks = tuple(0 if a is None else a.shape[-1] for a in found)
    stored = dtype or np.result_type(*(np.dtype(a.dtype) for a in found if a is not None), np.float32)
    shared = layer.kernels, layer.layer, np.dtype(stored)
    rank = max(sum(ranks), least)
    return Half(name.format("A"), *shared, "lora_a", ranks, rank), Half(
        name.format("B"), *shared, "lora_b", ranks, rank
    )


class AdapterLayers(ArrayLayers):
    """`ArrayLayers` for tensors of which some are halves of adapters."""

    origin = "a model in memory, its adapters beside the weights"

    def chunks(self, tensor: Tensor) -> Chunks:
        if not isinstance(tensor, Half):
            yield from super().chunks(tensor)
            return
        follow()
        values, at = np.zeros(tensor.shape, tensor.dtype), 0
        for kernel, rank in zip(tensor.parameters, tensor.ranks, strict=True):
            if rank:
                path = f"{kernel.path.removesuffix('/kernel')}/{tensor.leaf}"
                ours = self.on_host(path, kernel.stacked, tensor.layer)
                down, up = half_layouts(kernel.layout, rank)
                if tensor.leaf == "lora_a":
                    down.put(ours, values[at : at + rank])
                else:
                    block = np.zeros(up.their_shape, tensor.dtype)
                    up.put(ours, block)
                    values[:, at : at + rank] = block
                at += rank
        yield values
