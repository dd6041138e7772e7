"""Cycles of the TPU cross-entropy, by the method of benchmarks/schedule.py; no TPU takes part.

    python benchmarks/loss_kernels.py v5e v5p v6e

16,384 tokens, all with weight, against 151,674 words: loss and both gradients, at the widths of three published sizes.
Cycles are given in units of the three products that any implementation makes (logits, d_x, d_w) at the chip's peak.
"""

import sys

from bundles import SLOTS
from schedule import CHIPS, Kernel, cycles_of

T, V, WIDTHS = 16384, 151674, (896, 1536, 3584)


def make(D: int):
    """The loss with its gradients, and its operands."""
    import jax
    import jax.numpy as jnp

    from ivl3_jax.kernels.tpu_cross_entropy import cross_entropy

    def loss(x, w, labels, weights):
        return cross_entropy(x, w, labels, weights, vocab=V).sum()

    shapes = ((T, D), jnp.bfloat16), ((D, V), jnp.bfloat16), ((T,), jnp.int32), ((T,), jnp.float32)
    return jax.value_and_grad(loss, argnums=(0, 1)), [jax.ShapeDtypeStruct(*shape) for shape in shapes]


def executed(tokens: int, columns: int, inner: int) -> dict[int, float]:
    """How often the four guarded parts of a kernel run in a step: first, plain, with labels, last.

    Labels are spread evenly over the vocabulary, which is the worst case: as many pairs of blocks meet as can.
    """
    rows, steps = -(-T // tokens), -(-V // columns)
    special = (rows + steps - 1) / (rows * steps)
    return {0: 1 / inner, 1: 1 - special, 2: special, 3: 1 / inner}


def cross_entropy(chip: str, D: int) -> tuple[list[Kernel], float]:
    """The two kernels' schedules, and the cycles of the three bare products."""
    from ivl3_jax.kernels.tpu_cross_entropy import blocks_on

    tokens, columns, d_w_tokens, d_w_columns = blocks_on(chip, D, "bfloat16")
    # Per step of the outer dimension w, or x, is read once, and everything else once in all.
    traffic = {
        "cross_entropy_softmax": 2 * D * (V * -(-T // tokens) + 2 * T),
        "cross_entropy_d_w": 2 * D * (T * -(-V // d_w_columns) + 2 * V),
    }
    guards = {
        "cross_entropy_softmax": executed(tokens, columns, -(-V // columns)),
        "cross_entropy_d_w": executed(d_w_tokens, d_w_columns, -(-T // d_w_tokens)),
    }
    found = cycles_of(make, D, chip=chip, guards=guards, traffic=traffic)
    return found, 3 * 2 * T * D * V / (CHIPS[chip].teraflops * 1e3) * CHIPS[chip].ghz


if __name__ == "__main__":
    for chip in sys.argv[1:] or CHIPS:
        for D in WIDTHS:
            kernels, bare = cross_entropy(chip, D)
            print(f"{chip}, width {D}: {sum(k.cycles for k in kernels) / bare:.3f} of the three products", flush=True)
            for k in kernels:
                busy = sorted(((k.use(unit), unit) for unit in SLOTS), reverse=True)[:3]
                slots = ", ".join(f"{unit} {100 * part:.0f} %" for part, unit in busy)
                memory = f"HBM {100 * (k.memory or 0) / k.cycles:.0f} %"
                print(f"  {k.name}: {k.cycles / bare:.3f}, matrix units {100 * k.utilisation:.0f} %, {slots}, {memory}")
