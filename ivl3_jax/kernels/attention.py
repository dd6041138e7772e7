"""The attention seam: callers say what, the platform decides how."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ivl3_jax.kernels import chunked_attention, oracle
from ivl3_jax.sharding.local import in_use, on_shards

IMPLEMENTATIONS: dict[str, Callable] = {"oracle": oracle.attention, "chunked": chunked_attention.attention}
DEFAULT = "chunked"


def attention(
    q: jax.Array,
    k: jax.Array,
    v: jax.Array,
    *,
    causal: bool,
    layout: PartitionSpec,
    kv_layout: PartitionSpec,
    segment_ids: jax.Array | None = None,
    implementation: str | None = None,
) -> jax.Array:
    """Softmax attention of every row within itself.

    Args:
        q: [B, S, N, H]. k, v: [B, S, K, H], where K divides N.
        causal: a position sees itself and those before it in the row.
        layout: of q and of the result. kv_layout: what k and v are brought to; their sequence is whole, and their
            heads are either sharded as q's or replicated.
        segment_ids: int32 [B, S]; positions see only their own segment. None: one segment.
        implementation: a name in `IMPLEMENTATIONS`; None takes the one for the platform.

    Returns:
        [B, S, N, H] in q's dtype. Softmax and products accumulate in at least float32.

    Raises:
        ValueError: an unknown implementation.
    """
    name = implementation or DEFAULT
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"attention implementation {name!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}")
    sequence, heads = in_use(layout)[1:3]
    if heads is not None and in_use(kv_layout)[2] is None:
        # Each shard of the query heads needs its own kv heads out of the replicated ones.
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        kv_layout = PartitionSpec(kv_layout[0], None, heads, None)
    rows = PartitionSpec(layout[0], layout[1])

    def local(q, k, v, segments):
        offset = 0 if sequence is None else jax.lax.axis_index(sequence) * q.shape[1]
        mine = everyone = None
        if segments is not None:
            mine = everyone = segments
            if sequence is not None:
                everyone = jax.lax.all_gather(segments, sequence, axis=1, tiled=True)
        return IMPLEMENTATIONS[name](q, k, v, mine, everyone, causal=causal, q_offset=offset)

    segments_in = () if segment_ids is None else (segment_ids,)
    run = on_shards(
        (lambda q, k, v: local(q, k, v, None)) if segment_ids is None else local,
        in_specs=(layout, kv_layout, kv_layout, *(rows for _ in segments_in)),
        out_specs=layout,
    )
    return run(q, k, v, *segments_in)
