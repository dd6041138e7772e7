"""Choosing the next token of rows that each draw in a way of their own."""

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

LEAST_PENALTY = 0.01
COLDEST = 1e-6  # a temperature below it is greedy: logits divided by it would pass float32
BLOCK = 512  # tokens whose probabilities are summed up at once in a draw


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0, or less than a millionth, takes the most likely token (greedy).
        top_k: only the k most likely tokens can be drawn; 0 means all.
        top_p: only the smallest set of most likely tokens whose probability reaches p can be drawn. Tokens that are
            equally likely are all in such a set or all out of it.
        seed: of the draws, below 2**63. The same seed, prompt and model give the same answer.
        repetition_penalty: logits of tokens that stand in the prompt or the answer are divided by it, multiplied if
            negative (Keskar et al. 2019); 1 changes nothing.
        presence_penalty: is subtracted from logits of tokens that stand in the answer. frequency_penalty: as often as
            they stand there.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0 (0 is greedy) and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0 (0 is all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2**63")
        if not LEAST_PENALTY <= self.repetition_penalty < math.inf:
            found = self.repetition_penalty
            raise ValueError(
                f"repetition_penalty is {found}; it must be at least {LEAST_PENALTY} (1 changes nothing) and finite"
            )
        for name in ("presence_penalty", "frequency_penalty"):
            if not -math.inf < (found := getattr(self, name)) < math.inf:
                raise ValueError(f"{name} is {found}; it must be finite (0 changes nothing)")

    @property
    def penalised(self) -> bool:
        """Whether tokens that were seen before count."""
        return (self.repetition_penalty, self.presence_penalty, self.frequency_penalty) != (1, 0, 0)


GREEDY = Sampling()


class Draws(NamedTuple):
    """How each of B rows draws: arrays [B] of `Sampling`'s fields, and `keys`, the data of a random key each [B, 2]."""

    temperature: jax.Array | np.ndarray
    top_k: jax.Array | np.ndarray
    top_p: jax.Array | np.ndarray
    repetition: jax.Array | np.ndarray
    presence: jax.Array | np.ndarray
    frequency: jax.Array | np.ndarray
    keys: jax.Array | np.ndarray

    @classmethod
    def of(cls, samplings: Sequence[Sampling], samples: Sequence[int]) -> "Draws":
        """Host arrays; `samples` is the number of each row among those of its prompt, whose draws differ."""

        def floats(name: str) -> np.ndarray:
            return np.array([getattr(one, name) for one in samplings], np.float32)

        return cls(
            floats("temperature"),
            np.array([min(one.top_k, 2**31 - 1) for one in samplings], np.int32),
            floats("top_p"),
            floats("repetition_penalty"),
            floats("presence_penalty"),
            floats("frequency_penalty"),
            np.stack([key_data(one.seed, sample) for one, sample in zip(samplings, samples, strict=True)]),
        )


@functools.lru_cache(maxsize=1024)
def key_data(seed: int, sample: int) -> np.ndarray:
    """uint32 [2], of the key of one sample: all 64 bits of the seed count, whatever the width of JAX's integers."""
    key = jax.random.wrap_key_data(jnp.asarray([seed >> 32, seed & 0xFFFFFFFF], jnp.uint32))
    return np.asarray(jax.random.key_data(jax.random.fold_in(key, sample)))


class Seen(NamedTuple):
    """Tokens that stand before: int32 [B, L], -1 where there is none, and where each row's answer begins, int32 [B]."""

    tokens: jax.Array | np.ndarray
    begins: jax.Array | np.ndarray


def choose(logits: jax.Array, draws: Draws, numbers: jax.Array, seen: Seen | None = None) -> jax.Array:
    """The next token of each row, int32 [B].

    Penalties come first, then the temperature, then top-k, then top-p, as in transformers.

    Args:
        logits: [B, V]. numbers: int32 [B], how many tokens of its answer each row has drawn before.
        seen: for rows with a penalty.
    """
    if seen is not None:
        logits = penalised(logits, draws, seen)
    greedy = logits.argmax(-1).astype(jnp.int32)
    warm = draws.temperature >= COLDEST

    def draw() -> jax.Array:
        wide = logits.astype(jnp.float32)
        scaled = (wide - wide.max(-1, keepdims=True)) / jnp.where(warm, draws.temperature, 1)[:, None]
        some = ((draws.top_k > 0) | (draws.top_p < 1)).any()
        kept = lax.cond(some, lambda: limited(scaled, draws.top_k, draws.top_p), lambda: scaled)
        return jnp.where(warm, _drawn(kept, draws.keys, numbers), greedy)

    return lax.cond(warm.any(), draw, lambda: greedy)


def penalised(logits: jax.Array, draws: Draws, seen: Seen) -> jax.Array:
    """logits [B, V] after the penalties."""

    def row(logits, tokens, begins, repetition, presence, frequency):
        there = jnp.where(tokens < 0, len(logits), tokens)
        stands = jnp.zeros(len(logits), bool).at[there].set(True, mode="drop")
        own = (jnp.arange(len(tokens)) >= begins).astype(jnp.int32)
        times = jnp.zeros(len(logits), jnp.int32).at[there].add(own, mode="drop")
        logits = jnp.where(stands, jnp.where(logits < 0, logits * repetition, logits / repetition), logits)
        return logits - (presence * (times > 0) + frequency * times).astype(logits.dtype)

    return jax.vmap(row)(logits, *seen, draws.repetition, draws.presence, draws.frequency)


def limited(logits: jax.Array, top_k: jax.Array, top_p: jax.Array) -> jax.Array:
    """float32 logits [B, V] with -inf for what top_k and top_p [B] leave out.

    Sorting a vocabulary takes a CPU longer than the rest of a step. What is looked for is a threshold, and its bits are
    found one by one.
    """
    ranks = _ranks(logits)
    V = logits.shape[-1]
    wanted = jnp.where(top_k > 0, jnp.minimum(top_k, V), V).astype(jnp.float32)
    lowest = _threshold(ranks, jnp.ones_like(logits), wanted)
    logits = jnp.where(ranks >= lowest[:, None], logits, -jnp.inf)
    lowest = _threshold(ranks, jax.nn.softmax(logits, axis=-1), top_p)
    return jnp.where((ranks >= lowest[:, None]) | (top_p >= 1)[:, None], logits, -jnp.inf)


def _ranks(x: jax.Array) -> jax.Array:
    """uint32 that compare as the float32 x do."""
    bits = lax.bitcast_convert_type(x, jnp.uint32)
    return jnp.where(bits >> 31 == 1, ~bits, bits | jnp.uint32(1 << 31))


def _threshold(ranks: jax.Array, weights: jax.Array, wanted: jax.Array) -> jax.Array:
    """uint32 [B], the highest rank for which the weights [B, V] of it and those above add up to `wanted` [B]."""

    def bit(n: jax.Array, found: jax.Array) -> jax.Array:
        higher = found | (jnp.uint32(1 << 31) >> n.astype(jnp.uint32))
        enough = jnp.where(ranks >= higher[:, None], weights, 0).sum(-1) >= wanted
        return jnp.where(enough, higher, found)

    return lax.fori_loop(0, 32, bit, jnp.zeros(len(ranks), jnp.uint32))


def _drawn(logits: jax.Array, keys: jax.Array, numbers: jax.Array) -> jax.Array:
    """One token of each row by the inverse of the distribution: a single random number, and sums of two levels."""
    B, V = logits.shape
    weights = jnp.exp(logits - logits.max(-1, keepdims=True))
    blocks = jnp.pad(weights, ((0, 0), (0, -V % BLOCK))).reshape(B, -1, BLOCK)
    sums = jnp.cumsum(blocks.sum(-1), axis=-1)

    def one(key: jax.Array, number: jax.Array) -> jax.Array:
        return jax.random.uniform(jax.random.fold_in(jax.random.wrap_key_data(key), number))

    aim = jax.vmap(one)(keys, numbers) * sums[:, -1]
    n = _first_above(sums, aim, blocks.max(-1))
    own = jnp.take_along_axis(blocks, n[:, None, None], axis=1)[:, 0]
    before = jnp.take_along_axis(sums, n[:, None], axis=1)[:, 0] - own.sum(-1)
    return (n * BLOCK + _first_above(before[:, None] + jnp.cumsum(own, axis=-1), aim, own)).astype(jnp.int32)


def _first_above(sums: jax.Array, aim: jax.Array, weights: jax.Array) -> jax.Array:
    """The first of the running sums [B, M] above `aim` [B] that has a weight; if rounding leaves none, the largest."""
    above = (sums > aim[:, None]) & (weights > 0)
    return jnp.where(above.any(-1), above.argmax(-1), weights.argmax(-1))


class Alternatives(NamedTuple):
    """Log-probabilities in nats of the model's own distribution, before penalties and temperature.

    `token`: float [B], of the chosen one. `ids`: int32 [B, n], of the most likely ones in descending order, and
    `logprobs` float [B, n].
    """

    token: jax.Array
    ids: jax.Array
    logprobs: jax.Array


def alternatives(logits: jax.Array, tokens: jax.Array, count: int) -> Alternatives:
    """Those of the tokens [B] chosen from logits [B, V], and of the `count` most likely."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    wide = wide - jax.nn.logsumexp(wide, axis=-1, keepdims=True)
    best, ids = lax.top_k(wide, count)
    return Alternatives(jnp.take_along_axis(wide, tokens[:, None], axis=-1)[:, 0], ids.astype(jnp.int32), best)
