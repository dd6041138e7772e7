"""What is known after a step, and the clock that measures it."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import jax

from ivl3_jax.training.step import KINDS, Metrics


@dataclass(frozen=True)
class Progress:
    """What is known after a step.

    Attributes:
        step: steps done, from 1. steps: of the whole run. loss: of the step's batch, in nats.
        applied: whether the step was, see `TrainConfig.on_bad_step`.
        tokens: trained positions, positions: positions without padding, tiles: shown tiles, segments: of this batch.
        learning_rate, grad_norm: of this step; the norm is that before clipping.
        seconds: since the first step of this process began, compilation included.
        step_seconds: a step's, mean since the last report. waited: the share of them spent waiting for data.
        positions_per_second, tiles_per_second: likewise. mfu: operations of the model a second over the devices' peak,
            None for unknown devices.
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
        self._steps, self._learning_rate, self._flops, self._peak, self._sources = (
            steps,
            learning_rate,
            flops,
            peak,
            sources,
        )
        self._began, self.productive = began, productive
        self._first = self._last = time.perf_counter()
        self._compiled = False
        self._aside, self._waited, self._positions, self._tiles, self._operations, self._count = 0.0, 0.0, 0, 0, 0.0, 0

    def waited(self, seconds: float) -> None:
        """Counts time in which the step had no data."""
        self._waited += seconds

    def aside(self, seconds: float) -> None:
        """Counts time that was spent on something else than steps: evaluations, saving."""
        self._aside += seconds

    def add(self, step: int, metrics: Metrics) -> Callable[[], Progress]:
        """Counts a step, whose metrics are waited for; returns what to call for its report, which starts the next."""
        found: Metrics = jax.device_get(metrics)
        self._count += 1
        self._positions += int(found.positions)
        self._tiles += int(found.tiles)
        counts = {name: float(getattr(found, name)) for name in ("positions", "tokens", "attended", "tiles")}
        self._operations += self._flops(**counts)
        return lambda: self._report(step, found)

    def _report(self, step: int, found: Metrics) -> Progress:
        now = time.perf_counter()
        elapsed = max(now - self._last - self._aside, 1e-9)
        if self._compiled:  # the first report's time is mostly compilation
            self.productive += elapsed
        self._compiled = True
        rate = self._operations / elapsed
        progress = Progress(
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
            now - self._first,
            elapsed / self._count,
            min(1.0, self._waited / elapsed),
            self._positions / elapsed,
            self._tiles / elapsed,
            None if self._peak is None else rate / self._peak,
            min(1.0, self.productive / max(time.time() - self._began, 1e-9)),
            {name: float(part) for name, part in found.parts.items()},
            _means(self._sources, found.by_source),
            _means(KINDS, found.by_kind),
        )
        self._last, self._aside = now, 0.0
        self._waited, self._positions, self._tiles, self._operations, self._count = 0.0, 0, 0, 0.0, 0
        return progress


def _means(names: Sequence[str], sums) -> dict[str, float]:
    """Mean losses of the groups that occur."""
    return {name: float(loss / weight) for name, loss, weight in zip(names, *sums, strict=True) if weight > 0}
