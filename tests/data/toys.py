"""A source of made-up samples, in memory, that pickles."""

from dataclasses import dataclass

import numpy as np

from ivl3_jax.data import Encoder, Message, Pair, Sample
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.mixture import Mixture
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.stream import Feed, Part
from tests.data.pictures import picture


@dataclass(frozen=True)
class Toys:
    """Sample i answers with its number, more or less at length; some have pictures, some are pairs, some are bad."""

    name: str
    count: int
    pictures: int = 3  # every so many-th sample has one
    pairs: int = 0
    bad: int = 0
    number: int = 0

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        where = f"{self.name}:{index + 1}"
        if self.bad and index % self.bad == min(1, self.bad - 1):
            raise Fault("line", f"{where}: is bad")
        rng = np.random.default_rng(index)
        images = ()
        if self.pictures and index % self.pictures == 0:
            images = (picture(*(int(side) for side in rng.integers(20, 200, 2)), index),)
        answer = f"{index:05d}" + "x" * int(rng.integers(0, 40))
        if self.pairs and index % self.pairs == 0:
            return Pair((Message("user", "Which?"),), answer, "no", images, source=self.number, where=where)
        return Sample(
            (Message("user", "Which?"), Message("assistant", answer)), images, source=self.number, where=where
        )


@dataclass(frozen=True)
class Listed:
    """Given samples."""

    samples: tuple[Sample, ...]
    name: str = "listed"

    def __len__(self):
        return len(self.samples)

    def __getitem__(self, index):
        return self.samples[index]


def feed(processor, *sources, streams=4, seed=0, budget=(200, 8, 8), exhausted="repeat", **settings):
    """A feed of sources drawn by their lengths."""
    room = Budget(*budget)
    encoder = settings.pop("encoder", None) or Encoder(processor, room.tokens, room.tiles)
    lengths = tuple(map(len, sources))
    mixture = Mixture(lengths, lengths, streams, seed, exhausted=exhausted)
    return Feed([Part(source, encoder) for source in sources], mixture, room, **settings)
