"""The collectives of a compiled step: which, over which axes, how often, how much, and how long a torus takes."""

import dataclasses
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.hlo import Instruction, Module, replica_groups
from ivl3_jax.lab.places import KINDS
from ivl3_jax.lab.topology import PlacedMesh, Span
from ivl3_jax.sharding.axes import MESH_AXES

SEND = "send"  # to another slice, through the hosts
HOP = 1e-6  # seconds that a message takes to the neighbouring chip, about

Link = tuple[int, int]  # dimension of the torus, direction


@dataclass(frozen=True)
class Collective:
    """One collective of the program, all its executions.

    Attributes:
        kind: in `KINDS`, or `send` to another slice. axes: of the mesh. count: executions in a step.
        bytes: of one execution on a device: of the result, and of the operand of reductions.
        asynchronous: whether compute goes on beside it. scope: where in the traced program it comes from.
        seconds: of one execution, alone on its links.
        place: `scope` in words, see `lab.places`.
    """

    kind: str
    axes: tuple[str, ...]
    count: float
    bytes: int
    asynchronous: bool
    scope: str
    seconds: float
    place: str = ""


def kind_of(instruction: Instruction) -> str | None:
    """The kind of a collective instruction, or of the start of one; None for others, and for the end of one."""
    opcode = instruction.opcode.removesuffix("-start")
    return opcode if opcode in KINDS else None


def inside(module: Module, instruction: Instruction) -> list[Instruction]:
    """The collectives that a fusion, or what an asynchronous call wraps, has in itself."""
    found = []
    for name in instruction.called:
        for each in module.computations[name].instructions:
            if kind_of(each):
                found.append(each)
            elif each.opcode in ("fusion", "async-start", "call"):
                found.extend(inside(module, each))
    return found


class Network:
    """What the torus and the network between slices do with a collective."""

    def __init__(self, placed: PlacedMesh, calibration: Calibration) -> None:
        self.placed = placed
        chip = placed.topology.chip
        self.link = chip.link * 1e9 * calibration.ici
        self.dcn = chip.dcn * 1e9 * calibration.dcn
        self._span = lru_cache(maxsize=None)(lambda members: placed.span(list(members)))
        self._coordinates = np.array(np.unravel_index(np.arange(placed.mesh.size), placed.mesh.devices.shape)).T

    def groups(self, instruction: Instruction) -> np.ndarray:
        """The collective's groups; all devices where it names none."""
        found = replica_groups(instruction)
        return np.arange(self.placed.mesh.size)[None] if found is None or not found.size else found

    def axes(self, instruction: Instruction) -> tuple[str, ...]:
        """Mesh axes along which the members of a group differ."""
        groups = self.groups(instruction)
        where = self._coordinates[groups]  # [groups, members, axes]
        differs = (where != where[:, :1]).any((0, 1))
        return tuple(axis for axis, differ in zip(MESH_AXES, differs, strict=True) if differ)

    @property
    def between_slices(self) -> tuple[str, ...]:
        """Mesh axes that cross slices."""
        return tuple(axis for axis in MESH_AXES if self.placed.axis(axis).slices > 1)

    def span(self, instruction: Instruction) -> Span:
        """What the first group covers; the others are alike."""
        return self._span(tuple(int(n) for n in self.groups(instruction)[0]))

    def links(self, instruction: Instruction) -> tuple[Link, ...]:
        """Links that it keeps busy: both directions of every dimension, one direction for a permutation."""
        groups = self.groups(instruction)
        places = self.placed.places[groups[:, :2]][..., 1:]
        if kind_of(instruction) == "collective-permute":
            moved = places[:, 1] - places[:, 0]
            size = np.array(self.placed.topology.shape)
            moved = np.where(abs(moved) > size / 2, -moved, moved)  # the short way round
            nearest = moved[np.argmax((moved != 0).any(-1))]
            return tuple((axis, int(np.sign(step))) for axis, step in enumerate(nearest) if step)
        return tuple((ring.dimension, direction) for ring in self.span(instruction).rings for direction in (-1, 1))

    def seconds(self, instruction: Instruction, kind: str) -> float:
        """Of one execution alone on its links.

        Gathers and scatters of B bytes over n chips bring (n - 1)/n of B to each, over all the links that a chip has in
        the dimensions that the group covers: two in a closed ring, one in a line; an all-reduce is a scatter and a
        gather. Where the compiler names an algorithm of fewer dimensions, so many count.
        """
        size, members = self.message(instruction, kind), self.groups(instruction).shape[-1]
        if members == 1:
            return 0.0
        span = self.span(instruction)
        if kind == "collective-permute":
            far = span.slices > 1
            return size / (self.dcn if far else self.link) + HOP
        rings = sorted(span.rings, key=lambda ring: -ring.chips)
        named = instruction.attribute(r'"emitter":"(\d)D')
        if named:
            rings = rings[: int(named)]
        lanes = sum(2 if ring.closed else 1 for ring in rings)
        chips = members // span.slices
        # What all exchange with all goes a quarter of each ring far on average.
        passes = {"all-reduce": 2, "all-to-all": sum(ring.chips for ring in rings) / 4}.get(kind, 1)
        seconds = HOP * sum(ring.chips // 2 if ring.closed else ring.chips for ring in rings)
        if lanes:
            seconds += passes * size * (chips - 1) / chips / (lanes * self.link)
        if span.slices > 1:
            crossing = size / chips * (span.slices - 1) / span.slices
            seconds += passes * crossing / self.dcn
        return seconds

    def message(self, instruction: Instruction, kind: str) -> int:
        """Bytes of the result of a gather, of the operand of a reduction, which may be fused with a scatter."""
        sizes = [shape.bytes for shape in instruction.shapes if shape.dims]
        if not instruction.opcode.endswith("-start"):
            total = sum(sizes) or sum(shape.bytes for shape in instruction.shapes)
            # Its result is a part of its operand.
            return total * self.groups(instruction).shape[-1] if instruction.opcode == "reduce-scatter" else total
        if kind == "all-reduce":
            return sum(sizes)
        if kind == "collective-permute":
            return sizes[0] if sizes else 0
        return max(sizes, default=0)


def table(found: Iterable[Collective]) -> list[Collective]:
    """The same with executions of one kind, axes, size, manner and place together; most bytes first."""
    counts: Counter[Collective] = Counter()
    for each in found:
        counts[dataclasses.replace(each, count=0)] += each.count  # type: ignore[assignment]
    rows = [dataclasses.replace(each, count=count) for each, count in counts.items()]
    return sorted(rows, key=lambda each: -each.count * each.bytes)
