"""What the forward pass keeps for the backward pass, read from a scheduled module."""

from ivl3_jax.lab.hlo import HBM, Computation, Instruction, Module

_MOVES = ("copy", "copy-start", "copy-done", "slice-start", "slice-done", "bitcast", "opt-barrier")


def saved_bytes(module: Module) -> int:
    """Bytes of one chip's HBM that hold activations between the passes, padding of layouts included.

    That is what loops over layers of the forward pass hand on to loops of the backward pass, weights that both are
    given left out. What is kept outside of loops, such as the embedded tokens, is not counted, nor what is kept in the
    host's memory.
    """
    return sum(_of(module, computation) for computation in module.computations.values())


def _of(module: Module, computation: Computation) -> int:
    found = {}
    for loop in computation.instructions:
        given = computation.by_name.get(loop.operands[0]) if loop.opcode == "while" else None
        if given is None or given.opcode != "tuple" or not _backward(loop):
            continue
        for name in given.operands:
            value = _origin(computation, computation.by_name[name])
            source = computation.by_name.get(value.operands[0]) if value.opcode == "get-tuple-element" else None
            if source is not None and source.opcode == "while" and not _backward(source):
                place = _index(value)
                if value.shapes[0].space == HBM and not _carried_on(module, source, place):
                    found[source.name, place] = value.shapes[0].stored
    return sum(found.values())


def _backward(loop: Instruction) -> bool:
    return "transpose(" in loop.op_name


def _origin(computation: Computation, value: Instruction) -> Instruction:
    """What a value was before it was moved, and put into tuples and taken out again."""
    while value.operands and value.operands[0] in computation.by_name:
        before = computation.by_name[value.operands[0]]
        # A value that is fetched in slices is put together by a custom call, of which each operand has the same origin.
        if value.opcode in _MOVES or value.target == "ConcatBitcast":
            value = before
        elif value.opcode == "get-tuple-element":
            whole = _origin(computation, before)
            if whole.opcode == "tuple":
                value = computation.by_name[whole.operands[_index(value)]]
            elif before.opcode == "copy-start":
                value = before
            else:
                return value
        else:
            return value
    return value


def _carried_on(module: Module, loop: Instruction, place: int) -> bool:
    """Whether an element of a loop's tuple comes out as it went in, as weights do."""
    body = module.computations[loop.attribute(r"body=%?([\w.\-<>]+)") or ""]
    result = body.by_name[body.root.operands[place]]
    return result.opcode == "get-tuple-element" and _index(result) == place


def _index(element: Instruction) -> int:
    return int(element.attribute(r"index=(\d+)") or 0)
