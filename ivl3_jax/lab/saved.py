"""What the forward pass keeps for the backward pass, read from a scheduled module."""

from ivl3_jax.lab.hlo import HBM, Computation, Instruction, Module

_MOVES = ("copy", "copy-start", "copy-done", "slice-start", "slice-done", "bitcast", "opt-barrier")


def saved_bytes(module: Module) -> int:
    """Bytes of one chip's HBM that hold activations between the passes, padding of layouts included.

    That is what loops of the forward pass make and loops of the backward pass are given. Not counted is what is kept
    outside of loops, such as the embedded tokens, or in the host's memory, and what the backward pass of a pipeline
    computes again for itself.
    """
    return sum(_of(module, computation) for computation in module.computations.values())


def _of(module: Module, computation: Computation) -> int:
    found = {}
    for loop in computation.instructions:
        if loop.opcode != "while" or not _backward(module, loop):
            continue
        given = _origin(module, computation, computation.by_name[loop.operands[0]])
        for name in given.operands if given.opcode == "tuple" else ():
            value = _origin(module, computation, computation.by_name[name])
            maker, place = _taken_from(computation, value), _index(value)
            if maker is None or maker.opcode != "while" or _backward(module, maker):
                continue
            if value.shapes[0].space == HBM and not _carried_on(module, maker, place):
                found[maker.name, place] = value.shapes[0].stored
    return sum(found.values())


def _backward(module: Module, loop: Instruction) -> bool:
    """Whether a loop is of the backward pass, by its own scope or, where offloading took that away, by what it runs."""
    if loop.op_name:
        return "transpose(" in loop.op_name
    return any("transpose(" in each.op_name for each in _body(module, loop).instructions)


def _origin(module: Module, computation: Computation, value: Instruction) -> Instruction:
    """What a value was before it was moved, put into tuples and taken out of them, and carried on by loops."""
    while value.operands and value.operands[0] in computation.by_name:
        before = computation.by_name[value.operands[0]]
        # A value that is fetched in slices is put together by a custom call, of which each operand has the same origin.
        if value.opcode in _MOVES or value.target == "ConcatBitcast":
            value = before
        elif value.opcode == "get-tuple-element":
            whole = before
            if before.opcode == "while" and _carried_on(module, before, _index(value)):
                whole = computation.by_name[before.operands[0]]
            whole = _origin(module, computation, whole)
            if whole.opcode != "tuple":
                return value
            value = computation.by_name[whole.operands[_index(value)]]
        else:
            return value
    return value


def _carried_on(module: Module, loop: Instruction, place: int) -> bool:
    """Whether an element of a loop's tuple comes out as it went in, as weights do."""
    body = _body(module, loop)
    if body.root.opcode != "tuple":
        return False
    result = _origin(module, body, body.by_name[body.root.operands[place]])
    maker = _taken_from(body, result)
    return maker is not None and maker.opcode == "parameter" and _index(result) == place


def _body(module: Module, loop: Instruction) -> Computation:
    return module.computations[loop.attribute(r"body=%?([\w.\-<>]+)") or ""]


def _taken_from(computation: Computation, value: Instruction) -> Instruction | None:
    """The tuple, parameter or loop of which a value is an element; None if it is of none."""
    return computation.by_name.get(value.operands[0]) if value.opcode == "get-tuple-element" else None


def _index(element: Instruction) -> int:
    return int(element.attribute(r"index=(\d+)") or 0)
