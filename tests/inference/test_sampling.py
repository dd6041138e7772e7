"""What can be drawn, how often, and that it follows from the seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.inference.sampling import GREEDY, Sampling, choose

V, DRAWS = 12, 4000


@pytest.fixture(scope="module")
def logits():
    return np.random.default_rng(0).standard_normal((2, V)).astype(np.float32)


def reference(logits, sampling):
    """float64 [B, V], the distribution over tokens, by the definition of each limit."""
    found = np.zeros(logits.shape)
    for row, values in zip(found, logits.astype(np.float64) / sampling.temperature, strict=True):
        order = np.argsort(-values)[: sampling.top_k or len(values)]
        p = np.exp(values[order] - values.max())
        p /= p.sum()
        kept = next(n for n in range(1, len(p) + 1) if p[:n].sum() >= min(sampling.top_p, p.sum()))
        row[order[:kept]] = p[:kept] / p[:kept].sum()
    return found


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.5),
        Sampling(2.0, top_k=5),
        Sampling(1.0, top_k=1),
        Sampling(1.0, top_k=100),
        Sampling(1.0, top_k=2**40),
        Sampling(1.0, top_p=0.7),
        Sampling(1.5, top_k=8, top_p=0.8),
        Sampling(1.0, top_p=1e-6),
    ],
    ids=str,
)
def test_tokens_are_drawn_as_often_as_they_should_be(logits, sampling):
    keys = jax.random.split(jax.random.key(1), DRAWS)
    drawn = np.asarray(jax.jit(jax.vmap(lambda key: choose(jnp.asarray(logits), sampling, key)))(keys))
    assert drawn.dtype == np.int32
    expected = reference(logits, sampling)
    counts = np.stack([np.bincount(drawn[:, row], minlength=V) for row in range(2)])
    assert not counts[expected == 0].any()
    error = np.sqrt(np.maximum(expected * (1 - expected), 1 / DRAWS) / DRAWS)
    assert (np.abs(counts / DRAWS - expected) < 5 * error).all()


def test_greedy_needs_no_randomness(logits):
    for seed in range(3):
        assert choose(jnp.asarray(logits), GREEDY, jax.random.key(seed)).tolist() == logits.argmax(-1).tolist()


def test_the_key_decides_and_rows_draw_apart():
    flat = jnp.zeros((50, 1000))
    first, again, other = (choose(flat, Sampling(1.0, top_p=0.9), jax.random.key(seed)).tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert len(set(first)) > 25


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"temperature": -1}, "temperature is -1; it must be at least 0"),
        ({"temperature": float("nan")}, "temperature is nan; it must be at least 0 .* and finite"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"seed": -1}, r"seed is -1; it must be at least 0 and below 2\*\*63"),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must be"),
        ({"top_k": -2}, "top_k is -2; it must be at least 0"),
        ({"top_p": 0}, "top_p is 0; it must be above 0 and at most 1"),
        ({"top_p": 1.5}, "top_p is 1.5"),
    ],
)
def test_refused_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
