"""The decoder's attention for `kernels.py`: this project's kernel for packed rows, and splash attention.

    python benchmarks/packed_kernels.py CHIP ... [--search]

One row of 16,384 positions, 28 query and 4 kv heads of 128. Our kernels take a grid step for each pair of blocks of the
row at hand, and the parts of a step that some pairs leave out count as often as the row's list has them; the bound of
the grid, which the program learns when it runs, is a constant here. Splash attention gets the causal mask and the
segment ids: it skips what the mask, known when it is built, makes empty, and masks the scores of other segments.
"""

import sys
from itertools import product
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from measuring import table
from packing_speed import KINDS
from packing_speed import ours as rows_of
from schedule import Kernel, cycles_of

from ivl3_jax.kernels import packed_blocks, packed_schedule, tpu_packed_attention

S, N, K, H = 16384, 28, 4, 128
SEGMENTS = 20
# Queries, keys, keys at once, forward and backward: v5p's are the best of 512 and 1024; v6e's wait for a search.
BEST = {
    "v5p": ((1024, 1024, 512), (1024, 1024, 1024)),
    "v6e": ((1024, 1024, 512), (1024, 1024, 512)),
}
# The guards that the compiler puts before those of our kernels: its own copies, and the step itself.
BEFORE = {"v5p": (0, 0), "v6e": (4, 3)}
OURS = ("packed_attention_forward", "packed_attention_backward")
SPLASH = ("splash_mha_fwd_segmented_residuals", "splash_mha_dkv_segmented_no_residuals")


def packed_row() -> np.ndarray:
    """int32 [1, S]: the first row of 20 segments that the packer makes of 2,000 samples of text, images and videos."""
    rows = rows_of(KINDS["all three"](np.random.default_rng(0), 2000), 20)
    lengths = [item.tokens for item in next(row for row in rows if len(row) == SEGMENTS)]
    ids = np.repeat(np.arange(1, SEGMENTS + 1, dtype=np.int32), lengths)
    return np.pad(ids, (0, S - len(ids)))[None]


def one_segment() -> np.ndarray:
    """int32 [1, S]: a row in which splash attention skips all that can be skipped."""
    return np.ones((1, S), np.int32)


def our_program(counts: dict):
    """Value and gradients; `counts`: how many pairs there are, by blocks."""
    listed = packed_schedule.pairs

    def pairs(*arguments, blocks, causal):
        return listed(*arguments, blocks=blocks, causal=causal)._replace(count=counts[blocks])

    def run(q, k, v, ids, d_out):
        def attend(*flat):
            heads = (x.reshape(1, S, -1, H) for x in flat)
            return tpu_packed_attention.attention(*heads, ids, ids, causal=True).reshape(flat[0].shape)

        with mock.patch.object(packed_schedule, "pairs", pairs):
            out, pull = jax.vjp(attend, q, k, v)
            return out, pull(d_out)

    q, kv = (jax.ShapeDtypeStruct((1, S, n * H), jnp.bfloat16) for n in (N, K))
    return run, [q, kv, kv, jax.ShapeDtypeStruct((1, S), jnp.int32), q]


def ours(make_ids):
    """The forward and the backward kernel on the row that `make_ids` gives."""

    def read(chip: str, search: bool) -> tuple[list[Kernel], str]:
        ids = make_ids()
        # The table's entries as they are: no shape here needs smaller ones.
        both = packed_blocks.TABLE["v6" if chip == "v6e" else "v5"]
        counts, guards, traffic = {}, {}, {}
        for name, blocks, before in zip(OURS, both, BEFORE[chip], strict=True):
            counts[blocks], parts, traffic[name] = _executed(ids, blocks, backward=name == OURS[1])
            guards[name] = dict(enumerate(parts, before))
        kernels = cycles_of(our_program, counts, chip=chip, guards=guards, traffic=traffic)
        words = "; ".join(f"{', '.join(map(str, blocks))}: {counts[blocks]} pairs" for blocks in both)
        return sorted(kernels, key=lambda kernel: OURS.index(kernel.name)), words

    return read


