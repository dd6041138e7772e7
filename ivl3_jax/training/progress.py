"""What is known after a step, and the clock that measures it."""

import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import jax

from ivl3_jax.training.step import KINDS, Metrics

WINDOW = 16  # reports: those of steps whose results are waited for one behind the other differ much by themselves


@dataclass(frozen=True)
class Progress:
    """What is known after a step.

    Attributes:
        step: steps done, from 1. steps: of the whole run. loss: of the step's batch, in nats.
        applied: whether the step was, see `TrainConfig.on_bad_step`.
        tokens: trained positions, positions: positions without padding, tiles: shown tiles, segments: of this batch.
        learning_rate, grad_norm: of this step; the norm is that before clipping.
        seconds: since the first step of this process began, compilation included.
        step_seconds: a step's, mean over the last `WINDOW` reports, saving and evaluations left out.
        waited: the share of them spent waiting for data. positions_per_second, tiles_per_second: likewise.
        mfu: operations of the model a second over the devices' peak, likewise; None for unknown devices.
        goodput: the share of the time since the run was first started in which steps were made that are in it; less by
            compilation, interruptions and what was lost in them.
        parts: of the loss, by name. sources, kinds: mean losses by source of data and by kind of segment.
    """

    step: int
    steps: int
    loss: float
    applied: bool
    tokens: int
    positions: int
    tiles: int
    segments: int
    learning_rate: float
    grad_norm: float
    seconds: float
    step_seconds: float
    waited: float
    positions_per_second: float
    tiles_per_second: float
    mfu: float | None
    goodput: float
    parts: Mapping[str, float] = field(default_factory=dict)
    sources: Mapping[str, float] = field(default_factory=dict)
    kinds: Mapping[str, float] = field(default_factory=dict)


class Clock:
    """Turns the metrics of each step into `Progress`."""

    def __init__(
        self,
        steps: int,
        learning_rate: Callable[[int], float],
        flops: Callable[..., float],
        peak: float | None,
        sources: Sequence[str],
        *,
        began: float,
        productive: float,
    ) -> None:
        """Starts.

        Args:
            flops: operations of a step, see `StepFlops`. peak: operations a second. sources: names of data sources.
            began: time.time() when the run was first started. productive: seconds of steps that are already in it.
        """
        self._steps, self._learning_rate = steps, learning_rate
        self._flops, self._peak, self._sources = flops, peak, sources
        self._began, self.productive = began, productive
        self._first = time.perf_counter()
        self._warm = False
        self._recent: deque[_Interval] = deque(maxlen=WINDOW)
        self._now = _Interval(self._first)

    def waited(self, seconds: float) -> None:
        """Counts time in which the step had no data."""
        self._now.waited += seconds

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Leaves the time within out of that of steps: evaluations, saving."""
        began = time.perf_counter()
        try:
            yield
        finally:
            self._now.aside += time.perf_counter() - began

    def add(self, step: int, metrics: Metrics) -> Callable[[], Progress]:
        """Counts a step, whose metrics are waited for; returns what to call for its report, which starts the next."""
        found: Metrics = jax.device_get(metrics)
        now = self._now
        now.steps += 1
        now.applied += int(found.applied)
        now.positions += int(found.positions)
        now.tiles += int(found.tiles)
        counts = {name: float(getattr(found, name)) for name in ("positions", "tokens", "attended", "tiles")}
        now.operations += self._flops(**counts)
        if not self._warm:  # mostly compilation: an interval of its own, which the later ones forget
            self._warm = True
            self._close()
            progress = self._report(step, found)
            self._recent.clear()
            return lambda: progress
        return lambda: self._end(step, found)

    def _end(self, step: int, found: Metrics) -> Progress:
        interval = self._close()
        self.productive += interval.seconds * interval.applied / interval.steps
        return self._report(step, found)

    def _close(self) -> "_Interval":
        """Ends the present interval, and begins the next."""
        ended, self._now = self._now, _Interval(time.perf_counter())
        ended.seconds = max(self._now.began - ended.began - ended.aside, 1e-9)
        self._recent.append(ended)
        return ended

    def _report(self, step: int, found: Metrics) -> Progress:
        def recent(name: str) -> float:
            return sum(getattr(one, name) for one in self._recent)

        seconds = recent("seconds")
        return Progress(
            step,
            self._steps,
            float(found.loss),
            bool(found.applied),
            int(found.tokens),
            int(found.positions),
            int(found.tiles),
            int(found.segments),
            self._learning_rate(step - 1),
            float(found.grad_norm),
            self._now.began - self._first,
            seconds / recent("steps"),
            min(1.0, recent("waited") / seconds),
            recent("positions") / seconds,
            recent("tiles") / seconds,
            None if self._peak is None else recent("operations") / seconds / self._peak,
            min(1.0, self.productive / max(time.time() - self._began, 1e-9)),
            {name: float(part) for name, part in found.parts.items()},
            _means(self._sources, found.by_source),
            _means(KINDS, found.by_kind),
        )


@dataclass
class _Interval:
    """What happened from one report to the next; `began` by time.perf_counter, `seconds` without those aside."""

    began: float
    seconds: float = 0.0
    aside: float = 0.0
    waited: float = 0.0
    steps: int = 0
    applied: int = 0
    positions: int = 0
    tiles: int = 0
    operations: float = 0.0


def _means(names: Sequence[str], sums) -> dict[str, float]:
    """Mean losses of the groups that occur."""
    return {name: float(loss / weight) for name, loss, weight in zip(names, *sums, strict=True) if weight > 0}
