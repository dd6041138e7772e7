"""How a row whose positions are sharded attends, and in which order the shards hold its positions."""

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import jax.numpy as jnp

ATTENTION = ("gather", "all_to_all", "ring")
ORDERS = ("plain", "zigzag")


@dataclass(frozen=True)
class Context:
    """The plan's choice for the decoder where its `sequence` is sharded, over C shards.

    Attributes:
        attention: `gather`: every shard gathers the keys and values of the whole row. `all_to_all`: shards of positions
            become shards of heads around attention (DeepSpeed-Ulysses, Jacobs et al. 2023). `ring`: keys and values
            travel round the shards (Liu et al. 2023).
        order: `plain`: shard r holds the r-th of C chunks. `zigzag`: of 2 C chunks it holds those numbered r and
            2 C - 1 - r, so that all shards have the same work under a causal mask.
    """

    attention: str = "gather"
    order: str = "plain"


GATHER = Context()


def zigzag(shards: int) -> tuple[int, ...]:
    """The numbers of a row's chunks in the order in which `shards` shards hold them, two each."""
    return tuple(chunk for shard in range(shards) for chunk in (shard, 2 * shards - 1 - shard))


def reordered(x: jax.Array, chunks: Sequence[int]) -> jax.Array:
    """x [B, S, ...] with its `len(chunks)` equal chunks of positions in this order; S is not sharded."""
    if len(chunks) == 1:
        return x
    every = jnp.split(x, len(chunks), axis=1)
    return jnp.concatenate([every[chunk] for chunk in chunks], axis=1)


def inverse(chunks: Sequence[int]) -> tuple[int, ...]:
    """The order that undoes `chunks`."""
    return tuple(sorted(range(len(chunks)), key=chunks.__getitem__))
