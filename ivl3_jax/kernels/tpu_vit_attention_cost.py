"""What the kernels of `tpu_vit_attention` take: a step of the grid, one tile's 128 lanes, is the same everywhere.

Of tiles of 448 pixels, with 1,025 positions, as InternVL3 has them. Of 257 positions, one block of queries with nothing
to work on meanwhile, the models have up to 46% too few cycles or 20% too many.
"""

from typing import NamedTuple

from ivl3_jax.kernels.tpu_tiling import LANES, dividing, vit_blocks
from ivl3_jax.kernels.tpu_vit_attention_backward import ROWS
from ivl3_jax.kernels.tpu_work import REGISTER, Call, Work


class Constants(NamedTuple):
    """Cycles of one pass that the products do not hide, fitted to the schedule's of 513 and 1,025 positions.

    Attributes:
        step: of a step of the grid. query: of a query in it. head: of a head in it. score: of a register of its scores.
    """

    step: float
    query: float
    head: float
    score: float


FORWARD = {
    "v5": Constants(step=40, query=0.53, head=0, score=0),
    "v6": Constants(step=60, query=0, head=250, score=0.4),
}
BACKWARD = {
    "v5": Constants(step=250, query=0, head=0, score=0),
    "v6": Constants(step=90, query=0, head=600, score=1.3),
}


def forward(call: Call) -> Work:
    """Two products of each head: of two heads in 128 lanes each takes what one of 128 does.

    Without statistics among the results, which no gradient needs, nothing tells the size of a head: it counts as 128.
    """
    ((_, S, _),) = call.shapes({0: 3}, {})
    call.expect_bfloat16(0)
    heads = call.shapes({}, {1: 4})[0][2] if len(call.results) > 1 else 1
    P, queries = S - 1, S - 1 + ROWS
    # The sums of exponentials come beside the values, in what would else be idle.
    wide = 2 * LANES if vit_blocks(LANES // heads, call.chip).sum_by_product else LANES
    matrix = heads * (call.on.product(queries, LANES, P) + call.on.product(queries, P, wide))
    statistics = heads * (len(call.results) - 1)
    return _work(call, 2, 4 + statistics * 2 / LANES, heads, matrix, FORWARD[call.generation])


def backward(call: Call) -> Work:
    """Five products of each head; only scores and their gradients are made with all 128 lanes."""
    (_, S, _), (_, _, heads, _) = call.shapes({0: 3, 5: 4}, {})
    call.expect_bfloat16(0)
    P, H = S - 1, LANES // heads
    block = dividing(vit_blocks(H, call.chip).backward, P)
    product = call.on.product
    # Scores and their gradients, the left-over key's too; the sums for v and k, and for q; and those for that key.
    of_block = 2 * product(P + ROWS, LANES, block) + 2 * product(H, block, P) + product(H, P, block)
    of_block += 2 * product(ROWS, block, LANES)
    matrix = heads * (P // block) * of_block
    return _work(call, 5, 8 + heads * 2 / LANES, heads, matrix, BACKWARD[call.generation])


def _work(call: Call, products: int, moved: float, heads: int, matrix: float, constants: Constants) -> Work:
    """`moved`: elements of bfloat16 for each of an operand's. heads: that share 128 lanes. matrix: cycles of a step."""
    B, S, width = call.operands[0][1]
    head = constants.head + constants.score * (S - 1 + ROWS) * (S - 1) / REGISTER
    step = constants.step + constants.query * S + matrix + heads * head
    # A chip's cores share the steps.
    steps = -(-(B * width // LANES) // call.on.cores)
    return Work(2 * products * B * S * S * width, 2 * moved * B * S * width, steps * step)
