"""The batches of a host: one row of each of its streams, made by worker processes, and a state to go on from."""

import contextlib
import ctypes
import multiprocessing
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Self

import grain
import numpy as np
from absl import flags

from ivl3_jax.batch import Batch
from ivl3_jax.data.collate import collate
from ivl3_jax.data.faults import Skip
from ivl3_jax.data.prefetch import prefetch
from ivl3_jax.data.stream import Feed, Stream, StreamState

States = Mapping[int, StreamState]

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of mallopt(3), bytes: from which on memory is mapped, and how much is kept


class Step(NamedTuple):
    """What a process makes of its streams for one batch: their rows, the states after them, what was left out."""

    streams: list[int]
    rows: Batch
    states: list[dict[str, Any]]
    skips: list[Skip]


class Loader:
    """Iterates over batches of numpy arrays, [len(streams), ...].

    Row r of the global batch is stream r of the mixture, so neither the number of hosts nor that of workers changes any
    row. `state` after a batch, or the union of all hosts' states, begins a loader that goes on with the next one.
    """

    def __init__(
        self,
        feed: Feed,
        *,
        streams: Sequence[int] | None = None,
        workers: int = 0,
        ahead: int = 2,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        """Starts the workers.

        Args:
            feed: the same on all hosts.
            streams: those whose rows this host makes, ascending, see `share`; None for all.
            workers: processes that read; 0 reads in a thread of this one. More than there are streams are not started.
            ahead: batches that are made before they are asked for; with workers 2 · ahead + 2, since several queues of
                grain lie between.
            state: of an earlier loader of the same feed, with whatever streams and number of workers.

        Raises:
            ValueError: there are no such streams, or the state is not of this feed.
        """
        for name, value, least in (("workers", workers, 0), ("ahead", ahead, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        streams = _checked(feed, streams)
        self._states = _restored(streams, feed, state)
        self.skipped: Counter[str] = Counter()
        self._identity = identity(feed)
        self._skips: list[Skip] = []
        steps = _Steps(feed, streams, self._states)
        self._workers = min(workers, len(streams))
        if self._workers:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # grain reads its own, also where no absl program is running
            options = grain.MultiprocessingOptions(num_workers=self._workers, per_worker_buffer_size=ahead)
            self._steps: Iterator[Step] = iter(steps.mp_prefetch(options, worker_init_fn=_begin_worker))
        else:
            self._steps = prefetch(iter(steps), ahead)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Batch:
        """The next batch.

        Raises:
            Fault, ValueError: as `Stream.row`. StopIteration: all streams have ended.
        """
        parts = [next(self._steps) for _ in range(max(1, self._workers))]
        for part in parts:
            self._states.update(zip(part.streams, map(StreamState.from_json, part.states), strict=True))
            self._skips += part.skips
            self.skipped.update(skip.reason for skip in part.skips)
        if all(state.ended for state in self._states.values()):
            self.close()
            raise StopIteration
        return parts[0].rows if len(parts) == 1 else _joined(parts)

    @property
    def state(self) -> dict[str, Any]:
        """Where this host's streams are after the last batch, in JSON's types; a few kilobytes a stream."""
        streams = {str(stream): state.to_json() for stream, state in self._states.items()}
        return {"of": self._identity, "streams": streams}

    def take_skips(self) -> list[Skip]:
        """The samples left out of the batches since the last call."""
        skips, self._skips = self._skips, []
        return skips

    def close(self) -> None:
        """Ends the workers; there are no further batches."""
        close = getattr(self._steps, "close", None)
        if close is not None:
            close()
        self._steps = iter(())  # grain's iterators complain if they outlive its modules


def _joined(parts: Sequence[Step]) -> Batch:
    """The rows of all parts in the order of their streams."""
    streams = np.concatenate([part.streams for part in parts])
    batch = Batch(*(np.empty((len(streams), *array.shape[1:]), array.dtype) for array in parts[0].rows))
    for part in parts:
        places = np.array(part.streams) - streams.min()  # a host has all from its first on
        for whole, array in zip(batch, part.rows, strict=True):
            whole[places] = array
    return batch


def identity(feed: Feed) -> dict[str, Any]:
    """What a state depends on, in JSON's types: a state can only be restored where all of it is the same."""
    mixture, budget = feed.mixture, feed.budget
    return {
        "sources": [[part.source.name, length] for part, length in zip(feed.parts, mixture.lengths, strict=True)],
        "weights": [round(weight / sum(mixture.weights), 12) for weight in mixture.weights],
        "streams": mixture.streams,
        "seed": mixture.seed,
        "exhausted": mixture.exhausted,
        "passes": list(mixture.passes),
        "budget": [budget.tokens, budget.tiles, budget.segments],
        "lookahead": feed.lookahead,
    }


def share(streams: int, host: int, hosts: int) -> range:
    """The streams of host number `host` of `hosts`, where each has as many, one after the other.

    Raises:
        ValueError: the hosts do not divide the streams, or there is no such host.
    """
    if hosts < 1 or streams % hosts:
        divisors = [n for n in range(1, streams + 1) if streams % n == 0]
        raise ValueError(f"there are {streams} rows in a batch and {hosts} hosts; the hosts must be one of {divisors}")
    if not 0 <= host < hosts:
        raise ValueError(f"the host is number {host} of {hosts}; it must lie in 0..{hosts - 1}")
    each = streams // hosts
    return range(host * each, (host + 1) * each)


def _checked(feed: Feed, streams: Sequence[int] | None) -> list[int]:
    count = feed.mixture.streams
    chosen = list(range(count) if streams is None else streams)
    if not chosen or sorted(set(chosen)) != chosen or not 0 <= chosen[0] <= chosen[-1] < count:
        raise ValueError(f"the streams are {chosen}; they must be ascending and lie in 0..{count - 1}")
    if len(chosen) < count and feed.mixture.exhausted == "drop":
        raise ValueError(
            "exhausted sources are dropped, so that the hosts' data would end at different steps; repeat them"
        )
    return chosen


def _restored(streams: Sequence[int], feed: Feed, state: Mapping[str, Any] | None) -> dict[int, StreamState]:
    if state is None:
        return {stream: StreamState() for stream in streams}
    if not {"of", "streams"} <= set(state):
        raise ValueError(f"the data's state has the keys {sorted(state)}; Loader.state has 'of' and 'streams'")
    ours, theirs = identity(feed), state["of"]
    for name, value in ours.items():
        if theirs.get(name) != value:
            raise ValueError(
                f"the data's state is of another feed: its {name} is {theirs.get(name)}, here it is {value}"
            )
    missing = [stream for stream in streams if str(stream) not in state["streams"]]
    if missing:
        raise ValueError(f"the data's state lacks the streams {missing[:8]}; it must have those of all hosts")
    return {stream: StreamState.from_json(state["streams"][str(stream)]) for stream in streams}


class _Steps(grain.IterDataset):
    """Step after step of some streams. A worker gets every n-th of them, through `set_slice`."""

    def __init__(self, feed: Feed, streams: Sequence[int], states: States) -> None:
        super().__init__()
        self._feed, self._streams, self._states = feed, list(streams), dict(states)

    def set_slice(self, sl: slice, sequential_slice: bool = False) -> None:
        """Keeps a part of the streams."""
        self._streams = self._streams[sl]

    def __iter__(self) -> "_StepIterator":
        return _StepIterator(self._feed, self._streams, self._states)


class _StepIterator(grain.DatasetIterator):
    def __init__(self, feed: Feed, streams: Sequence[int], states: States) -> None:
        super().__init__()
        self._feed, self._numbers = feed, list(streams)
        self._streams = [Stream(feed, number, states[number]) for number in streams]

    def __next__(self) -> Step:
        rows = [stream.row() for stream in self._streams]
        budget = self._feed.budget
        shape = budget.tokens, budget.tiles, budget.segments
        batch = collate(self._feed.parts[0].encoder.processor, rows, *shape, self._feed.weighting)
        states = [stream.state.to_json() for stream in self._streams]
        skips = [skip for stream in self._streams for skip in stream.take_skips()]
        return Step(self._numbers, batch, states, skips)

    def get_state(self) -> dict:
        """Nothing: states go along with each step, so that they fit any number of workers."""
        return {}

    def set_state(self, state: dict) -> None:
        """See `get_state`."""


def _begin_worker(number: int, count: int) -> None:
    os.environ["JAX_PLATFORMS"] = "cpu"  # grain imports jax; the accelerator belongs to the main process
    _keep_memory()
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _keep_memory() -> None:
    """Lets glibc keep what is freed: every image takes as much again, and each page given back is a fault later."""
    with contextlib.suppress(OSError, AttributeError):  # there is another C library
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(TRIM_THRESHOLD, 256 << 20)


def _end_with_parent() -> None:
    """Ends a worker whose parent was killed; it would wait for ever, with its memory."""
    parent = multiprocessing.parent_process()
    assert parent is not None  # this runs in workers
    parent.join()
    os._exit(1)
