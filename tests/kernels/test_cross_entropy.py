"""Chunked cross-entropy equals the plain formula, forward and in every gradient, sharded or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, PartitionSpec

from ivl3_jax.kernels import chunked_cross_entropy, oracle
from tests.tolerances import LAYER


@pytest.fixture
def small_chunks(monkeypatch):
    """13 columns and 7 tokens at a time, so that neither divides anything."""
    monkeypatch.setattr(chunked_cross_entropy, "COLUMNS", 13)
    monkeypatch.setattr(chunked_cross_entropy, "LOGITS", 13 * 7)


def operands(rng, T, D, V, vocab, kept=0.5, dtype="float32"):
    """x, w, labels, weights (a share `kept` of them not 0, where 0 the label is -100) and a cotangent."""
    weights = rng.random(T) * (rng.random(T) < kept)
    labels = np.where(weights == 0, -100, rng.integers(0, vocab, T)).astype(np.int32)
    x, w, cotangent = rng.standard_normal((T, D)), rng.standard_normal((D, V)), rng.standard_normal(T)
    wide = jnp.promote_types(dtype, jnp.float32)
    weights, cotangent = jnp.asarray(weights, wide), jnp.asarray(cotangent, wide)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), labels, weights, cotangent


def value_and_gradients(cross_entropy, x, w, labels, weights, cotangent):
    def run(x, w, weights):
        out, pull = jax.vjp(lambda x, w, weights: cross_entropy(x, w, labels, weights), x, w, weights)
        return out, *pull(cotangent)

    return jax.jit(run)(x, w, weights)


def compare(tolerance, inputs, vocab, ours):
    def plain(*operands):
        return oracle.cross_entropy(*operands, vocab=vocab)

    pairs = zip(value_and_gradients(ours, *inputs), value_and_gradients(plain, *inputs), strict=True)
    for name, (a, b) in zip(("out", "d_x", "d_w", "d_weights"), pairs, strict=True):
        assert np.isfinite(a).all(), name
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), name


def chunked(vocab, **options):
    return lambda *operands: chunked_cross_entropy.cross_entropy(*operands, vocab=vocab, **options)


@pytest.mark.parametrize(
    ("T", "D", "V", "vocab", "kept"),
    [(1, 4, 5, 5, 1), (32, 8, 64, 61, 0.5), (37, 8, 50, 50, 0.1), (64, 8, 16, 11, 1), (30, 8, 13, 2, 0.5)],
)
def test_equals_the_oracle(small_chunks, T, D, V, vocab, kept):
    inputs = operands(np.random.default_rng(T), T, D, V, vocab, kept)
    compare(LAYER["float32"], inputs, vocab, chunked(vocab))


def test_float64(small_chunks):
    with jax.enable_x64(True):
        inputs = operands(np.random.default_rng(0), 45, 8, 70, 67, dtype="float64")
        compare(LAYER["float64"], inputs, 67, chunked(67))


def test_default_chunks():
    inputs = operands(np.random.default_rng(1), 300, 16, 17000, 16999)
    compare(LAYER["float32"], inputs, 16999, chunked(16999))


def test_bfloat16_accumulates_in_float32(small_chunks):
    x, w, labels, weights, _ = operands(np.random.default_rng(2), 40, 8, 64, 61, dtype="bfloat16")
    ours = jax.jit(chunked(61))(x, w, labels, weights)
    assert ours.dtype == jnp.float32
    wide = oracle.cross_entropy(x.astype(jnp.float32), w.astype(jnp.float32), labels, weights, vocab=61)
    np.testing.assert_allclose(ours, wide, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("tokens", "vocab_axes"),
    [
        ("data", "tensor"),
        ("data", ("fsdp", "tensor")),
        (("data", "fsdp"), "tensor"),
        (("data", "fsdp", "tensor"), None),
        (None, ("data", "fsdp", "tensor")),
        (None, "tensor"),
        (None, None),
    ],
)
def test_sharded_equals_the_oracle(small_chunks, tokens, vocab_axes):
    """Tokens over some axes, columns over others; along the rest x or w or both are replicated."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    T, D, V, vocab = 64, 8, 64, 45  # the last shards of w are padding alone where it is cut in eight
    rows = PartitionSpec(tokens)
    sharded = jax.shard_map(
        chunked(vocab, axis=vocab_axes),
        mesh=mesh,
        in_specs=(PartitionSpec(tokens, None), PartitionSpec(None, vocab_axes), rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    compare(LAYER["float32"], operands(np.random.default_rng(3), T, D, V, vocab), vocab, sharded)


@pytest.mark.parametrize("cross_entropy", [oracle.cross_entropy, chunked_cross_entropy.cross_entropy])
def test_tokens_of_weight_zero_take_no_part(cross_entropy):
    x, w, labels, weights, cotangent = operands(np.random.default_rng(4), 20, 4, 9, 9)
    x = jnp.where((weights == 0)[:, None], 1e4, x)

    def loss(*operands):
        return cross_entropy(*operands, vocab=9)

    out, d_x, *_ = value_and_gradients(loss, x, w, labels, weights, cotangent)
    assert not out[weights == 0].any() and not d_x[weights == 0].any()
    assert out[weights != 0].all() and d_x[weights != 0].all()
    nothing = value_and_gradients(loss, x, w, labels, jnp.zeros_like(weights), cotangent)
    assert not any(np.any(value) for value in nothing)


@pytest.mark.parametrize("cross_entropy", [oracle.cross_entropy, chunked_cross_entropy.cross_entropy])
@pytest.mark.parametrize("label", [-100, -1, 7, 8])
def test_a_wanted_label_out_of_range_is_nan(cross_entropy, label):
    x, w = jnp.ones((2, 3)), jnp.ones((3, 8))
    out = cross_entropy(x, w, jnp.asarray([2, label]), jnp.ones(2), vocab=7)
    assert np.isnan(out[1]) and np.isclose(out[0], np.log(7))


def test_no_tokens_are_legal():
    def loss(x, w):
        return chunked_cross_entropy.cross_entropy(x, w, jnp.zeros(0, jnp.int32), jnp.zeros(0), vocab=5).sum()

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.zeros((0, 4)), jnp.zeros((4, 5)))
    assert value == 0 and not gradients[1].any()


def test_logits_are_never_whole():
    T, D, V = 4096, 8, 65536
    x, w = jax.ShapeDtypeStruct((T, D), jnp.float32), jax.ShapeDtypeStruct((D, V), jnp.float32)
    labels, weights = jax.ShapeDtypeStruct((T,), jnp.int32), jax.ShapeDtypeStruct((T,), jnp.float32)

    def loss(x, w, labels, weights):
        return chunked_cross_entropy.cross_entropy(x, w, labels, weights, vocab=V).sum()

    compiled = jax.jit(jax.grad(loss, argnums=(0, 1))).lower(x, w, labels, weights).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < T * V * 4 / 16
