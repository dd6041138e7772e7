"""The ViT's attention by the schedule: this project's kernel, and splash attention on padded rows."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ivl3_jax.bench import splash
from ivl3_jax.bench.problems import Attention
from ivl3_jax.bench.schedule import Kernel, cycles_of
from ivl3_jax.kernels.attention import attention

# What a search over the divisors of 1,152 positions found best, forward and backward.
BEST: dict[tuple[str, int], tuple[splash.Sizes, splash.Sizes]] = {
    ("v5e", 64): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v5e", 128): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v5p", 64): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v5p", 128): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v6e", 64): ((1152, 1152, 384), (1152, 1152, 384)),
    ("v6e", 128): ((1152, 1152, 384), (1152, 1152, 384)),
}


def both_passes(attend, *operands):
    """The result, and the gradients of all but the last operand, which is the result's."""
    out, pull = jax.vjp(attend, *operands[:-1])
    return out, pull(operands[-1])


def padded(problem: Attention) -> int:
    """Positions of a row that splash attention takes."""
    return -(-problem.S // 128) * 128


def our_program(problem: Attention):
    """Value and gradients of what the seam chooses."""
    layout = PartitionSpec(None, None, None, None)

    def attend(*flat):
        whole = (x.reshape(problem.B, problem.S, problem.N, problem.H) for x in flat)
        return attention(*whole, causal=False, layout=layout, kv_layout=layout).reshape(flat[0].shape)

    operand = jax.ShapeDtypeStruct((problem.B, problem.S, problem.N * problem.H), jnp.bfloat16)
    return lambda *x: both_passes(attend, *x), [operand] * 4


def splash_program(problem: Attention, sizes: splash.Sizes):
    """Already padded and transposed to [B, N, S, H], scaled, padding masked by segment ids, fused backward."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    S = padded(problem)
    run = splash.make(masks.FullMask((S, S)), problem.N, sizes)

    def attend(q, k, v, ids, d_out):
        def rows(q, k, v):
            return jax.vmap(lambda q, k, v, ids: run(q, k, v, segment_ids=kernel.SegmentIds(ids, ids)))(q, k, v, ids)

        return both_passes(rows, q, k, v, d_out)

    operand = jax.ShapeDtypeStruct((problem.B, problem.N, S, problem.H), jnp.bfloat16)
    return attend, [operand] * 3 + [jax.ShapeDtypeStruct((problem.B, S), jnp.int32), operand]


def ours(problem: Attention, chip: str) -> tuple[list[Kernel], str]:
    """The forward and the backward kernel."""
    return cycles_of(our_program, problem, chip=chip), ""


def theirs(problem: Attention, chip: str, search: bool, say: Callable[[str], None]) -> tuple[list[Kernel], str]:
    """The forward and the backward kernel, each with the block sizes of its own that are best."""
    S = padded(problem)

    def read(sizes: splash.Sizes) -> list[Kernel]:
        queries, keys, _ = sizes
        # Accumulators are zeroed and written out once for all blocks of the axis that is summed over.
        rounds = {splash.FORWARD: keys / S, splash.BACKWARD: queries / S}
        guards = {name: {0: part, 2: part} if part < 1 else {} for name, part in rounds.items()}
        operands = {
            # q and the result once, k and v once for each block of queries, of which the grid has the keys innermost.
            splash.FORWARD: (2 + 2 * S / queries if keys < S else 4),
            splash.BACKWARD: 7 + (3 * (S / keys - 1) if queries < S else 0),
        }
        traffic = {name: n * problem.B * problem.N * S * problem.H * 2 for name, n in operands.items()}
        return cycles_of(splash_program, problem, sizes, chip=chip, guards=guards, traffic=traffic)

    if search:
        forward, backward = splash.search((384, S), read, say)
    else:
        forward, backward = ((sizes, read(sizes)) for sizes in BEST[chip, problem.H])
    words = "; ".join(", ".join(map(str, sizes)) for sizes, _ in (forward, backward))
    return [forward[1][0], backward[1][1]], words
