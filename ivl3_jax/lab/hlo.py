"""A reader of scheduled HLO text, as `compiled.as_text()` of XLA:TPU writes it, into dataclasses."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod

import numpy as np

from ivl3_jax.lab.frames import frames

# Bits of an element.
BITS = {
    "pred": 8,
    **{f"{sign}{bits}": bits for sign in "su" for bits in (2, 4, 8, 16, 32, 64)},
    **{f"f{bits}": bits for bits in (16, 32, 64)},
    "bf16": 16,
    "c64": 64,
    "c128": 128,
    **dict.fromkeys(("f8e4m3fn", "f8e5m2", "f8e4m3b11fnuz", "f8e4m3", "f8e3m4", "f8e8m0fnu"), 8),
    "f4e2m1fn": 4,
}
HBM, VMEM, HOST = 0, 1, 5  # memory spaces; others are small memories of the scalar unit

_SHAPE = re.compile(r"\b(token|opaque|" + "|".join(BITS) + r")\[([\d,<=]*)\](?:\{([^}]*)\})?")
_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-<>]+) \(.*\{$")
_INSTRUCTION = re.compile(r"  (ROOT )?%?([\w.\-<>]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_END = re.compile(r'\}(, execution_thread="\w+")?$')
_COMMENT = re.compile(r"/\*.*?\*/")
_OPERAND = re.compile(r"%([\w.\-<>]+)")


@dataclass(frozen=True)
class Shape:
    """An array's shape: element type, sizes, order of dimensions from the minor one, first tile, memory space."""

    dtype: str
    dims: tuple[int, ...]
    minor_to_major: tuple[int, ...] = ()
    tile: tuple[int, ...] = ()
    space: int = HBM

    @property
    def elements(self) -> int:
        return prod(self.dims)

    @property
    def bytes(self) -> int:
        """Of the values alone."""
        return self.elements * BITS.get(self.dtype, 0) // 8

    @property
    def stored(self) -> int:
        """Bytes in memory: the minor dimensions are padded to the tile."""
        sizes = [self.dims[axis] for axis in self.minor_to_major]  # minor first
        for i, tile in enumerate(reversed(self.tile)):
            if i < len(sizes):
                sizes[i] = -(-sizes[i] // tile) * tile
        return prod(sizes) * BITS.get(self.dtype, 0) // 8 if sizes else self.bytes

    @classmethod
    def all(cls, text: str) -> tuple["Shape", ...]:
        """Those of an array or, flattened, of a tuple."""
        return tuple(cls._of(*found.groups()) for found in _SHAPE.finditer(text))

    @classmethod
    def _of(cls, dtype: str, dims: str, layout: str | None) -> "Shape":
        order, _, rest = (layout or "").partition(":")
        tile, space = re.search(r"T\(([\d,*]+)\)", rest), re.search(r"S\((\d+)\)", rest)
        return cls(
            dtype,
            _numbers(dims.replace("<=", "")),
            _numbers(order),
            _numbers(tile[1].replace("*", "1")) if tile else (),
            int(space[1]) if space else HBM,
        )


@dataclass(frozen=True)
class Instruction:
    """One line of a computation.

    Attributes:
        name, opcode, shapes: the result's shapes, a tuple's flattened. operands: names in the same computation.
        literal: what stands between the parentheses. attributes: what follows them. root: the computation's result.
    """

    name: str
    opcode: str
    shapes: tuple[Shape, ...]
    operands: tuple[str, ...]
    literal: str
    attributes: str
    root: bool

    def attribute(self, pattern: str) -> str | None:
        """The first group of a pattern in the attributes."""
        found = re.search(pattern, self.attributes)
        return found[1] if found else None

    @cached_property
    def called(self) -> tuple[str, ...]:
        """Computations that it applies, without a reduction's `to_apply`."""
        several = self.attribute(r"branch_computations=\{([^}]*)\}")
        if several is not None:
            return tuple(name.strip().lstrip("%") for name in several.split(","))
        names = re.findall(
            r"\b(?:calls|body|true_computation|false_computation|called_computations?)=\{?%?([\w.\-<>]+)",
            self.attributes,
        )
        if self.opcode == "call":
            names += re.findall(r"to_apply=%?([\w.\-<>]+)", self.attributes)
        return tuple(names)

    @cached_property
    def op_name(self) -> str:
        """Where in the traced program it comes from: scopes and the operation."""
        return self.attribute(r'op_name="([^"]*)"') or ""

    @cached_property
    def frame(self) -> int:
        """The number of its stack frame, 0 without one."""
        return int(self.attribute(r"stack_frame_id=(\d+)") or 0)

    @cached_property
    def channel(self) -> str:
        """What pieces of one collective have in common."""
        return self.attribute(r"channel_id=(\d+)") or self.name

    @cached_property
    def estimated_cycles(self) -> int | None:
        """The compiler's own estimate."""
        found = self.attribute(r'"estimated_cycles":"(\d+)"')
        return int(found) if found else None

    @cached_property
    def target(self) -> str:
        """Of a custom call."""
        return self.attribute(r'custom_call_target="([^"]*)"') or ""


@dataclass(frozen=True)
class Computation:
    """Instructions in the order of the schedule."""

    name: str
    instructions: tuple[Instruction, ...]

    @cached_property
    def by_name(self) -> dict[str, Instruction]:
        return {instruction.name: instruction for instruction in self.instructions}

    @property
    def root(self) -> Instruction:
        return next(instruction for instruction in reversed(self.instructions) if instruction.root)


@dataclass(frozen=True)
class Module:
    """A scheduled module; `frames` as in `lab.frames`."""

    computations: dict[str, Computation] = field(repr=False)
    entry: Computation = field(repr=False)
    frames: Mapping[int, tuple[str, ...]] = field(default_factory=dict, repr=False)

    @classmethod
    def read(cls, text: str) -> "Module":
        """Parses a module.

        Raises:
            ValueError: it has no entry computation, or is not scheduled.
        """
        if "is_scheduled=true" not in text:
            raise ValueError("the module is not scheduled (is_scheduled=true is missing): it must be the compiled text")
        computations, entry = {}, None
        for is_entry, name, lines in _blocks(text):
            computations[name] = Computation(name, tuple(_instruction(line) for line in lines))
            entry = computations[name] if is_entry else entry
        if entry is None:
            raise ValueError("the module has no ENTRY computation")
        return cls(computations, entry, frames(text))

    def trips(self, loop: Instruction) -> int | None:
        """How often a `while` runs its body: from its annotation, or from a counter that is compared to a constant.

        None where neither can be read.
        """
        known = loop.attribute(r'known_trip_count[^\d}]*"?n"?[^\d]*(\d+)')
        if known is not None:
            return int(known)
        condition = self.computations[loop.attribute(r"condition=%?([\w.\-<>]+)") or ""]
        body = self.computations[loop.attribute(r"body=%?([\w.\-<>]+)") or ""]
        counter, limit, direction = self._compared(condition)
        if counter is None or limit is None:
            return None
        step = self._step(body, counter)
        start = self._start(loop, counter)
        span = limit - start + (1 if direction == "LE" else 0)
        return max(0, -(-span // step)) if step else None

    def _compared(self, condition: Computation) -> tuple[int | None, int | None, str]:
        """Which element of the loop's tuple is compared, with what, how; through a fusion where there is one."""
        root, within, outer = condition.root, condition, None
        if root.opcode == "fusion":
            outer, within = root, self.computations[root.called[0]]
            root = within.root
        if root.opcode != "compare":
            return None, None, ""
        counter = limit = None
        for name in root.operands:
            found = within.by_name[name]
            if outer is not None and found.opcode == "parameter":
                found = condition.by_name[outer.operands[int(found.literal)]]
            found = _through(condition, found, ("copy", "convert", "bitcast"))
            if found.opcode == "constant":
                limit = int(found.literal)
            elif found.opcode == "get-tuple-element":
                counter = int(found.attribute(r"index=(\d+)") or 0)
        return counter, limit, root.attribute(r"direction=(\w+)") or ""

    def _step(self, body: Computation, counter: int) -> int:
        """What the body adds to its counter; 1 where that cannot be read."""
        result = body.by_name.get(body.root.operands[counter])
        result = result and _through(body, result, ("copy", "bitcast"))
        if result is not None and result.opcode == "fusion":
            body = self.computations[result.called[0]]
            result = body.root
        if result is None or result.opcode != "add":
            return 1
        for name in result.operands:
            found = body.by_name[name]
            if found.opcode == "constant":
                return int(found.literal)
        return 1

    def _start(self, loop: Instruction, counter: int) -> int:
        """A loop's counter before it begins; 0 where that cannot be read."""
        for computation in self.computations.values():
            if computation.by_name.get(loop.name) is loop:
                entered = computation.by_name.get(loop.operands[0])
                if entered is None or entered.opcode != "tuple":
                    return 0
                found = _through(computation, computation.by_name[entered.operands[counter]], ("copy", "bitcast"))
                return int(found.literal) if found.opcode == "constant" and found.literal.lstrip("-").isdigit() else 0
        return 0


def replica_groups(instruction: Instruction) -> np.ndarray | None:
    """Members of each group, int [groups, members]; None where all devices are one.

    Reads lists, `{{0,1},{2,3}}`, iotas, `[2,4]<=[4,2]T(1,0)`, and meshes, `mesh['a'=2,'b'=4] {'b'}` with the members of
    a group apart along the named axes; `source_target_pairs` of a permutation count as groups of two.
    """
    text = instruction.attributes
    found = re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", text)
    if found:
        rows = [_numbers(row) for row in re.findall(r"\{([\d, ]*)\}", found[1])]
        longest = max(map(len, rows))
        return np.array([row for row in rows if len(row) == longest])
    found = re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", text)
    if found:
        sizes = _numbers(found[2])
        numbers = np.arange(prod(sizes)).reshape(sizes)
        if found[3]:
            numbers = numbers.transpose(_numbers(found[3]))
        groups = numbers.reshape(_numbers(found[1]))
        return groups.reshape(-1, groups.shape[-1])
    found = re.search(r"replica_groups=(?:@?\w+)?mesh\[([^\]]*)\](.*?) ?\{([^}]*)\}", text)
    if not found:
        return None
    axes = {name: int(size) for name, size in re.findall(r"'([^']+)'=(\d+)", found[1])}
    order = re.search(r"device_ids=\(?\[?([\d,<=\[\]T()]*)", found[2])
    numbers = _mesh_devices(tuple(axes.values()), order[1] if order else "")
    used = [list(axes).index(name) for name in re.findall(r"'([^']+)'", found[3])]
    others = [axis for axis in range(len(axes)) if axis not in used]
    members = prod(numbers.shape[axis] for axis in used)
    return numbers.transpose(others + used).reshape(-1, members)


def _mesh_devices(sizes: tuple[int, ...], order: str) -> np.ndarray:
    """Devices of a printed mesh: in order, unless an iota with a transposition is given."""
    found = re.search(r"<=\[([\d,]+)\](?:T\(([\d,]+)\))?", order)
    numbers = np.arange(prod(sizes))
    if found:
        numbers = numbers.reshape(_numbers(found[1]))
        numbers = numbers.transpose(_numbers(found[2])) if found[2] else numbers
    elif re.fullmatch(r"\d+(,\d+)+", order):
        numbers = np.array(_numbers(order))
    return numbers.reshape(sizes)


def _through(computation: Computation, found: Instruction, opcodes: tuple[str, ...]) -> Instruction:
    """What a chain of instructions that change no value begins with."""
    while found.opcode in opcodes and found.operands[0] in computation.by_name:
        found = computation.by_name[found.operands[0]]
    return found


def _blocks(text: str) -> Iterator[tuple[bool, str, list[str]]]:
    """(is entry, name, lines) of each computation; a line that is broken, as kernels' metadata may be, is joined."""
    name, entry, lines = None, False, []
    every = text.splitlines()
    for line, after in zip(every, [*every[1:], ""], strict=True):
        if name is None:
            found = _COMPUTATION.match(line)
            if found:
                name, entry, lines = found[2], bool(found[1]), []
        elif _END.match(line) and not after.strip():
            yield entry, name, lines
            name = None
        elif _INSTRUCTION.match(line):
            lines.append(line)
        elif lines:
            lines[-1] += line


def _instruction(line: str) -> Instruction:
    found = _INSTRUCTION.match(_COMMENT.sub("", line))
    assert found is not None
    root, name, shapes, opcode, rest = found.groups()
    end = _closing(rest)
    inside, attributes = rest[:end], rest[end + 1 :]
    return Instruction(name, opcode, Shape.all(shapes), tuple(_OPERAND.findall(inside)), inside, attributes, bool(root))


def _closing(text: str) -> int:
    """Where the parenthesis that is open at the beginning closes."""
    depth = 1
    for found in re.finditer(r"[()]", text):
        depth += 1 if found[0] == "(" else -1
        if not depth:
            return found.start()
    return len(text)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n.strip().isdigit())
