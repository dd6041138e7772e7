"""What the kernels of `tpu_cross_entropy` take, where every token has weight: products fill nearly all of the time."""

from typing import NamedTuple

from ivl3_jax.kernels.tpu_cross_entropy import LANES, blocks_on
from ivl3_jax.kernels.tpu_work import REGISTER, Call, Work


class Constants(NamedTuple):
    """Cycles of one kernel that the products do not hide, fitted to the schedule's.

    Attributes:
        step: of a step of the grid. logit: of a register of logits. label: more of it in blocks that hold a label.
        ends: of a register of the float32 sums in VMEM, zeroed at the begin and written out at the end.
    """

    step: float
    logit: float
    label: float
    ends: float


SOFTMAX = {
    "v5": Constants(step=175, logit=0, label=1.2, ends=5.2),
    "v6": Constants(step=175, logit=2.1, label=2.2, ends=2.7),
}
D_W = {
    "v5": Constants(step=145, logit=0, label=0, ends=1.5),
    "v6": Constants(step=180, logit=0.3, label=0.2, ends=0.9),
}


def softmax(call: Call) -> Work:
    """Logits, and with gradient the mean of the columns: attention over the vocabulary."""
    T, D, V = _sizes(call)
    sizes = blocks_on(call.chip, D, "bfloat16")
    tokens, columns = min(sizes.tokens, T), min(sizes.columns, -(-V // LANES) * LANES)
    rows, steps = -(-T // tokens), -(-V // columns)
    gradients, constants = len(call.results) - 3, SOFTMAX[call.generation]
    mean, sums = (call.on.product(tokens, columns, D), tokens * D / REGISTER) if gradients else (0, 0)
    registers = tokens * columns / REGISTER
    body = constants.step + call.on.product(tokens, D, columns) + mean + constants.logit * registers
    # The column of the label is a product too.
    row = steps * body + _labelled(rows, steps) * steps * (mean + constants.label * registers) + constants.ends * sums
    moved = 2 * D * (V * rows + T * (1 + gradients))
    return Work((4 if gradients else 2) * T * D * V, moved, -(-rows // call.on.cores) * row)


def d_w(call: Call) -> Work:
    """Logits once more, and the gradient of w."""
    T, D, V = _sizes(call)
    sizes = blocks_on(call.chip, D, "bfloat16")
    tokens, columns = min(sizes.d_w_tokens, T), min(sizes.d_w_columns, -(-V // LANES) * LANES)
    rows, steps = -(-T // tokens), -(-V // columns)
    constants, registers = D_W[call.generation], tokens * columns / REGISTER
    body = constants.step + call.on.product(tokens, D, columns) + call.on.product(D, tokens, columns)
    body += (constants.logit + constants.label * _labelled(rows, steps)) * registers
    column = rows * body + constants.ends * columns * D / REGISTER
    return Work(4 * T * D * V, 2 * D * (T * steps + 2 * V), -(-steps // call.on.cores) * column)


def _labelled(rows: int, steps: int) -> float:
    """The part of the pairs of blocks that hold a label: labels in order, spread so that as many do as can."""
    return (rows + steps - 1) / (rows * steps)


def _sizes(call: Call) -> tuple[int, int, int]:
    """Tokens, width, and the columns of the vocabulary that the device has."""
    (T, D), (_, V) = call.shapes({4: 2, 5: 2}, {})
    call.expect_bfloat16(4)
    return T, D, V
