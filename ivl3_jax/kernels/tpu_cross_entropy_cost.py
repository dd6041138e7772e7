"""What the kernels of `tpu_cross_entropy` take, where every token has weight: products fill nearly all of the time."""

from typing import NamedTuple

from ivl3_jax.kernels.tpu_cross_entropy import LANES, blocks_on
from ivl3_jax.kernels.tpu_work import REGISTER, Call, Work


class Constants(NamedTuple):
    """Cycles of one kernel that the products do not hide, fitted to the schedule's.

    Attributes:
        step: of a step of the grid. logit: of a register of logits. ends: of a register of the float32 sums in VMEM,
            zeroed at the begin and written out at the end. sums: of one of them in every step.
    """

    step: float
    logit: float
    ends: float
    sums: float


SOFTMAX = {"v5": Constants(step=175, logit=0, ends=5.2, sums=0), "v6": Constants(step=200, logit=1, ends=5, sums=0.5)}
D_W = {"v5": Constants(step=145, logit=0, ends=1.5, sums=0), "v6": Constants(step=200, logit=1, ends=1.5, sums=0.5)}


def softmax(call: Call) -> Work:
    """Logits, and with gradient the mean of the columns: attention over the vocabulary."""
    T, D, V = _sizes(call)
    sizes = blocks_on(call.chip, D, "bfloat16")
    tokens, columns = min(sizes.tokens, T), min(sizes.columns, -(-V // LANES) * LANES)
    rows, steps = -(-T // tokens), -(-V // columns)
    gradients = len(call.results) - 3
    logits, mean = call.on.product(tokens, D, columns), call.on.product(tokens, columns, D)
    body, labelled = (logits + mean, logits + 2 * mean) if gradients else (logits, logits)
    # Labels in order, spread over the vocabulary: as many blocks of tokens and columns share one as can.
    special = min(rows + steps - 1, rows * steps)
    constants, registers = SOFTMAX[call.generation], tokens * D / REGISTER if gradients else 0
    matrix = steps * body + special / rows * (labelled - body)
    row = matrix + steps * _step(constants, tokens * columns / REGISTER, registers) + constants.ends * registers
    moved = 2 * D * (V * rows + T * (1 + gradients))
    return Work((4 if gradients else 2) * T * D * V, moved, -(-rows // call.on.cores) * row)


def d_w(call: Call) -> Work:
    """Logits once more, and the gradient of w."""
    T, D, V = _sizes(call)
    sizes = blocks_on(call.chip, D, "bfloat16")
    tokens, columns = min(sizes.d_w_tokens, T), min(sizes.d_w_columns, -(-V // LANES) * LANES)
    rows, steps = -(-T // tokens), -(-V // columns)
    body = call.on.product(tokens, D, columns) + call.on.product(D, tokens, columns)
    constants, registers = D_W[call.generation], columns * D / REGISTER
    column = rows * (body + _step(constants, tokens * columns / REGISTER, registers)) + constants.ends * registers
    return Work(4 * T * D * V, 2 * D * (T * steps + 2 * V), -(-steps // call.on.cores) * column)


def _sizes(call: Call) -> tuple[int, int, int]:
    """Tokens, width, and the columns of the vocabulary that the device has."""
    (T, D), (_, V) = call.shapes({4: 2, 5: 2}, {})
    call.expect_bfloat16(4)
    return T, D, V


def _step(constants: Constants, logits: float, sums: float) -> float:
    return constants.step + constants.logit * logits + constants.sums * sums
