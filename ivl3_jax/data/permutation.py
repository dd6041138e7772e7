"""A keyed permutation of 0 .. n - 1 that is computed at one place at a time, so that no order is ever stored."""

from functools import lru_cache

import numpy as np

ROUNDS = 6
MASK = (1 << 64) - 1


def permuted(place: int, count: int, seed: int, *key: int) -> int:
    """The element at `place` of a permutation of range(count) that follows from (seed, *key).

    A balanced Feistel network over the smallest even number of bits that hold count - 1, walked until the result is in
    range (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002): at most four times on average.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)
    mask, rounds = (1 << half) - 1, _rounds(seed, *key)
    while True:
        left, right = place >> half, place & mask
        for secret in rounds:
            left, right = right, left ^ (_finalised(secret + right) & mask)
        place = left << half | right
        if place < count:
            return place


@lru_cache(maxsize=1024)
def _rounds(seed: int, *key: int) -> tuple[int, ...]:
    return tuple(mixed(seed, *key, number) for number in range(ROUNDS))


def mixed(*values: int) -> int:
    """64 bits that depend on all values and their order: the finaliser of SplitMix64 (Steele et al. 2014), chained."""
    state = 0
    for value in values:
        state = _finalised(state + value + 0x9E3779B97F4A7C15)
    return state


def _finalised(value: int) -> int:
    value &= MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def generator(seed: int, *key: int) -> np.random.Generator:
    """A random generator that follows from (seed, *key)."""
    return np.random.Generator(np.random.Philox(key=[mixed(seed, *key), mixed(*key, seed)]))
