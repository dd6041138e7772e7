"""The clock: what counts as a step's time, and what as time well spent."""

import numpy as np
import pytest

from ivl3_jax.training import progress
from ivl3_jax.training.progress import Clock
from ivl3_jax.training.step import Metrics


class Time:
    """A clock that moves when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(progress.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(progress.time, "time", lambda: self.now)

    def passes(self, seconds):
        self.now += seconds


@pytest.fixture
def time(monkeypatch):
    return Time(monkeypatch)


def metrics(applied=True, positions=100):
    numbers = [np.array(n) for n in (positions, positions, 5000, 2, 3)]
    groups = np.zeros((2, 1)), np.zeros((2, 2))
    return Metrics(np.array(1.5), {}, np.array(1.0), np.array(applied), *numbers, *groups)


def clock(time, productive=0.0):
    operations = lambda **counts: 1000.0  # noqa: E731
    return Clock(100, lambda step: 0.1, operations, 2000.0, ("data",), began=time.now, productive=productive)


def test_compilation_is_no_step_time(time):
    told = clock(time)
    time.passes(60)
    first = told.add(1, metrics())()
    assert first.step_seconds == 60 and told.productive == 0
    for step in (2, 3):
        time.passes(2)
        report = told.add(step, metrics())
    last = report()
    assert last.step_seconds == 2 and last.positions_per_second == 50 and last.mfu == 0.25
    assert last.seconds == 64 and told.productive == 4 and last.goodput == 4 / 64


def test_looking_and_saving_are_no_step_time_and_not_productive(time):
    told = clock(time)
    told.add(1, metrics())()
    time.passes(2)
    with told.aside():
        time.passes(30)
    last = told.add(2, metrics())()
    assert last.step_seconds == 2 and last.mfu == 0.25 and told.productive == 2
    assert last.goodput == 2 / 32


def test_waiting_is_a_share_of_step_time(time):
    told = clock(time)
    told.add(1, metrics())()
    told.waited(1.0)
    time.passes(4)
    assert told.add(2, metrics())().waited == 0.25


def test_steps_that_are_settled_together_share_their_time(time):
    told = clock(time)
    told.add(1, metrics())()
    time.passes(4)
    told.add(2, metrics())()
    last = told.add(3, metrics())()
    assert last.step_seconds == pytest.approx(2) and last.positions_per_second == pytest.approx(50)


def test_steps_that_are_not_applied_are_not_productive(time):
    told = clock(time, productive=10.0)
    told.add(1, metrics())()
    for step in (2, 3):
        time.passes(2)
        report = told.add(step, metrics(applied=step == 3))
    report()
    assert told.productive == 12
