"""The cross-entropy by the schedule, beside the three products that any implementation makes, at the chip's peak."""

import jax
import jax.numpy as jnp

from ivl3_jax.bench.problems import Loss
from ivl3_jax.bench.schedule import Kernel, cycles_of
from ivl3_jax.kernels.tpu_chips import CHIPS
from ivl3_jax.kernels.tpu_cross_entropy import blocks_on, cross_entropy


def our_program(problem: Loss):
    """The loss of tokens that all have weight, and both gradients."""

    def loss(x, w, labels, weights):
        return cross_entropy(x, w, labels, weights, vocab=problem.V).sum()

    T, D, V = problem.T, problem.D, problem.V
    shapes = ((T, D), jnp.bfloat16), ((D, V), jnp.bfloat16), ((T,), jnp.int32), ((T,), jnp.float32)
    return jax.value_and_grad(loss, argnums=(0, 1)), [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def ours(problem: Loss, chip: str) -> tuple[list[Kernel], str]:
    """The kernel of the loss and of x's gradient, and that of w's."""
    T, D, V = problem.T, problem.D, problem.V
    tokens, columns, d_w_tokens, d_w_columns = blocks = blocks_on(chip, D, "bfloat16")
    # Per step of the outer dimension w, or x, is read once, and everything else once in all.
    traffic = {
        "cross_entropy_softmax": 2 * D * (V * -(-T // tokens) + 2 * T),
        "cross_entropy_d_w": 2 * D * (T * -(-V // d_w_columns) + 2 * V),
    }
    guards = {
        "cross_entropy_softmax": _executed(problem, tokens, columns, -(-V // columns)),
        "cross_entropy_d_w": _executed(problem, d_w_tokens, d_w_columns, -(-T // d_w_tokens)),
    }
    return cycles_of(our_program, problem, chip=chip, guards=guards, traffic=traffic), ", ".join(map(str, blocks))


def _executed(problem: Loss, tokens: int, columns: int, inner: int) -> dict[int, float]:
    """How often the four guarded parts of a kernel run in a step: first, plain, with labels or the last columns, last.

    Labels are spread evenly over the vocabulary, which is the worst case: as many pairs of blocks meet as can.
    """
    rows, steps = -(-problem.T // tokens), -(-problem.V // columns)
    ends = rows - 1 if problem.V % columns else 0
    special = (rows + steps - 1 + ends) / (rows * steps)
    return {0: 1 / inner, 1: 1 - special, 2: special, 3: 1 / inner}


def bare(problem: Loss, chip: str) -> float:
    """Cycles of the three products at the chip's peak."""
    return problem.flops(backward=True) / (CHIPS[chip].teraflops * 1e3) * CHIPS[chip].ghz
