"""JAX's own attention for TPUs, with the blocks that serve it best: what this project's kernels are held against."""

from collections.abc import Callable, Sequence
from itertools import product

from ivl3_jax.bench.schedule import Kernel

# The backward kernel gives every gradient, or those of keys and values while another gives those of queries.
FORWARD, BACKWARD = "splash_mha_fwd_segmented_residuals", "splash_mha_dkv_segmented_no_residuals"
BACKWARD_OF_QUERIES = "splash_mha_dq_segmented_no_residuals"

Sizes = tuple[int, int, int]  # queries, keys, keys at once


def make(mask, heads: int, sizes: Sizes, fused: bool = True) -> Callable:
    """Splash attention of one row [N, S, H]; its backward pass in one kernel, or in two."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    queries, keys, at_once = sizes
    blocks = splash_attention_kernel.BlockSizes(
        block_q=queries,
        block_kv=keys,
        block_kv_compute=at_once,
        block_q_dkv=queries,
        block_kv_dkv=keys,
        block_kv_dkv_compute=at_once,
        use_fused_bwd_kernel=fused,
        **({} if fused else {"block_q_dq": queries, "block_kv_dq": keys}),
    )
    masks = splash_attention_mask.MultiHeadMask([mask] * heads)
    return splash_attention_kernel.make_splash_mha(masks, head_shards=1, q_seq_shards=1, block_sizes=blocks)


def search(
    sizes: Sequence[int], read: Callable[[Sizes], list[Kernel]], say: Callable[[str], None]
) -> tuple[tuple[Sizes, list[Kernel]], tuple[Sizes, list[Kernel]]]:
    """The best of all blocks that compile, for the forward pass and for the backward one; `read` gives both kernels."""
    tried = []
    for blocks in product(sizes, sizes, sizes):
        if blocks[1] % blocks[2]:
            continue
        say(f"splash attention with blocks of {', '.join(map(str, blocks))}")
        try:
            tried.append((blocks, read(blocks)))
        except ValueError:  # it does not compile: too much VMEM
            continue

    def best(which: int) -> tuple[Sizes, list[Kernel]]:
        return min(tried, key=lambda found: found[1][which].cycles)

    return best(0), best(1)
