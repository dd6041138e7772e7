"""The decoder's attention by the schedule: this project's kernel for packed rows, and splash attention.

Our kernels take a grid step for each pair of blocks of the row at hand, and the parts of a step that some pairs leave
out count as often as the row's list has them; the bound of the grid, which the program learns when it runs, is a
constant here. Splash attention gets the causal mask and the segment ids: it skips what the mask, known when it is
built, makes empty, and masks the scores of other segments.
"""

from collections.abc import Callable
from functools import partial
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from ivl3_jax.bench import splash
from ivl3_jax.bench.bundles import Program, first_with_products
from ivl3_jax.bench.problems import Attention
from ivl3_jax.bench.schedule import Kernel, cycles_of
from ivl3_jax.bench.vit import both_passes
from ivl3_jax.kernels import packed_blocks, packed_schedule, packed_tiles, tpu_packed_attention

# What a search over 512, 1,024 and 2,048 found best, forward and backward.
BEST: dict[str, tuple[splash.Sizes, splash.Sizes]] = {
    "v5e": ((1024, 2048, 512), (1024, 1024, 1024)),
    "v5p": ((1024, 2048, 512), (1024, 1024, 1024)),
    "v6e": ((1024, 2048, 512), (2048, 2048, 1024)),
}
OURS = ("packed_attention_forward", "packed_attention_backward")


def our_program(problem: Attention, counts: dict):
    """Value and gradients; `counts`: how many pairs there are, by blocks."""
    listed, B, S, H = packed_schedule.pairs, problem.B, problem.S, problem.H

    def pairs(*arguments, blocks, causal):
        return listed(*arguments, blocks=blocks, causal=causal)._replace(count=counts[blocks])

    def run(q, k, v, ids, d_out):
        def attend(*flat):
            q, k, v = (x.reshape(B, S, -1, H) for x in flat)
            return tpu_packed_attention.attention(q, k, v, ids, ids, causal=True).reshape(flat[0].shape)

        with mock.patch.object(packed_schedule, "pairs", pairs):
            return both_passes(attend, q, k, v, d_out)

    q, kv = (jax.ShapeDtypeStruct((B, S, n * H), jnp.bfloat16) for n in (problem.N, problem.K))
    return run, [q, kv, kv, jax.ShapeDtypeStruct((B, S), jnp.int32), q]


def ours(problem: Attention, chip: str) -> tuple[list[Kernel], str]:
    """The forward and the backward kernel on the problem's row."""
    wide = problem.N // problem.K * packed_tiles.together(problem.K, problem.H) * problem.H
    both = [
        blocks(problem.S, problem.S, wide, jnp.bfloat16, chip)
        for blocks in (packed_blocks.forward_blocks, packed_blocks.backward_blocks)
    ]
    counts, guards, traffic = {}, {}, {}
    for name, blocks in zip(OURS, both, strict=True):
        counts[blocks], parts, traffic[name] = _executed(problem, blocks, backward=name == OURS[1])
        guards[name] = partial(_placed, parts, 2 if name == OURS[1] else 1)
    kernels = cycles_of(our_program, problem, counts, chip=chip, guards=guards, traffic=traffic)
    words = "; ".join(f"{', '.join(map(str, blocks))}: {counts[blocks]} pairs" for blocks in both)
    return sorted(kernels, key=lambda kernel: OURS.index(kernel.name)), words


def _placed(parts: list[float], full: int, program: Program) -> dict[int, float]:
    """Parts by the places of their guards: the compiler puts guards of its own before those of the kernel.

    `full`: the place among the parts of pairs without a mask, the first that make products.
    """
    return dict(enumerate(parts, first_with_products(program) - full))


