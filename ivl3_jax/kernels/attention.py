"""The attention seam: callers say what, the platform decides how."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ivl3_jax.kernels import chunked_attention, gpu_attention, oracle, tpu_packed_attention, tpu_vit_attention
from ivl3_jax.kernels.chip import interpreted, on_gpu
from ivl3_jax.kernels.family import family, interpreting
from ivl3_jax.sharding.local import in_use, on_shards

IMPLEMENTATIONS: dict[str, Callable] = {
    "oracle": oracle.attention,
    "chunked": chunked_attention.attention,
    "tpu_vit": tpu_vit_attention.attention,
    "tpu_packed": tpu_packed_attention.attention,
    "cudnn": gpu_attention.attention,
}


def chosen(
    q: jax.Array, k: jax.Array, segments: jax.Array | None, causal: bool, q_offset: int | jax.Array | None = 0
) -> str:
    """The implementation for one device's operands, of the family that is preferred or the platform's."""
    match family():
        case "oracle":
            return "oracle"
        case "tpu" if tpu_vit_attention.unsupported(q, k, segments, segments, causal) is None:
            return "tpu_vit"
        case "tpu" if causal and tpu_packed_attention.unsupported(q, k, segments, segments, q_offset) is None:
            return "tpu_packed"
        # Packed rows by cuDNN wait for a GPU on which they have been tried.
        case "cudnn" if on_gpu() and segments is None and gpu_attention.unsupported(q, k, None, causal) is None:
            return "cudnn"
    return "chunked"


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
    """Softmax attention of every row within itself; a mesh has to be set.

    Args:
        q: [B, S, N, H]. k, v: [B, S, K, H] in q's dtype, where K divides N.
        causal: a position sees itself and those before it in the row.
        layout: of q and of the result. kv_layout: what k and v are brought to; their sequence is whole, and their
            heads are either sharded as q's or replicated.
        segment_ids: int32 [B, S], positive, 0 for padding; positions see only their own segment. What padding sees is
            each implementation's own affair: itself, or nothing. None: one segment.
        implementation: a name in `IMPLEMENTATIONS`; None takes the one for the platform and the shapes.

    Returns:
        [B, S, N, H] in q's dtype. Softmax and products accumulate in at least float32.

    Raises:
        ValueError: an unknown implementation, one named that does not support the operands, or operands that do not
            fit together.
    """
    if v.shape != k.shape or not q.dtype == k.dtype == v.dtype:
        found = ", ".join(f"{name} {x.dtype}{list(x.shape)}" for name, x in (("q", q), ("k", k), ("v", v)))
        raise ValueError(f"attention: {found}; all must be of one dtype, and k and v of one shape")
    if implementation not in (None, *IMPLEMENTATIONS):
        known = ", ".join(IMPLEMENTATIONS)
        raise ValueError(f"attention implementation {implementation!r} is unknown; there are {known}")
    sequence, heads = in_use(layout)[1:3]
    if heads is not None and in_use(kv_layout)[2] is None:
        # Each shard of the query heads needs its own kv heads out of the replicated ones.
        k, v = (jnp.repeat(x, q.shape[2] // k.shape[2], axis=2) for x in (k, v))
        kv_layout = PartitionSpec(kv_layout[0], None, heads, None)
    rows = PartitionSpec(layout[0], layout[1])
    elsewhere = interpreting(implementation)

    def local(q, k, v, segments):
        offset = 0 if sequence is None else jax.lax.axis_index(sequence) * q.shape[1]
        mine = everyone = None
        if segments is not None:
            mine = everyone = segments
            if sequence is not None:
                everyone = jax.lax.all_gather(segments, sequence, axis=1, tiled=True)
        name = implementation or chosen(q, k, segments, causal, offset)
        options = {"interpret": True} if elsewhere and name.startswith("tpu") else {}
        return IMPLEMENTATIONS[name](q, k, v, mine, everyone, causal=causal, q_offset=offset, **options)

    segments_in = () if segment_ids is None else (segment_ids,)
    whole = (lambda q, k, v: local(q, k, v, None)) if segment_ids is None else local
    run = on_shards(
        interpreted(whole) if elsewhere else whole,
        in_specs=(layout, kv_layout, kv_layout, *(rows for _ in segments_in)),
        out_specs=layout,
    )
    return run(q, k, v, *segments_in)
