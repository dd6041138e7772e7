"""The cross-entropy seam: from hidden states straight to losses, so that full logits never exist."""

from collections.abc import Callable

import jax
from jax.sharding import PartitionSpec

from ivl3_jax.kernels import chunked_cross_entropy, oracle, tpu_cross_entropy
from ivl3_jax.kernels.chip import interpreted
from ivl3_jax.kernels.family import family, interpreting
from ivl3_jax.sharding.local import in_use, mesh_axes, on_shards

IMPLEMENTATIONS: dict[str, Callable] = {
    "oracle": oracle.cross_entropy,
    "chunked": chunked_cross_entropy.cross_entropy,
    "tpu": tpu_cross_entropy.cross_entropy,
}


def preferred(x: jax.Array, w: jax.Array) -> str:
    """The name of the implementation for x [..., D] and w [D, V], of the family that is preferred or the platform's."""
    match family():
        case "oracle":
            return "oracle"
        case "tpu" if tpu_cross_entropy.supports(x, w):
            return "tpu"
    return "chunked"


def cross_entropy(
    x: jax.Array,
    w: jax.Array,
    labels: jax.Array,
    weights: jax.Array,
    *,
    vocab: int,
    layout: PartitionSpec,
    vocab_axes: str | tuple[str, ...] | None,
    implementation: str | None = None,
) -> jax.Array:
    """weights * (logsumexp(x w) - (x w)[label]) of every position; a mesh has to be set.

    Args:
        x: [B, S, D]. w: [D, V], whose columns from `vocab` on are padding; rows that are sharded are gathered, and
            their gradient is scattered again.
        labels: int32 [B, S]. weights: float32 [B, S]; where 0 nothing is computed and nothing flows back.
        layout: of labels, weights and the result. vocab_axes: mesh axes over which w's columns are sharded.
        implementation: a name in `IMPLEMENTATIONS`; None takes the one for the platform.

    Returns:
        [B, S] nats, in at least float32; differentiable in x and w.

    Raises:
        ValueError: an unknown implementation.
    """
    name = implementation or preferred(x, w)
    if name not in IMPLEMENTATIONS:
        raise ValueError(f"cross-entropy implementation {name!r} is unknown; there are {', '.join(IMPLEMENTATIONS)}")
    (vocab_axes,) = in_use(PartitionSpec(vocab_axes))
    options = {} if name == "oracle" else {"axis": vocab_axes}
    if name == "oracle" and vocab_axes is not None:
        vocab_axes = None  # the oracle sees the whole vocabulary

    # Gathered within, so that the sum of the gradient over devices is a scattered one.
    rows = in_use(PartitionSpec(jax.typeof(w).sharding.spec[0]))[0]
    if mesh_axes(rows) & mesh_axes(vocab_axes):
        rows = None

    def local(x, w, labels, weights):
        w = w if rows is None else jax.lax.all_gather(w, rows, axis=0, tiled=True)
        flat = x.reshape(-1, x.shape[-1]), w, labels.reshape(-1), weights.reshape(-1)
        return IMPLEMENTATIONS[name](*flat, vocab=vocab, **options).reshape(labels.shape)

    if name == "tpu" and interpreting(name):
        options["interpret"] = True
        local = interpreted(local)
    x_layout, w_layout = PartitionSpec(*layout, None), PartitionSpec(rows, vocab_axes)
    run = on_shards(local, in_specs=(x_layout, w_layout, layout, layout), out_specs=layout)
    return run(x, w, labels, weights)