def _executed(problem: Attention, blocks, backward: bool) -> tuple[int, list[float], float]:
    """Of one kv head: how many pairs there are, the parts of them that reach each guard; and the bytes moved in all."""
    S, H = problem.B * problem.S, problem.H
    ids = jnp.asarray(problem.ids)
    of_queries = packed_schedule.marked_ids(ids, ids.shape, blocks.q, packed_schedule.PADDED_QUERY)
    of_keys = packed_schedule.marked_ids(ids, ids.shape, blocks.kv, packed_schedule.PADDED_KEY)
    pairs = packed_schedule.pairs(of_queries, of_keys, 0, blocks=blocks, causal=True)
    count = int(pairs.count)
    flags = np.asarray(pairs.keys)[:count]
    full = flags & packed_schedule.FULL != 0
    pieces = (blocks.q // blocks.q_piece) * (blocks.kv // blocks.kv_piece)
    reached = [flags & packed_schedule.FIRST_OF_QUERIES != 0]
    reached += [flags & packed_schedule.FIRST_OF_KEYS != 0] if backward else []
    reached += [full, *(~full & (flags & packed_schedule.FIRST_PIECE << bit != 0) for bit in range(pieces))]
    reached += [flags & packed_schedule.LAST_OF_QUERIES != 0]
    reached += [flags & packed_schedule.LAST_OF_KEYS != 0] if backward else []
    queries, keys = S * problem.N // problem.K * H * 2, blocks.kv * H * 2
    # q and the result, and backward also d_out and d_q, once; k and v for each pair, their gradients once.
    moved = (4 if backward else 2) * queries + 2 * keys * count + (2 * S * H * 2 if backward else 0)
    return count, [float(part.mean()) for part in reached], float(problem.K * moved)


def splash_program(problem: Attention, sizes: splash.Sizes, fused: bool = True):
    """Already transposed to [N, S, H] and scaled; `fused`: the backward pass is one kernel."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    S = problem.S
    attend = splash.make(masks.CausalMask((S, S)), problem.N, sizes, fused)

    def run(q, k, v, ids, d_out):
        return both_passes(lambda *x: attend(*x, segment_ids=kernel.SegmentIds(ids, ids)), q, k, v, d_out)

    q, kv = (jax.ShapeDtypeStruct((n, S, problem.H), jnp.bfloat16) for n in (problem.N, problem.K))
    return run, [q, kv, kv, jax.ShapeDtypeStruct((S,), jnp.int32), q]


def splash_kernels(problem: Attention, chip: str, sizes: splash.Sizes, fused: bool = True) -> list[Kernel]:
    """Splash attention's kernels with blocks of these sizes."""
    queries, keys, _ = sizes
    nq, nk = problem.S // queries, problem.S // keys
    blocks = packed_schedule.Blocks(queries, keys, queries, keys)
    run = packed_schedule.most_pairs(1, nq, nk, blocks, True, 0) / (nq * nk)

    def guards(each: int) -> dict[int, float]:
        return {0: 1 / each, 1: run, 2: 1 / each}  # sums are zeroed, steps taken, and sums written out

    # k's and v's gradients are summed over all queries of a kv head.
    by_kernel = {splash.FORWARD: guards(nk), splash.BACKWARD: guards(nq * problem.N // problem.K)}
    if not fused:
        by_kernel[splash.BACKWARD_OF_QUERIES] = guards(nk)
    return cycles_of(splash_program, problem, sizes, fused, chip=chip, guards=by_kernel)


def theirs(problem: Attention, chip: str, search: bool, say: Callable[[str], None]) -> tuple[list[Kernel], str]:
    """The forward and the backward kernel, each with the block sizes of its own that are best."""

    def read(sizes: splash.Sizes) -> list[Kernel]:
        return splash_kernels(problem, chip, sizes)

    if search or chip not in BEST:
        forward, backward = splash.search((512, 1024, 2048), read, say)
    else:
        forward, backward = ((sizes, read(sizes)) for sizes in BEST[chip])
    words = "; ".join(", ".join(map(str, sizes)) for sizes, _ in (forward, backward))
    return [forward[1][0], backward[1][1]], words
