"""The ViT's attention for `kernels.py`: this project's kernel, and splash attention on rows padded to 1,152."""

from itertools import product

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from schedule import Kernel, cycles_of

from ivl3_jax.kernels.attention import attention

TILES, POSITIONS, PADDED = 13, 1025, 1152
# Queries, keys, keys at once: what a search over the divisors of 1,152 found best, forward and backward.
BEST = {
    ("v5e", 64): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v5e", 128): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v5p", 64): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v5p", 128): ((1152, 1152, 1152), (1152, 1152, 1152)),
    ("v6e", 64): ((1152, 1152, 384), (1152, 1152, 384)),
    ("v6e", 128): ((1152, 1152, 384), (1152, 1152, 384)),
}
FORWARD, BACKWARD = "splash_mha_fwd_segmented_residuals", "splash_mha_dkv_segmented_no_residuals"


def both_passes(attend, *operands):
    out, pull = jax.vjp(attend, *operands[:-1])
    return out, pull(operands[-1])


def our_program(heads: int, head_dim: int):
    layout = PartitionSpec(None, None, None, None)

    def attend(*flat):
        whole = (x.reshape(TILES, POSITIONS, heads, head_dim) for x in flat)
        return attention(*whole, causal=False, layout=layout, kv_layout=layout).reshape(flat[0].shape)

    operand = jax.ShapeDtypeStruct((TILES, POSITIONS, heads * head_dim), jnp.bfloat16)
    return lambda *x: both_passes(attend, *x), [operand] * 4


def splash_program(heads: int, head_dim: int, queries: int, keys: int, at_once: int):
    """Already padded and transposed to [B, N, S, H], scaled, padding masked by segment ids, fused backward."""
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
    mask = masks.MultiHeadMask([masks.FullMask((PADDED, PADDED))] * heads)
    run = kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=sizes)

    def attend(q, k, v, ids, d_out):
        def rows(q, k, v):
            return jax.vmap(lambda q, k, v, ids: run(q, k, v, segment_ids=kernel.SegmentIds(ids, ids)))(q, k, v, ids)

        return both_passes(rows, q, k, v, d_out)

    operand = jax.ShapeDtypeStruct((TILES, heads, PADDED, head_dim), jnp.bfloat16)
    return attend, [operand] * 3 + [jax.ShapeDtypeStruct((TILES, PADDED), jnp.int32), operand]


def ours(heads: int, head_dim: int):
    def read(chip: str, search: bool) -> tuple[list[Kernel], str]:
        return cycles_of(our_program, heads, head_dim, chip=chip), ""

    return read


def splash(heads: int, head_dim: int):
    """The forward and the backward kernel, each with the block sizes of its own that are best."""

    def read(chip: str, search: bool) -> tuple[list[Kernel], str]:
        if search:
            sizes = [s for s in product((384, 1152), (384, 1152), (384, 1152)) if s[1] >= s[2]]
            tried = [(s, read_at(chip, *s)) for s in sizes]
            forward, backward = (min(tried, key=lambda t, i=i: t[1][i].cycles) for i in (0, 1))
        else:
            forward, backward = ((s, read_at(chip, *s)) for s in BEST[chip, head_dim])
        blocks = ", ".join(map(str, forward[0])) + "; " + ", ".join(map(str, backward[0]))
        return [forward[1][0], backward[1][1]], blocks

    def read_at(chip: str, queries: int, keys: int, at_once: int) -> list[Kernel]:
        # Accumulators are zeroed and written out once for all blocks of the axis that is summed over.
        rounds = {FORWARD: keys / PADDED, BACKWARD: queries / PADDED}
        guards = {name: {0: part, 2: part} if part < 1 else {} for name, part in rounds.items()}
        operands = {
            # q and the result once, k and v once for each block of queries, of which the grid has the keys innermost.
            FORWARD: (2 + 2 * PADDED / queries if keys < PADDED else 4),
            BACKWARD: 7 + (3 * (PADDED / keys - 1) if queries < PADDED else 0),
        }
        traffic = {name: n * TILES * heads * PADDED * head_dim * 2 for name, n in operands.items()}
        return cycles_of(
            splash_program, heads, head_dim, queries, keys, at_once, chip=chip, guards=guards, traffic=traffic
        )

    return read
