"""What can be drawn, how often, and that it follows from the seed."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ivl3_jax.inference.sampling import GREEDY, Draws, Sampling, Seen, alternatives, choose, penalised

V, DRAWS = 12, 4000
quick = jax.jit(choose)


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
    draws = Draws.of([sampling] * 2, [0, 1])
    numbers = np.stack([np.arange(DRAWS, dtype=np.int32)] * 2, axis=1)
    drawn = np.asarray(jax.jit(jax.vmap(lambda number: choose(jnp.asarray(logits), draws, number)))(numbers))
    assert drawn.dtype == np.int32
    expected = reference(logits, sampling)
    counts = np.stack([np.bincount(drawn[:, row], minlength=V) for row in range(2)])
    assert not counts[expected == 0].any()
    error = np.sqrt(np.maximum(expected * (1 - expected), 1 / DRAWS) / DRAWS)
    assert (np.abs(counts / DRAWS - expected) < 5 * error).all()


def chosen(logits, *samplings, samples=None, number=0, seen=None):
    draws = Draws.of(samplings, samples or [0] * len(samplings))
    return quick(jnp.asarray(logits), draws, np.full(len(samplings), number, np.int32), seen).tolist()


@pytest.mark.parametrize("temperature", [1e-4, 1e-6, 1e-12, 1e-36, 1e-45])
def test_what_is_cold_takes_the_most_likely(logits, temperature):
    """Also where logits divided by it pass float32."""
    spread = 1e3 * logits
    assert chosen(spread, *[Sampling(temperature, top_k=5, top_p=0.9)] * 2) == logits.argmax(-1).tolist()


def test_greedy_needs_no_randomness(logits):
    for number in range(3):
        assert chosen(logits, GREEDY, GREEDY, number=number) == logits.argmax(-1).tolist()


def test_rows_draw_each_in_its_own_way(logits):
    wide = np.repeat(logits[:1], 4, axis=0)
    ways = Sampling(2.0, seed=3), GREEDY, Sampling(1.0, top_k=2, seed=3), Sampling(1.0, top_p=0.5, seed=9)
    together = [chosen(wide, *ways, number=number) for number in range(20)]
    alone = [[chosen(wide[:1], way, number=number)[0] for way in ways] for number in range(20)]
    assert together == alone


def test_the_key_decides_and_samples_draw_apart():
    flat = np.zeros((50, 1000), np.float32)
    ways = {seed: [Sampling(1.0, top_p=0.9, seed=seed)] * 50 for seed in (0, 1, 2**32, 2**63 - 1)}
    found = {seed: chosen(flat, *ways[seed], samples=list(range(50))) for seed in ways}
    assert found[0] == chosen(flat, *ways[0], samples=list(range(50)))
    assert len({tuple(tokens) for tokens in found.values()}) == len(ways), "every bit of a seed counts"
    assert len(set(found[0])) > 25
    assert chosen(flat, *ways[0], samples=list(range(50)), number=1) != found[0]


def test_equally_likely_tokens_are_all_in_or_out():
    logits = np.array([[2, 2, 2, 0, 0, -9]], np.float32)
    for sampling in (Sampling(1.0, top_k=2), Sampling(1.0, top_p=0.5)):
        assert {chosen(logits, sampling, number=number)[0] for number in range(60)} == {0, 1, 2}


def test_tokens_without_probability_are_never_drawn():
    """A whole vocabulary of which a few tokens in a few blocks are left."""
    rng = np.random.default_rng(0)
    logits = np.full((8, 151_674), -np.inf, np.float32)
    left = rng.integers(0, logits.shape[1], (8, 3))
    np.put_along_axis(logits, left, rng.standard_normal((8, 3)).astype(np.float32), axis=1)
    for number in range(30):
        found = chosen(logits, *[Sampling(1.0)] * 8, samples=list(range(8)), number=number)
        assert all(token in row for token, row in zip(found, left, strict=True))


def test_penalties(logits):
    """Against the definitions, written out."""
    prompt, answer = [3, 3, 5], [7, 7, 7, 3]
    way = Sampling(0.0, repetition_penalty=1.5, presence_penalty=0.3, frequency_penalty=0.2)
    expected = logits[0].astype(np.float64)
    for token in {*prompt, *answer}:
        expected[token] = expected[token] / 1.5 if expected[token] > 0 else expected[token] * 1.5
    for token in set(answer):
        expected[token] -= 0.3 + 0.2 * answer.count(token)
    seen = Seen(np.array([[*prompt, *answer, -1, -1]], np.int32), np.array([3], np.int32))
    found = penalised(jnp.asarray(logits[:1]), Draws.of([way], [0]), seen)
    np.testing.assert_allclose(found[0], expected, rtol=1e-5)
    assert chosen(logits[:1], way, seen=seen) == [expected.argmax()]
    assert chosen(logits[:1], Sampling(), seen=seen) == [logits[0].argmax()]


def test_log_probabilities(logits):
    found = alternatives(jnp.asarray(logits), jnp.array([4, 0]), 3)
    wide = logits.astype(np.float64)
    expected = wide - np.log(np.exp(wide).sum(-1, keepdims=True))
    np.testing.assert_allclose(found.token, expected[[0, 1], [4, 0]], rtol=1e-5)
    order = np.argsort(-expected, axis=-1)[:, :3]
    assert found.ids.tolist() == order.tolist()
    np.testing.assert_allclose(found.logprobs, np.take_along_axis(expected, order, axis=-1), rtol=1e-5)


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
        ({"repetition_penalty": 0}, "repetition_penalty is 0; it must be at least 0.01"),
        ({"presence_penalty": float("nan")}, "presence_penalty is nan; it must be finite"),
        ({"frequency_penalty": float("inf")}, "frequency_penalty is inf; it must be finite"),
    ],
)
def test_refused_settings(fields, message):
    with pytest.raises(ValueError, match=message):
        Sampling(**fields)
