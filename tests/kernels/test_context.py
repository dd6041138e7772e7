"""Attention over a sharded sequence equals the plain formula of the whole row, forward and in every gradient."""

import functools
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ivl3_jax.kernels import oracle
from ivl3_jax.kernels.attention import IMPLEMENTATIONS, PARTS, attention, chosen, chosen_part
from ivl3_jax.kernels.family import preferring
from ivl3_jax.sharding.context import Context, inverse, reordered, zigzag
from tests.kernels.test_attention import assert_equal, operands
from tests.tolerances import LAYER

pytestmark = pytest.mark.slow

FORMS = [
    Context("gather", "plain"),
    Context("gather", "zigzag"),
    Context("all_to_all", "plain"),
    Context("ring", "plain"),
    Context("ring", "zigzag"),
]
NAMES = [f"{form.attention} {form.order}" for form in FORMS]


def mesh_of(**axes):
    return jax.make_mesh(tuple(axes.values()), tuple(axes), devices=jax.devices()[: int(np.prod([*axes.values()]))])


def packed(lengths, S):
    """int32 [1, S]: segments of these lengths, and padding."""
    ids = np.repeat(np.arange(1, len(lengths) + 1), lengths)
    return np.pad(ids, (0, S - len(ids))).astype(np.int32)[None]


def found(form, mesh, inputs, ids, implementation, kv_heads="tensor", row=None):
    """Result and gradients in plain order; padding takes no part."""
    chunks = zigzag(mesh.shape["context"]) if form.order == "zigzag" else (0,)
    layout, kv_layout = P(row, "context", "tensor", None), P(row, "context", kv_heads, None)
    filled = None if ids is None else (ids > 0)[..., None, None]

    @jax.jit
    def run(q, k, v, cotangent, ids):
        def whole(q, k, v):
            given = [reordered(x, chunks) for x in (q, k, v)]
            given = [jax.sharding.reshard(x, to) for x, to in zip(given, (layout, kv_layout, kv_layout), strict=True)]
            ordered = None if ids is None else reordered(ids, chunks)
            out = attention(
                *given,
                causal=True,
                layout=layout,
                kv_layout=kv_layout,
                segment_ids=ordered,
                implementation=implementation,
                context=form,
            )
            out = reordered(jax.sharding.reshard(out, P(row, None, None, None)), inverse(chunks))
            return out if filled is None else jnp.where(filled, out, 0)

        out, pull = jax.vjp(whole, q, k, v)
        return out, *pull(jax.sharding.reshard(cotangent, P(row, None, None, None)))

    with jax.set_mesh(mesh):
        whole = NamedSharding(mesh, P(row))
        return run(*jax.device_put(inputs, whole), None if ids is None else jax.device_put(ids, whole))


def expected(inputs, ids):
    *inputs, cotangent = inputs

    def whole(q, k, v):
        segments = () if ids is None else (jnp.where(ids == 0, -1, ids), ids)
        return oracle.attention(q, k, v, *segments, causal=True)

    out, pull = jax.vjp(whole, *inputs)
    return out, *pull(cotangent)


def compare(form, mesh, inputs, ids, implementation, tolerance=LAYER["float32"], **options):
    assert_equal(found(form, mesh, inputs, ids, implementation, **options), expected(inputs, ids), tolerance)


@pytest.mark.parametrize(
    ("form", "implementation"),
    [*((form, "chunked") for form in FORMS), *((form, "oracle") for form in FORMS if form.attention == "ring")],
    ids=[*NAMES, *(f"{name} of the oracle" for name in NAMES[3:])],
)
def test_packed_rows(form, implementation):
    """Segments that cross borders, one that fills several shards, and a shard with nothing but padding."""
    rng = np.random.default_rng(0)
    ids = np.concatenate([packed((5, 1, 37, 4), 64), packed((20, 44), 64)])
    compare(form, mesh_of(context=4, tensor=2), operands(rng, 2, 64, 64, 8, 4, 8), ids, implementation)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_one_segment(form):
    rng = np.random.default_rng(1)
    compare(form, mesh_of(context=8, tensor=1), operands(rng, 1, 48, 48, 8, 8, 8), None, None)


@pytest.mark.parametrize("form", FORMS, ids=NAMES)
def test_kv_heads_that_do_not_divide(form):
    """12 query heads over 4 shards read 6 kv heads: each kv head is there twice, not as often as it is read."""
    rng = np.random.default_rng(2)
    ids = packed((30, 30), 64)
    mesh = mesh_of(context=2, tensor=4) if form.attention != "all_to_all" else mesh_of(context=2, tensor=2)
    compare(form, mesh, operands(rng, 1, 64, 64, 12, 6, 8), ids, None, kv_heads=None)


@pytest.mark.parametrize("form", FORMS[3:], ids=NAMES[3:])
def test_bfloat16_is_merged_in_float32(form):
    """As close to the formula in float32 as the formula in bfloat16 is."""
    rng = np.random.default_rng(3)
    inputs = operands(rng, 1, 64, 64, 4, 2, 16, "bfloat16")
    ours = found(form, mesh_of(context=8, tensor=1), inputs, None, None)
    assert {x.dtype for x in ours} == {jnp.dtype("bfloat16")}
    wide = expected([x.astype(jnp.float32) for x in inputs], None)
    # One rounding of the result to bfloat16, another of `out`, which the backward pass reads.
    assert_equal(ours, wide, 2 * float(jnp.finfo(jnp.bfloat16).eps))


