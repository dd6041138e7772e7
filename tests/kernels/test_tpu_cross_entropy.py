"""The TPU cross-entropy, interpreted, equals the plain formula, forward and in every gradient, sharded or not."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ivl3_jax.kernels import oracle, tpu_cross_entropy
from ivl3_jax.kernels.cross_entropy import cross_entropy as seam
from ivl3_jax.kernels.tpu_cross_entropy import Blocks
from tests.kernels.test_cross_entropy import compare, operands, value_and_gradients
from tests.tolerances import LAYER


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(tpu_cross_entropy, "blocks", lambda D, dtype: Blocks(16, 128, 32, 256))


def tpu(vocab, **options):
    return lambda *operands: tpu_cross_entropy.cross_entropy(*operands, vocab=vocab, interpret=True, **options)


@settings(max_examples=8, deadline=None)
@given(
    T=st.sampled_from([1, 37, 64]),
    vocab=st.sampled_from([2, 300, 512]),
    padding=st.sampled_from([0, 101]),
    kept=st.sampled_from([0.0, 0.1, 0.6, 1.0]),
    seed=st.integers(0, 99),
)
def test_equals_the_oracle(T, vocab, padding, kept, seed):
    inputs = operands(np.random.default_rng(seed), T, 8, vocab + padding, vocab, kept)
    compare(LAYER["float32"], inputs, vocab, tpu(vocab))


@pytest.mark.parametrize("seed", [0, 1])
def test_bfloat16_is_as_near_as_its_rounding(seed):
    """Products take bfloat16, sums are float32: the loss to float32's rounding, gradients to bfloat16's."""
    x, w, labels, weights, cotangent = operands(np.random.default_rng(seed), 37, 16, 400, 390, 0.6, "bfloat16")
    ours = value_and_gradients(tpu(390), x, w / 4, labels, weights, cotangent)
    exact = value_and_gradients(
        lambda *o: oracle.cross_entropy(*o, vocab=390),
        x.astype(jnp.float32), (w / 4).astype(jnp.float32), labels, weights, cotangent,
    )  # fmt: skip
    assert ours[0].dtype == jnp.float32 and ours[1].dtype == ours[2].dtype == jnp.bfloat16
    np.testing.assert_allclose(ours[0], exact[0], rtol=1e-5, atol=1e-5)
    for a, b in zip(ours[1:], exact[1:], strict=True):
        assert np.linalg.norm(np.asarray(a, np.float32) - b) <= 2**-7 * np.linalg.norm(b)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 2**-7)])
def test_a_token_that_is_nearly_certain_keeps_its_gradient(dtype, tolerance):
    """The label's probability is 1 - 1e-4: p - 1 of a rounded p would be mostly rounding."""
    V, logit = 128, 14.0
    x, w = jnp.eye(1, V, dtype=dtype) * logit, jnp.eye(V, dtype=dtype)
    _, d_x, d_w, _ = value_and_gradients(tpu(V), x, w, jnp.zeros(1, jnp.int32), jnp.ones(1), jnp.ones(1))
    wrong = 1 / (np.exp(logit) + V - 1)  # the probability of each other word
    d_logits = np.full(V, wrong)
    d_logits[0] = -wrong * (V - 1)
    np.testing.assert_allclose(np.asarray(d_x[0], float), d_logits, rtol=tolerance)
    np.testing.assert_allclose(np.asarray(d_w[0], float), logit * d_logits, rtol=tolerance)


@pytest.mark.parametrize(
    ("tokens", "vocab_axes"),
    [
        ("data", "tensor"),
        ("data", ("fsdp", "tensor")),
        (("data", "fsdp", "tensor"), None),
        (None, ("data", "fsdp", "tensor")),
        (None, "tensor"),
    ],
)
def test_sharded_equals_the_oracle(tokens, vocab_axes):
    """Tokens over some axes, columns over others; along the rest x or w or both are replicated."""
    mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)
    T, D, V, vocab = 64, 8, 1600, 1250  # the last shards of w are padding alone where it is cut in eight
    rows = PartitionSpec(tokens)
    sharded = jax.shard_map(
        tpu(vocab, axis=vocab_axes),
        mesh=mesh,
        in_specs=(PartitionSpec(tokens, None), PartitionSpec(None, vocab_axes), rows, rows),
        out_specs=rows,
        check_vma=False,
    )
    compare(LAYER["float32"], operands(np.random.default_rng(3), T, D, V, vocab), vocab, sharded)


def test_tokens_of_weight_zero_take_no_part():
    x, w, labels, weights, cotangent = operands(np.random.default_rng(4), 20, 4, 9, 9)
    x = jnp.where((weights == 0)[:, None], jnp.nan, x)
    out, d_x, d_w, _ = value_and_gradients(tpu(9), x, w, labels, weights, cotangent)
    assert not out[weights == 0].any() and not d_x[weights == 0].any()
    assert out[weights != 0].all() and d_x[weights != 0].all() and np.isfinite(d_w).all()
    nothing = value_and_gradients(tpu(9), x, w, labels, jnp.zeros_like(weights), cotangent)
    assert not any(np.any(value) for value in nothing)


@pytest.mark.parametrize("label", [-100, -1, 7, 8])
def test_a_wanted_label_out_of_range_is_nan(label):
    out = tpu(7)(jnp.ones((2, 3)), jnp.ones((3, 8)), jnp.asarray([2, label]), jnp.ones(2))
    assert np.isnan(out[1]) and np.isclose(out[0], np.log(7))


def test_no_tokens_are_legal():
    def loss(x, w):
        return tpu(5)(x, w, jnp.zeros(0, jnp.int32), jnp.zeros(0)).sum()

    value, gradients = jax.value_and_grad(loss, argnums=(0, 1))(jnp.zeros((0, 4)), jnp.zeros((4, 5)))
    assert value == 0 and not gradients[1].any()


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="x is float16 and w float32; .* bfloat16 or both in float32"):
        tpu(5)(jnp.ones((2, 4), jnp.float16), jnp.ones((4, 5)), jnp.zeros(2, jnp.int32), jnp.ones(2))


def test_through_the_seam_under_a_plan():
    """By name, on whole arrays under a mesh of explicit axes; rows over one axis, columns over the other."""
    mesh = jax.make_mesh((2, 2), ("data", "tensor"))
    x, w, labels, weights, cotangent = operands(np.random.default_rng(5), 24, 8, 402, 399)

    def by(implementation, *axes):
        def run(x, w, weights, cotangent):
            rows = 4, 6
            out, pull = jax.vjp(
                lambda x, w, weights: seam(
                    x.reshape(*rows, 8), w, labels.reshape(rows), weights.reshape(rows),
                    vocab=399, layout=PartitionSpec(axes[0], None), vocab_axes=axes[1], implementation=implementation,
                ),
                x, w, weights,
            )  # fmt: skip
            return out, *pull(jax.sharding.reshard(cotangent.reshape(rows), PartitionSpec(axes[0], None)))

        with jax.set_mesh(mesh):
            operands = (jax.device_put(o, NamedSharding(mesh, PartitionSpec())) for o in (x, w, weights, cotangent))
            return jax.jit(run)(*operands)

    for a, b in zip(by("tpu", "data", "tensor"), by("oracle", None, None), strict=True):
        assert np.linalg.norm(np.asarray(a) - b) <= LAYER["float32"] * np.linalg.norm(b)


def test_too_wide_is_refused():
    with pytest.raises(ValueError, match="width 100000 is too large .* on v5p it takes up to 12672 in bfloat16"):
        tpu_cross_entropy.blocks_on("v5p", 100000, "bfloat16")
