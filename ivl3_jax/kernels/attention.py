"""The attention seam: callers say what, the platform decides how."""

import math
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ivl3_jax.kernels import chunked_attention, gpu_attention, oracle, tpu_packed_attention, tpu_vit_attention
from ivl3_jax.kernels.chip import interpreted, on_gpu
from ivl3_jax.kernels.family import family, interpreting
from ivl3_jax.kernels.ring_attention import Parts, Ring, ring_attention
from ivl3_jax.kernels.sequence_attention import gathered, headwise
from ivl3_jax.sharding.context import GATHER, Context
from ivl3_jax.sharding.local import in_use, on_shards, shard_count

IMPLEMENTATIONS: dict[str, Callable] = {
    "oracle": oracle.attention,
    "chunked": chunked_attention.attention,
    "tpu_vit": tpu_vit_attention.attention,
    "tpu_packed": tpu_packed_attention.attention,
    "cudnn": gpu_attention.attention,
}
# Those that a ring can be made of, see `oracle`.
PARTS = {
    "oracle": Parts(oracle.partial_attention, oracle.partial_gradients),
    "chunked": Parts(chunked_attention.partial_attention, chunked_attention.partial_gradients),
    "tpu_packed": Parts(tpu_packed_attention.partial_attention, tpu_packed_attention.partial_gradients),
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


def chosen_part(q: jax.Array, k: jax.Array, segments: jax.Array | None) -> str:
    """As `chosen`, of `PARTS`, for operands of any causality and offset."""
    match family():
        case "oracle":
            return "oracle"
        case "tpu" if tpu_packed_attention.unsupported(q, k, segments, segments, None) is None:
            return "tpu_packed"
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
    context: Context = GATHER,
) -> jax.Array:
    """Softmax attention of every row within itself; a mesh has to be set.

    Args:
        q: [B, S, N, H]. k, v: [B, S, K, H] in q's dtype, where K divides N.
        causal: a position sees itself and those before it in the row.
        layout: of q and of the result. kv_layout: of k and v; their heads are either sharded as q's or replicated.
        segment_ids: int32 [B, S], positive, 0 for padding; positions see only their own segment. What padding sees is
            each implementation's own affair: itself, or nothing. None: one segment.
        implementation: a name in `IMPLEMENTATIONS`; None takes the one for the platform and the shapes.
        context: what is done where the layout shards the sequence, and in which order its shards hold the positions of
            q, k, v, segment_ids and the result.

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
        k, v = (repeated(x, shard_count(heads)) for x in (k, v))
        kv_layout = PartitionSpec(*kv_layout[:2], heads, None)
    elsewhere = interpreting(implementation)
    zigzag = causal and context.order == "zigzag"

    def options(name: str) -> dict[str, bool]:
        return {"interpret": True} if elsewhere and name.startswith("tpu") else {}

    def one(q, k, v, q_ids, kv_ids, offset: int | jax.Array):
        name = implementation or chosen(q, k, q_ids, causal, offset)
        return IMPLEMENTATIONS[name](q, k, v, q_ids, kv_ids, causal=causal, q_offset=offset, **options(name))

    def parts(q, k, ids) -> Parts:
        name = implementation or chosen_part(q, k, ids)
        if name not in PARTS:
            raise ValueError(f"attention implementation {name!r} makes no ring; there are {', '.join(PARTS)}")
        return Parts(*(partial(part, **options(name)) for part in PARTS[name]))

    def local(q, k, v, ids=None):
        if sequence is None:
            return one(q, k, v, ids, ids, 0)
        match context.attention:
            case "all_to_all":
                # No more copies of a kv head than shards of query heads need.
                k, v = (repeated(x, shard_count(sequence)) for x in (k, v))
                return headwise(one, sequence, q, k, v, ids)
            case "ring":
                return ring_attention(Ring(sequence, shard_count(sequence), causal, zigzag, parts), q, k, v, ids)
        return gathered(one, sequence, shard_count(sequence), zigzag, q, k, v, ids)

    segments_in = () if segment_ids is None else (segment_ids,)
    run = on_shards(
        interpreted(local) if elsewhere else local,
        in_specs=(layout, kv_layout, kv_layout, *(PartitionSpec(layout[0], None) for _ in segments_in)),
        out_specs=layout,
    )
    return run(q, k, v, *segments_in)


def repeated(x: jax.Array, shards: int) -> jax.Array:
    """[B, S, K, H] with each kv head as often in a row as it takes for all of them to divide over `shards`."""
    return jnp.repeat(x, shards // math.gcd(x.shape[2], shards), axis=2)
