"""Choosing the next token."""

import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn.

    Attributes:
        temperature: 0 takes the most likely token (greedy).
        top_k: only the k most likely tokens can be drawn; 0 means all.
        top_p: only the smallest set of most likely tokens whose probability reaches p can be drawn.
        seed: of the draws, below 2**63. The same seed, prompt and model give the same answer.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; it must be at least 0 (0 is greedy) and finite")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; it must be at least 0 (0 is all tokens)")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; it must be above 0 and at most 1")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must be at least 0 and below 2**63")


GREEDY = Sampling()


def choose(logits: jax.Array, sampling: Sampling, key: jax.Array) -> jax.Array:
    """The next token of each row, int32 [B], from logits [B, V].

    Top-k is applied before top-p, both after the temperature, as transformers does. `key` is folded with the row.
    """
    if sampling.temperature == 0:
        return logits.argmax(-1).astype(jnp.int32)
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32)) / sampling.temperature
    if sampling.top_k or sampling.top_p < 1:
        # In descending order both limits are prefixes; rank 0 is always kept.
        order = jnp.argsort(-logits, axis=-1)
        ranked = jnp.take_along_axis(logits, order, axis=-1)
        rank = jnp.arange(logits.shape[-1])
        if sampling.top_k:
            ranked = jnp.where(rank < min(sampling.top_k, rank.size), ranked, -jnp.inf)
        probabilities = jax.nn.softmax(ranked, axis=-1)
        before = jnp.cumsum(probabilities, axis=-1) - probabilities
        ranked = jnp.where((before < sampling.top_p) | (rank == 0), ranked, -jnp.inf)
        places = _draw(ranked, key)
        return jnp.take_along_axis(order, places[:, None], axis=-1)[:, 0].astype(jnp.int32)
    return _draw(logits, key)


def _draw(logits: jax.Array, key: jax.Array) -> jax.Array:
    keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(jnp.arange(logits.shape[0]))
    return jax.vmap(jax.random.categorical)(keys, logits).astype(jnp.int32)