def _executed(ids: np.ndarray, blocks, backward: bool) -> tuple[int, list[float], float]:
    """Of one kv head: how many pairs there are, the parts of them that reach each guard; and the bytes moved in all."""
    marked = [packed_schedule.marked_ids(jnp.asarray(ids), ids.shape, 1, padded) for padded in (-1, 0)]
    pairs = packed_schedule.pairs(*marked, 0, blocks=blocks, causal=True)
    count = int(pairs.count)
    flags = np.asarray(pairs.keys)[:count]
    full = flags & packed_schedule.FULL != 0
    pieces = (blocks.q // blocks.q_piece) * (blocks.kv // blocks.kv_piece)
    reached = [flags & packed_schedule.FIRST_OF_QUERIES != 0]
    reached += [flags & packed_schedule.FIRST_OF_KEYS != 0] if backward else []
    reached += [full, *(~full & (flags & packed_schedule.FIRST_PIECE << bit != 0) for bit in range(pieces))]
    reached += [flags & packed_schedule.LAST_OF_QUERIES != 0]
    reached += [flags & packed_schedule.LAST_OF_KEYS != 0] if backward else []
    of_queries, of_keys = S * N // K * H * 2, blocks.kv * H * 2
    # q and the result, and backward also d_out and d_q, once; k and v for each pair, their gradients once.
    moved = (4 if backward else 2) * of_queries + 2 * of_keys * count + (2 * S * H * 2 if backward else 0)
    return count, [part.mean() for part in reached], float(K * moved)


def splash_program(queries: int, keys: int, at_once: int):
    """Already transposed to [N, S, H] and scaled; fused backward."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as kernel
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks

    sizes = kernel.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=at_once,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=at_once,
        use_fused_bwd_kernel=True,
    )
    mask = masks.MultiHeadMask([masks.CausalMask((S, S))] * N)
    attend = kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)

    def run(q, k, v, ids, d_out):
        out, pull = jax.vjp(lambda *x: attend(*x, segment_ids=kernel.SegmentIds(ids, ids)), q, k, v)
        return out, pull(d_out)

    q, kv = (jax.ShapeDtypeStruct((n, S, H), jnp.bfloat16) for n in (N, K))
    return run, [q, kv, kv, jax.ShapeDtypeStruct((S,), jnp.int32), q]


def splash(chip: str, search: bool) -> tuple[list[Kernel], str]:
    """The forward and the backward kernel, each with the block sizes of its own that are best."""
    if search:
        tried = []
        for sizes in product((512, 1024, 2048), (512, 1024, 2048), (512, 1024)):
            if sizes[1] >= sizes[2]:
                try:
                    tried.append((sizes, _splash_at(chip, *sizes)))
                except ValueError as refusal:
                    print(chip, sizes, str(refusal)[:100])
                    continue
                print(chip, sizes, *(f"{kernel.cycles:,.0f}" for kernel in tried[-1][1]), flush=True)
        forward, backward = (min(tried, key=lambda t, i=i: t[1][i].cycles) for i in (0, 1))
    else:
        forward, backward = ((sizes, _splash_at(chip, *sizes)) for sizes in BEST[chip])
    words = "; ".join(", ".join(map(str, sizes)) for sizes, _ in (forward, backward))
    return [forward[1][0], backward[1][1]], words


def _splash_at(chip: str, queries: int, keys: int, at_once: int) -> list[Kernel]:
    nq, nk = S // queries, S // keys
    blocks = packed_schedule.Blocks(queries, keys, queries, keys)
    run = packed_schedule.most_pairs(1, nq, nk, blocks, True, 0) / (nq * nk)
    # Sums are zeroed, steps taken, and sums written out; of k's and v's gradients for all query heads of a kv head.
    guards = {
        SPLASH[0]: {0: 1 / nk, 1: run, 2: 1 / nk},
        SPLASH[1]: {0: 1 / (nq * N // K), 1: run, 2: 1 / (nq * N // K)},
    }
    return cycles_of(splash_program, queries, keys, at_once, chip=chip, guards=guards)


if __name__ == "__main__":
    chips = [argument for argument in sys.argv[1:] if argument != "--search"] or list(BEST)

    def lines():
        for chip in chips:
            theirs, their_blocks = splash(chip, "--search" in sys.argv)
            against = sum(kernel.cycles for kernel in theirs)
            for name, make_ids in (("20 segments", packed_row), ("1 segment", one_segment)):
                mine, blocks = ours(make_ids)(chip, False)
                cycles = sum(kernel.cycles for kernel in mine)
                each = [f"{k.cycles:,.0f} ({100 * k.utilisation:.0f} %)" for k in (*mine, *theirs)]
                yield [chip, name, *each, blocks, their_blocks, f"{cycles / against:.2f}"]

    head = ["chip", "row", "ours, forward", "backward", "splash, forward", "backward", "blocks", "splash's", "ratio"]
    table(head, lines())
