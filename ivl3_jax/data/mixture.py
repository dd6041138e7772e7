"""Which sample a stream draws, as a pure function of (seed, stream, number of the draw)."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from ivl3_jax.data.permutation import generator, mixed, permuted

BLOCK = 1024  # draws, about
SHUFFLE, PHASE, ORDER = range(3)  # what a key is for

Exhausted = Literal["repeat", "drop"]


class Draw(NamedTuple):
    """The number of a source, that of a sample there, and how often the source was gone through before."""

    source: int
    sample: int
    epoch: int


@dataclass(frozen=True)
class Mixture:
    """Sources drawn by weight into a fixed number of streams that never meet.

    A stream's draws come in blocks. In block b source d has floor(c (b + 1) + p) - floor(c b + p) of them, c its share
    of a block and p a phase of its own in each stream, shuffled by a key; so any stretch of draws has the sources in
    proportion, and how often a source was drawn before is known without having drawn. The j-th draw of a source in
    stream v is number j · streams + v of the source as a whole, and a keyed permutation says which sample that is: all
    streams together go through a source completely before any of it comes again.

    Attributes:
        lengths: samples of each source, at least 1.
        weights: of each source, above 0; only their proportions count.
        streams: how many there are. seed: of everything.
        passes: how often each source is gone through if exhausted sources are dropped.
        exhausted: `repeat` begins a source anew in another order; `drop` goes on with the others until there are none.
    """

    lengths: tuple[int, ...]
    weights: tuple[float, ...]
    streams: int
    seed: int = 0
    passes: tuple[int, ...] = ()
    exhausted: Exhausted = "repeat"

    def __post_init__(self) -> None:
        if not self.lengths or len(self.lengths) != len(self.weights):
            raise ValueError(f"{len(self.lengths)} sources have {len(self.weights)} weights; at least one of each")
        for number, (length, weight) in enumerate(zip(self.lengths, self.weights, strict=True)):
            if length < 1:
                raise ValueError(f"source {number} has {length} samples; at least one is needed")
            if not 0 < weight < math.inf:
                raise ValueError(f"source {number} has the weight {weight}; it must be above 0 and finite")
        if not math.isfinite(sum(self.weights)):
            raise ValueError("the sum of the sources' weights is not finite; give smaller ones")
        if self.streams < 1:
            raise ValueError(f"there are {self.streams} streams; at least one is needed")
        if self.exhausted not in ("repeat", "drop"):
            raise ValueError(f"exhausted is {self.exhausted!r}; it must be repeat or drop")

    def draw(self, stream: int, number: int) -> Draw | None:
        """Draw `number` of a stream, both from 0; None if that source is used up and dropped."""
        block = self._block_of(stream, number)
        before = self._drawn(stream, block)
        source, rank = _order(self, stream, block)[number - int(before.sum())]
        whole = (int(before[source]) + rank) * self.streams + stream
        epoch, place = divmod(whole, self.lengths[source])
        if self.exhausted == "drop" and epoch >= self._passes(source):
            return None
        return Draw(source, permuted(place, self.lengths[source], self.seed, SHUFFLE, source, epoch), epoch)

    def ended(self, stream: int, number: int) -> bool:
        """Whether a stream has nothing from draw `number` on."""
        if self.exhausted == "repeat":
            return False
        before = self._drawn(stream, self._block_of(stream, number))
        return all(
            int(drawn) * self.streams + stream >= length * self._passes(source)
            for source, (drawn, length) in enumerate(zip(before, self.lengths, strict=True))
        )

    def _passes(self, source: int) -> int:
        return self.passes[source] if self.passes else 1

    def _drawn(self, stream: int, block: int) -> np.ndarray:
        """How often each source is drawn by a stream before a block, int64 [sources]."""
        share, phase = _shares(self, stream)
        return np.floor(share * block + phase).astype(np.int64)

    def _block_of(self, stream: int, number: int) -> int:
        block = max(0, number // BLOCK - 1)
        while block and self._drawn(stream, block).sum() > number:
            block -= 1
        while self._drawn(stream, block + 1).sum() <= number:
            block += 1
        return block


@lru_cache(maxsize=4096)
def _shares(mixture: Mixture, stream: int) -> tuple[np.ndarray, np.ndarray]:
    """Each source's draws in a block, and its phase in a stream, float64 [sources]."""
    weights = np.array(mixture.weights)
    phases = [mixed(mixture.seed, PHASE, stream, source) / 2**64 for source in range(len(weights))]
    return BLOCK * weights / weights.sum(), np.array(phases)


@lru_cache(maxsize=512)
def _order(mixture: Mixture, stream: int, block: int) -> list[tuple[int, int]]:
    """The sources of a block in the order of its draws, each with its number among those of its source in the block."""
    counts = mixture._drawn(stream, block + 1) - mixture._drawn(stream, block)
    sources = generator(mixture.seed, ORDER, stream, block).permutation(np.repeat(np.arange(len(counts)), counts))
    seen = [0] * len(counts)
    order = []
    for source in sources.tolist():
        order.append((source, seen[source]))
        seen[source] += 1
    return order


def weights_by(
    rule: Literal["length", "sqrt"] | Mapping[str, float],
    names: Sequence[str],
    lengths: Sequence[float],
    multimodal: Sequence[bool] = (),
    text_share: float | None = None,
    tokens: Sequence[float] = (),
) -> tuple[float, ...]:
    """The weight of each source.

    Args:
        rule: `length`, `sqrt` of the length, or the weights themselves by name.
        names, lengths: of the sources; a length counts repetitions.
        multimodal: which sources have images or videos.
        text_share: the fraction of tokens from sources that have none (0.25 in native pre-training, arXiv 2504.10479);
            None leaves the rule as it is.
        tokens: of a sample on average, by source; needed for a `text_share`.

    Raises:
        ValueError: an unknown rule or name, a source without a weight or with one of 0, or a share that cannot be had.
    """
    if isinstance(rule, Mapping):
        unknown, missing = set(rule) - set(names), [name for name in names if name not in rule]
        if unknown or missing:
            raise ValueError(
                f"weights are given for {sorted(unknown) or 'no unknown sources'} and missing for "
                f"{missing or 'none'}; the sources are {', '.join(names)}"
            )
        weights = [float(rule[name]) for name in names]
        for name, weight in zip(names, weights, strict=True):
            if not 0 < weight < math.inf:
                raise ValueError(f"the weight of {name} is {weight}; it must be above 0 and finite")
    elif rule in ("length", "sqrt"):
        weights = [float(length) ** (1.0 if rule == "length" else 0.5) for length in lengths]
    else:
        raise ValueError(f"weights are {rule!r}; they must be length, sqrt, or a number for each source")
    if text_share is None:
        return tuple(weights)
    if not 0 < text_share < 1:
        raise ValueError(f"text_share is {text_share}; it must be above 0 and below 1")
    amounts = [weight * mean for weight, mean in zip(weights, tokens, strict=True)]
    text = sum(amount for amount, has in zip(amounts, multimodal, strict=True) if not has)
    pictures = sum(amount for amount, has in zip(amounts, multimodal, strict=True) if has)
    if not text or not pictures:
        raise ValueError(f"text_share is {text_share}, but all sources are {'multimodal' if pictures else 'text'}")
    return tuple(
        weight * ((1 - text_share) / pictures if has else text_share / text)
        for weight, has in zip(weights, multimodal, strict=True)
    )
