"""Who can do what this project's kernels do: its own seams, the oracle, and what JAX and tokamax have."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from ivl3_jax.bench import splash
from ivl3_jax.bench.problems import Attention, Decoding, Loss
from ivl3_jax.kernels import decoding, oracle
from ivl3_jax.kernels.attention import attention, chosen
from ivl3_jax.kernels.cross_entropy import cross_entropy, preferred

Problem = Attention | Loss | Decoding
WHOLE = PartitionSpec(None, None, None, None)


def _page(problem: Decoding) -> int:
    """Positions of a page of the cache."""
    return math.gcd(problem.S, 128)


def _ours(problem: Problem) -> Callable:
    """What the seams choose for the platform and the shapes."""
    if isinstance(problem, Attention):
        ids = None if problem.ids is None else jnp.asarray(problem.ids)
        return lambda q, k, v: attention(q, k, v, causal=problem.causal, layout=WHOLE, kv_layout=WHOLE, segment_ids=ids)
    if isinstance(problem, Loss):
        labels, weights = (x[None] for x in problem.targets())
        row = PartitionSpec(None, None)
        return lambda x, w: cross_entropy(x[None], w, labels, weights, vocab=problem.V, layout=row, vocab_axes=None)[0]
    table = jnp.arange(problem.B * problem.S // _page(problem), dtype=jnp.int32).reshape(problem.B, -1)
    places = decoding.Places(table, jnp.full((problem.B,), problem.S - 1, jnp.int32))
    return lambda q, cache: decoding.attend(q, cache, places)


def operands(problem: Problem, name: str, dtype) -> tuple[Any, ...]:
    """What an implementation is called with: keys and values of the seams already lie in their cache."""
    found = problem.operands(dtype)
    if name == "ours" and isinstance(problem, Decoding):
        q, k, v = found
        return q, decoding.in_pages(k, v, _page(problem))[0]
    return found


def choice(problem: Problem, dtype, mesh: jax.sharding.Mesh) -> str:
    """The implementation that a seam chooses for a problem."""
    with jax.set_mesh(mesh):
        if isinstance(problem, Attention):
            q, k = (jax.ShapeDtypeStruct((problem.B, problem.S, n, problem.H), dtype) for n in (problem.N, problem.K))
            ids = jax.ShapeDtypeStruct((problem.B, problem.S), jnp.int32) if problem.causal else None
            return chosen(q, k, ids, problem.causal)
        if isinstance(problem, Loss):
            x, w = (jax.ShapeDtypeStruct(shape, dtype) for shape in ((problem.T, problem.D), (problem.D, problem.V)))
            return preferred(x, w)
        q = jax.ShapeDtypeStruct((problem.B, 1, problem.N, problem.H), dtype)
        page = _page(problem)
        pages = jax.ShapeDtypeStruct((problem.B * problem.S // page, page, problem.K * problem.H), dtype)
        return decoding.chosen(q, decoding.Cache(pages, pages))


def _oracle(problem: Problem) -> Callable:
    if isinstance(problem, Attention):
        ids = None if problem.ids is None else jnp.asarray(problem.ids)
        return lambda q, k, v: oracle.attention(q, k, v, ids, ids, causal=problem.causal)
    if isinstance(problem, Loss):
        labels, weights = problem.targets()
        return lambda x, w: oracle.cross_entropy(x, w, labels, weights, vocab=problem.V)
    return lambda q, k, v: oracle.attention(q, k, v, causal=False)


def _jax_nn(implementation: str) -> Callable[[Problem], Callable]:
    """jax.nn.dot_product_attention, with a mask of all queries and keys where rows are packed; logits in full."""

    def of(problem: Problem) -> Callable:
        if isinstance(problem, Loss):
            if implementation == "cudnn":
                raise NotImplementedError("cuDNN has no cross-entropy")
            labels, weights = problem.targets()

            def loss(x, w):
                logits = jnp.dot(x, w, preferred_element_type=jnp.float32)
                mine = jnp.take_along_axis(logits, labels[:, None], axis=1)[:, 0]
                return weights * (jax.nn.logsumexp(logits, axis=1) - mine)

            return loss
        mask = None
        if isinstance(problem, Attention) and len(problem.segments) > 1:
            ids = jnp.asarray(problem.ids)
            mask = (ids[:, None, :, None] == ids[:, None, None, :]) & jnp.tri(problem.S, dtype=bool)
        causal = isinstance(problem, Attention) and problem.causal and mask is None
        return lambda q, k, v: jax.nn.dot_product_attention(
            q, k, v, mask=mask, is_causal=causal, implementation=implementation
        )

    return of


def _splash(problem: Problem) -> Callable:
    """JAX's splash attention on rows that are padded to a multiple of 128."""
    from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel, splash_attention_mask

    if not isinstance(problem, Attention):
        raise NotImplementedError("splash attention is for whole rows")
    if jax.default_backend() != "tpu":
        raise NotImplementedError("splash attention is for TPUs")
    S, more = problem.S, -problem.S % 128
    block = 1024 if (S + more) % 1024 == 0 else S + more
    kind = splash_attention_mask.CausalMask if problem.causal else splash_attention_mask.FullMask
    run = splash.make(kind((S + more, S + more)), problem.N, (block, block, min(block, 512) if more == 0 else block))
    ids = jnp.ones((problem.B, S), jnp.int32) if problem.ids is None else jnp.asarray(problem.ids)
    ids = jnp.pad(ids, ((0, 0), (0, more)))

    def attend(q, k, v):
        q, k, v = (jnp.pad(x, ((0, 0), (0, more), (0, 0), (0, 0))).swapaxes(1, 2) for x in (q, k, v))
        pairs = splash_attention_kernel.SegmentIds(ids, ids)
        return jax.vmap(run)(q * problem.H**-0.5, k, v, pairs).swapaxes(1, 2)[:, :S]

    return attend


def _tokamax(problem: Problem) -> Callable:
    import tokamax

    if not isinstance(problem, Attention):
        raise NotImplementedError("compared in attention only")
    if not problem.causal:
        return tokamax.dot_product_attention
    ids = jnp.asarray(problem.ids)
    if len(problem.segments) == 1:
        return lambda q, k, v: tokamax.dot_product_attention(q, k, v, is_causal=True)
    mask = (ids[:, None, :, None] == ids[:, None, None, :]) & jnp.tri(problem.S, dtype=bool)
    return lambda q, k, v: tokamax.dot_product_attention(q, k, v, mask=mask)


def _packed_cudnn(problem: Problem) -> Callable:
    """The seam's `cudnn` by name: packed rows as sequences, without a mask."""
    if not isinstance(problem, Attention) or not problem.causal:
        raise NotImplementedError("for packed rows only")
    ids = jnp.asarray(problem.ids)
    return lambda q, k, v: attention(
        q, k, v, causal=True, layout=WHOLE, kv_layout=WHOLE, segment_ids=ids, implementation="cudnn"
    )


PEERS: dict[str, Callable[[Problem], Callable]] = {
    "ours": _ours,
    "oracle": _oracle,
    "xla": _jax_nn("xla"),
    "cudnn": _jax_nn("cudnn"),
    "cudnn-packed": _packed_cudnn,
    "splash": _splash,
    "tokamax": _tokamax,
}
