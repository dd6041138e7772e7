"""What is asked of the engine, and what it tells."""

import numbers
import queue
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.inference.pages import digest
from ivl3_jax.inference.sampling import GREEDY, Sampling

Finish = Literal["stop", "length", "cancelled"]
MOST_LOGPROBS = 20


class NoRoom(ValueError):
    """There is no memory for a cache that takes a request."""


@dataclass(frozen=True)
class Limits:
    """What an engine has room for.

    Attributes:
        rows: answers that are generated at once.
        positions: of the cache, of all rows together; None begins with 8,192 and doubles when more are needed.
        page: positions of a page, a multiple of 16: beginnings are shared in whole pages.
        piece: positions of prompts that are computed between two steps, a power of two times `page`.
        tiles: whose visual tokens are kept. tiles_at_once: that are encoded together.

    Raises:
        ValueError: a number is none, or not of this kind.
    """

    rows: int = 64
    positions: int | None = None
    page: int = 64
    piece: int = 512
    tiles: int = 64
    tiles_at_once: int = 4

    def __post_init__(self) -> None:
        for name in ("rows", "page", "piece", "tiles", "tiles_at_once"):
            whole_number(name, getattr(self, name), least=1)
        if self.positions is not None:
            whole_number("positions", self.positions, least=1)
        if self.page % 16:
            raise ValueError(f"page is {self.page}; it must be a multiple of 16")
        times, rest = divmod(self.piece, self.page)
        if rest or times & (times - 1):
            raise ValueError(f"piece is {self.piece}; it must be {self.page}, the page, times a power of two")


@dataclass(frozen=True)
class Weighed:
    """Tokens that are weighed against one another behind some places of a prompt.

    Attributes:
        places: of the prompt, in ascending order; what is weighed follows them. tokens: their ids.

    Raises:
        ValueError: there is no place or no token, or the places do not ascend.
    """

    places: tuple[int, ...]
    tokens: tuple[int, ...]

    def __post_init__(self) -> None:
        if not self.places or not self.tokens:
            raise ValueError(f"places are {self.places} and tokens {self.tokens}; there must be at least one of each")
        if any(a >= b for a, b in pairwise((-1, *self.places))):
            raise ValueError(f"places are {self.places}; they must ascend from 0 or later")


@dataclass(frozen=True)
class Request:
    """A prompt that is to be continued.

    Attributes:
        prompt: its tokens, tiles and positions; an answer's positions follow in steps of 1.
        max_new_tokens: of each answer; 0 only where something is weighed.
        sampling: how they are drawn.
        samples: how many answers; the prompt is prefilled once for all of them. They are numbered from `first_sample`,
            which their draws depend on.
        stop: ids of tokens that end an answer.
        logprobs: how many of the most likely tokens are told with each token, at most `MOST_LOGPROBS`; None tells of
            none, and 0 of the chosen token alone.
        weighed: what is told of the prompt itself, see `Ticket.weights`.
    """

    prompt: Encoded
    max_new_tokens: int
    sampling: Sampling = GREEDY
    samples: int = 1
    first_sample: int = 0
    stop: frozenset[int] = frozenset()
    logprobs: int | None = None
    weighed: Weighed | None = None


@dataclass(frozen=True)
class Said:
    """A token of an answer, or its end.

    Attributes:
        sample: the number of the answer, from 0.
        token: the id; None at the end. A token that ends an answer is not told.
        logprob: in nats, under the model's own distribution; None where it was not asked for.
        likely: ids and log-probabilities of the most likely tokens, in descending order.
        finish: why the answer ends: a stop token, its length, or because it was cancelled.
    """

    sample: int
    token: int | None = None
    logprob: float | None = None
    likely: tuple[tuple[int, float], ...] = ()
    finish: Finish | None = None


@dataclass(eq=False)
class Ticket:
    """A request that the engine has.

    Attributes:
        said: what was said and not yet taken. listener: called with it instead, in the thread that drives the engine.
        reused: tokens of the prompt that were in the cache; None until they were looked up.
        weights: float32 [places, tokens], log-probabilities of what the request weighs, in nats; a row is NaN until the
            prompt is computed up to its place.
        digests: what the prompt's tiles are known by.
        unfinished: answers that go on. unwanted: those that were cancelled.
    """

    request: Request
    listener: Callable[[Said], None] | None = None
    said: queue.SimpleQueue[Said] = field(default_factory=queue.SimpleQueue)
    reused: int | None = None
    weights: np.ndarray = field(default_factory=lambda: np.zeros((0, 0), np.float32))
    digests: list[bytes] = field(default_factory=list)
    unfinished: set[int] = field(default_factory=set)
    unwanted: set[int] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.unfinished = set(range(self.request.samples))
        self.digests = [digest(tile) for tile in self.request.prompt.tiles]
        if weighed := self.request.weighed:
            self.weights = np.full((len(weighed.places), len(weighed.tokens)), np.nan, np.float32)

    def say(self, said: Said) -> None:
        """Tells it; for the engine."""
        if self.listener is not None:
            self.listener(said)
        else:
            self.said.put(said)
        if said.finish is not None:  # behind: whoever sees that it has ended finds all that was said
            self.unfinished.discard(said.sample)

    def all_said(self) -> list[Said]:
        """What was said and not yet taken."""
        found = []
        while not self.said.empty():
            found.append(self.said.get())
        return found

    def cancel(self, sample: int | None = None) -> None:
        """Ends an answer, or all of them, before the engine's next step."""
        self.unwanted |= set(range(self.request.samples)) if sample is None else {sample}


@dataclass(eq=False)
class Row:
    """One answer of a request, on its way, with the prompt before it.

    Attributes:
        sample: its number. answer: its tokens so far.
        pages: that it has, in order. filled: positions of them that are filled.
        drawn: tokens that were drawn or are being drawn, `answer` and those that the device has not told yet.
    """

    ticket: Ticket
    sample: int
    answer: list[int] = field(default_factory=list)
    pages: list[int] = field(default_factory=list)
    filled: int = 0
    drawn: int = 0

    @property
    def wanted(self) -> bool:
        """Whether it goes on and nobody has cancelled it."""
        return self.sample in self.ticket.unfinished and self.sample not in self.ticket.unwanted

    def position(self, place: int) -> float:
        """The rope position of the place behind the prompt."""
        prompt = self.ticket.request.prompt
        return float(prompt.positions[-1]) + 1 + place - len(prompt)


def known(prompt: Encoded, answer: list[int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tokens int32 [n], positions float32 [n] and visual index int32 [n] of a prompt and what was answered."""
    n = len(answer)
    return (
        np.concatenate([prompt.tokens, np.array(answer, np.int32)]).astype(np.int32),
        np.concatenate([prompt.positions, prompt.positions[-1] + 1 + np.arange(n)]).astype(np.float32),
        np.concatenate([prompt.visual_index, np.full(n, -1)]).astype(np.int32),
    )


def whole_number(name: str, value: Any, least: int) -> int:
    """`value`, a whole number of any type, as an int; raises a ValueError with `name` unless it is at least `least`."""
    if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} is {value!r}; it must be a whole number of at least {least}")
    return int(value)
