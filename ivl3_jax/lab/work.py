"""What an instruction has to do: operations of its matrix products, and bytes between HBM and the core."""

import re
from collections.abc import Collection
from math import prod

from ivl3_jax.lab.hlo import HBM, Computation, Instruction, Module, Shape

# Instructions that read only a part of their first operand, and write only a part of a buffer that they pass on.
PART_READ = ("dynamic-slice", "slice", "gather")
FREE = ("bitcast", "get-tuple-element", "tuple", "parameter", "constant", "reshape", "after-all", "opt-barrier")


def operations(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Of the matrix products in an instruction, two for a multiply-add; those of fusions inside it included."""
    if instruction.opcode == "convolution":
        return _convolution(computation, instruction)
    if instruction.opcode == "dot":
        lhs = computation.by_name[instruction.operands[0]].shapes[0]
        contracted = instruction.attribute(r"lhs_contracting_dims=\{([\d,]*)\}") or ""
        sizes = [lhs.dims[int(axis)] for axis in contracted.split(",") if axis]
        return 2.0 * instruction.shapes[0].elements * prod(sizes)
    if instruction.opcode != "fusion":
        return 0.0
    inside = module.computations[instruction.called[0]]
    return sum(operations(module, inside, each) for each in inside.instructions)


def traffic(module: Module, computation: Computation, instruction: Instruction) -> float:
    """Bytes that an instruction reads from HBM and writes to it, each operand once, as stored."""
    inside = module.computations[instruction.called[0]] if instruction.opcode == "fusion" else None
    passed_in, passed_out = _passed_on(instruction)
    total = 0.0
    for number, name in enumerate(instruction.operands):
        operand = computation.by_name.get(name)
        if operand is None or number in passed_in:
            continue
        part = _part_read(module, inside, number) if inside else _own_part(computation, instruction, number)
        total += part if part is not None and _in_hbm(operand.shapes) else _stored(operand.shapes)
    written = _part_written(module, inside, inside.root, passed_out) if inside else None
    if instruction.opcode == "dynamic-update-slice":
        written = float(computation.by_name[instruction.operands[1]].shapes[0].stored)
        total = written
    if written is None:
        written = _stored(tuple(shape for number, shape in enumerate(instruction.shapes) if number not in passed_out))
    return total + written


def _passed_on(instruction: Instruction) -> tuple[set[int], set[int]]:
    """Operands and results of a fusion that are one buffer, where it carries a piece of a collective: links fill it."""
    aliases = instruction.attribute(r"output_to_operand_aliasing=\{(.*?\)\})")
    if aliases is None or "async_collective" not in "".join(instruction.called):
        return set(), set()
    pairs = re.findall(r"\{(\d+)\}: \((\d+), \{\}\)", aliases)
    return {int(operand) for _, operand in pairs}, {int(result) for result, _ in pairs}


def _in_hbm(shapes: tuple[Shape, ...]) -> bool:
    return any(shape.space == HBM for shape in shapes)


def _stored(shapes: tuple[Shape, ...]) -> float:
    return float(sum(shape.stored for shape in shapes if shape.space == HBM))


def _own_part(computation: Computation, instruction: Instruction, number: int) -> float | None:
    if instruction.opcode in PART_READ and number == 0:
        return float(instruction.shapes[0].stored)
    return None


def _part_read(module: Module, inside: Computation, number: int) -> float | None:
    """Bytes that a fusion reads of an operand which it only slices, or updates in place; None for all of it."""
    parameter = next(
        (each for each in inside.instructions if each.opcode == "parameter" and each.literal == str(number)), None
    )
    if parameter is None:
        return None
    names, read = {parameter.name}, 0.0
    for each in inside.instructions:
        used = [i for i, name in enumerate(each.operands) if name in names]
        if not used:
            continue
        if each.opcode in ("bitcast", "reshape"):
            names.add(each.name)
        elif each.opcode in PART_READ and used == [0]:
            read += each.shapes[0].stored
        elif each.opcode == "dynamic-update-slice" and used == [0]:
            continue
        elif each.opcode == "fusion":
            parts = [_part_read(module, module.computations[each.called[0]], i) for i in used]
            if None in parts:
                return None
            read += sum(part for part in parts if part is not None)
        else:
            return None
    return read


def _part_written(module: Module, inside: Computation, root: Instruction, but: Collection[int] = ()) -> float | None:
    """Bytes that a fusion writes where it updates buffers in place; None where it writes all of its result."""
    if root.opcode == "tuple":
        written = [inside.by_name[name] for number, name in enumerate(root.operands) if number not in but]
        parts = [(each, _part_written(module, inside, each)) for each in written]
        return sum(_stored(each.shapes) if part is None else part for each, part in parts)
    while root.opcode in ("bitcast", "reshape"):
        root = inside.by_name[root.operands[0]]
    if root.opcode == "fusion":
        nested = module.computations[root.called[0]]
        return _part_written(module, nested, nested.root)
    if root.opcode == "dynamic-update-slice":
        return float(inside.by_name[root.operands[1]].shapes[0].stored)
    return None


def _convolution(computation: Computation, instruction: Instruction) -> float:
    """As XLA lowers products to: every pair of an output position and a kernel position that meets an input counts."""
    lhs, rhs = (computation.by_name[name].shapes[0].dims for name in instruction.operands[:2])
    labels = re.split("_|->", instruction.attribute(r"dim_labels=([\w?>\-]+)") or "")
    out, window = instruction.shapes[0].dims, instruction.attribute(r"window=\{([^}]*)\}") or ""

    def setting(name: str, default: str) -> list[str]:
        found = re.search(rf"\b{name}=(\S+)", window)
        return found[1].split("x") if found else []

    pads, strides = setting("pad", "0_0"), setting("stride", "1")
    lhs_dilate, rhs_dilate = setting("lhs_dilate", "1"), setting("rhs_dilate", "1")
    meetings = 1
    for axis in range(len(out) - 2):
        label = str(axis)
        size, kernel = lhs[labels[0].index(label)], rhs[labels[1].index(label)]
        low = int(pads[axis].split("_")[0]) if pads else 0
        stride = int(strides[axis]) if strides else 1
        spread, dilation = (int(each[axis]) if each else 1 for each in (lhs_dilate, rhs_dilate))
        extent = (size - 1) * spread + 1
        meetings *= sum(
            0 <= (at := o * stride + k * dilation - low) < extent and at % spread == 0
            for o in range(out[labels[2].index(label)])
            for k in range(kernel)
        )
    batch, features = out[labels[2].index("b")], out[labels[2].index("f")]
    return 2.0 * batch * features * rhs[labels[1].index("i")] * meetings
