"""TPU slices by name, the mesh of a plan over them, and where each mesh axis lies."""

import dataclasses
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Any, NamedTuple, Self

import numpy as np
from jax.experimental import topologies
from jax.sharding import Mesh

from ivl3_jax.chips import CHIPS, Chip
from ivl3_jax.sharding.axes import MESH_AXES
from ivl3_jax.sharding.plan import ShardingPlan


@dataclass(frozen=True)
class Topology:
    """Equal slices of one generation's chips; a device is a chip.

    Attributes:
        chip: the generation. shape: chips along each dimension of a slice's torus. slices: how many.
    """

    chip: Chip
    shape: tuple[int, ...]
    slices: int = 1

    @classmethod
    def read(cls, text: str, slices: int = 1) -> Self:
        """A topology by its name, such as `v5p:8x8x16` or `v5e:16x16`.

        Raises:
            ValueError: the chip is unknown, or there is no slice of that shape; the message says what there is.
        """
        generation, _, dims = text.partition(":")
        if generation not in CHIPS:
            raise ValueError(f"topology {text!r}: no chip {generation!r}; known: {', '.join(CHIPS)}")
        chip = CHIPS[generation]
        if not re.fullmatch(r"\d+(x\d+)*", dims) or dims.count("x") + 1 != chip.axes:
            raise ValueError(
                f"topology {text!r}: a slice of {chip.name} has {chip.axes} dimensions, as in {_examples(chip)}"
            )
        shape = tuple(map(int, dims.split("x")))
        whole = all(size % 2 == 0 for size in shape[:2]) and (chip.axes == 2 or shape[2] == 1 or shape[2] % 2 == 0)
        if not whole and math.prod(shape) > 1 or 0 in shape:
            raise ValueError(
                f"topology {text!r}: hosts have 2 x 2 chips, so that the dimensions must be even (a third one may be "
                f"1), as in {_examples(chip)}"
            )
        longest = 16 if chip.axes == 2 else None
        if math.prod(shape) > chip.largest or (longest and max(shape) > longest):
            limit = f"{longest} x {longest}" if longest else f"{chip.largest} chips"
            raise ValueError(
                f"topology {text!r}: {math.prod(shape)} chips; the largest slice of {chip.name} has {limit}"
            )
        if slices < 1:
            raise ValueError(f"topology {text!r}: slices is {slices}; it must be at least 1")
        return cls(chip, shape, slices)

    @property
    def name(self) -> str:
        return f"{self.chip.name}:{'x'.join(map(str, self.shape))}" + (f" x {self.slices}" if self.slices > 1 else "")

    @property
    def chips(self) -> int:
        """Of all slices."""
        return math.prod(self.shape) * self.slices

    @property
    def wraps(self) -> tuple[bool, ...]:
        """Which dimensions have links that close the ring."""
        return self.chip.wraps(self.shape)

    def devices(self) -> list[Any]:
        """The compiler's devices of the topology, slice after slice."""
        return list(_devices(self))

    def make_mesh(self, plan: ShardingPlan) -> "PlacedMesh":
        """The mesh of a plan over all chips.

        Raises:
            ValueError: the plan needs another number of chips, or its `data` is no multiple of the slices.
        """
        if plan.devices != self.chips:
            sizes = ", ".join(f"{axis} {n}" for axis, n in zip(MESH_AXES, plan.mesh_shape, strict=True) if n > 1)
            raise ValueError(
                f"plan {plan.name!r} needs {plan.devices} chips ({sizes or 'one'}); {self.name} has {self.chips}: the "
                f"sizes of its mesh must multiply to {self.chips}"
            )
        return PlacedMesh(self, plan.make_mesh(self.devices()))


class Ring(NamedTuple):
    """Chips along one dimension of the torus: which, how many, and whether their links close to a ring."""

    dimension: int
    chips: int
    closed: bool


@dataclass(frozen=True)
class Span:
    """What a set of chips covers: dimensions of the torus that it extends over, and how many slices."""

    rings: tuple[Ring, ...]
    slices: int


@dataclass(frozen=True)
class PlacedMesh:
    """A mesh over a topology."""

    topology: Topology
    mesh: Mesh

    @property
    def places(self) -> np.ndarray:
        """Slice and coordinates of each position of the mesh in row-major order, int [chips, 1 + axes]."""
        axes = self.topology.chip.axes
        return np.array([(getattr(d, "slice_index", 0), *d.coords[:axes]) for d in self.mesh.devices.flat])

    def span(self, members: np.ndarray | list[int]) -> Span:
        """What chips, by their number in the mesh's row-major order, cover."""
        places = self.places[np.asarray(members)]
        counts = [len(np.unique(column)) for column in places.T]
        wraps, shape = self.topology.wraps, self.topology.shape
        rings = [
            Ring(axis, count, wraps[axis] and count == shape[axis])
            for axis, count in enumerate(counts[1:])
            if count > 1
        ]
        return Span(tuple(rings), counts[0])

    def axis(self, name: str) -> Span:
        """What one mesh axis covers."""
        numbers = np.arange(self.mesh.size).reshape(self.mesh.devices.shape)
        line = np.moveaxis(numbers, MESH_AXES.index(name), 0).reshape(numbers.shape[MESH_AXES.index(name)], -1)
        return self.span(line[:, 0])


@cache
def _devices(topology: Topology) -> tuple[Any, ...]:
    chip, name = topology.chip, dataclasses.replace(topology, slices=1).name
    more: dict[str, Any] = {"chip_config_name": "megacore"} if chip.name == "v4" else {}
    if topology.slices > 1:
        more["num_slices"] = topology.slices
    if math.prod(topology.shape) == 1:
        more["chips_per_host_bounds"] = (1, 1, 1)
    # Without `wrap` the compiler believes in a torus without wraparound links.
    wrap = (*topology.wraps, False)[:3]
    return tuple(topologies.get_topology_desc(platform="tpu", topology_name=name, wrap=wrap, **more).devices)


def _examples(chip: Chip) -> str:
    shapes = ("2x2", "4x4", "8x16", "16x16") if chip.axes == 2 else ("2x2x1", "4x4x4", "4x4x8", "8x8x16")
    return ", ".join(f"{chip.name}:{shape}" for shape in shapes)