@pytest.mark.parametrize(
    "form",
    [pytest.param(form, marks=() if form.order == "zigzag" else pytest.mark.long) for form in FORMS],
    ids=NAMES,
)
def test_the_family_of_tpu_kernels(form):
    """In the interpreter, with a chunk that is padding alone."""
    rng = np.random.default_rng(4)
    ids = packed((100, 280), 512)
    wanted = PARTS if form.attention == "ring" else IMPLEMENTATIONS
    others = {name: None for name in wanted if name != "tpu_packed"}
    with preferring("tpu"), mock.patch.dict(wanted, others):
        compare(form, mesh_of(context=2, tensor=1), operands(rng, 1, 512, 512, 4, 2, 64), ids, None)


@pytest.mark.parametrize("form", FORMS[3:], ids=NAMES[3:])
def test_no_more_than_two_shards_of_keys_are_held(form):
    """Nothing but the permutes that bring them: no array of the whole row, neither forward nor backward."""
    rng = np.random.default_rng(5)
    mesh, inputs = mesh_of(context=8, tensor=1), operands(rng, 1, 64, 64, 4, 2, 8)
    layout = P(None, "context", "tensor", None)

    def loss(q, k, v):
        return attention(q, k, v, causal=True, layout=layout, kv_layout=layout, context=form).sum()

    with jax.set_mesh(mesh):
        placed = jax.device_put(inputs[:3], NamedSharding(mesh, layout))
        text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).lower(*placed).compile().as_text()
    assert "collective-permute" in text and "all-gather" not in text and "[1,64," not in text


@pytest.mark.parametrize(("N", "K"), [(14, 2), (28, 4), (40, 8), (64, 8)])
def test_rows_of_128k_over_8_shards_are_for_the_tpu_kernel(N, K):
    """As each form calls it on a shard, for one row and heads over two shards."""
    S, N, K, offset = 131072, N // 2, K // 2, jnp.zeros((), jnp.int32)

    def taken(queries, keys, N, K, offset, rows=1):
        q, k = (jax.ShapeDtypeStruct((rows, n, heads, 128), "bfloat16") for n, heads in ((queries, N), (keys, K)))
        return chosen(q, k, k, True, offset) == chosen_part(q, k, k) == "tpu_packed"

    with preferring("tpu"):
        assert taken(S // 8, S, N, K, offset)  # gather
        assert taken(S // 16, S, N, K, offset)  # in zigzag order
        assert taken(S, S, max(N // 8, 1), 1, 0)  # all_to_all
        assert taken(S // 8, S // 8, N, K, offset)  # ring
        assert taken(S // 16, S // 16, N, K, offset, rows=2)  # in zigzag order


def test_an_implementation_that_makes_no_ring_is_refused():
    layout = P(None, "context", None, None)
    x = jnp.zeros((1, 8, 2, 8))
    with jax.set_mesh(mesh_of(context=2)), pytest.raises(ValueError, match="'tpu_vit' makes no ring; there are oracle"):
        attention(
            x, x, x, causal=True, layout=layout, kv_layout=layout, implementation="tpu_vit", context=Context("ring")
        )


@pytest.mark.parametrize("implementation", ["chunked", "tpu_packed"])
@pytest.mark.parametrize(("causal", "q_offset"), [(True, 0), (True, 40), (True, -30), (True, -200), (False, 0)])
def test_parts(implementation, causal, q_offset):
    """Result, log-sum-exp and gradients of some of the keys; chunks of keys after all queries among them."""
    rng = np.random.default_rng(6)
    q, k, v, d_out = operands(rng, 1, 128, 128, 4, 2, 64)
    ids = jnp.asarray(packed((50, 70), 128))
    q_ids, kv_ids = jnp.where(ids == 0, -1, ids), ids
    if implementation == "tpu_packed":
        q_ids = ids  # padding sees nothing

    @functools.partial(jax.jit, static_argnames="name")
    def both(name, q_ids, lse_of, q_offset):
        options = {"interpret": True} if name == "tpu_packed" else {}
        options |= {"causal": causal, "q_offset": q_offset}
        out, lse = PARTS[name].attention(q, k, v, q_ids, kv_ids, **options)
        # Merged with other keys, whose results are those of `lse_of`.
        merged = jnp.logaddexp(lse, lse_of)
        return out, lse, *PARTS[name].gradients(q, k, v, q_ids, kv_ids, out, merged, d_out, **options)

    lse_of = jnp.asarray(rng.standard_normal((1, 4, 128)), jnp.float32)
    ours = both(implementation, q_ids, lse_of, q_offset)
    theirs = both("oracle", jnp.where(ids == 0, -1, ids), lse_of, q_offset)
    np.testing.assert_array_equal(np.asarray(ours[1]) < -1e29, np.asarray(theirs[1]) < -1e29)
    for a, b in zip(ours, theirs, strict=True):
        seen = np.asarray(b) > -1e29
        a, b = np.where(seen, a, 0), np.where(seen, b, 0)
        assert np.linalg.norm(a - b) <= LAYER["float32"] * np.linalg.norm(b)
