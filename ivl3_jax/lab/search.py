"""Compiling plans, one process each, and ranking what came of them."""

import concurrent.futures
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.case import Case
from ivl3_jax.lab.prediction import Prediction, compile_case, predict
from ivl3_jax.lab.store import Store


@dataclass(frozen=True)
class Tried:
    """What came of a case: a prediction, or the error for which there is none."""

    case: Case
    prediction: Prediction | None
    error: BaseException | None = None
    seconds: float = 0.0
    known: bool = False

    @property
    def failure(self) -> str | None:
        """The error in one line."""
        error = self.error
        if error is None:
            return None
        if isinstance(error, concurrent.futures.process.BrokenProcessPool):
            return "the compiler ended its process"
        # An error that is not meant for a user, by its name too: a KeyError says no more than the key.
        told = str(error) if isinstance(error, ValueError) else f"{type(error).__name__}: {error}"
        return " ".join(told.split())[:600]


def predicted(case: Case, store: Store, calibration: Calibration | None = None) -> Prediction:
    """What is found of one case, kept or compiled now, which takes a minute or so.

    Raises:
        ValueError: it cannot be compiled, in one line.
    """
    (tried,) = search([case], store, calibration=calibration)
    if tried.prediction is None:
        raise ValueError(tried.failure) from tried.error
    return tried.prediction


def search(
    cases: Sequence[Case],
    store: Store,
    *,
    calibration: Calibration | None = None,
    jobs: int = 1,
    tell: Callable[[Tried, int, int], None] = lambda tried, number, count: None,
) -> list[Tried]:
    """Compiles cases, and returns what came of them, fastest first, those that do not fit last.

    Args:
        cases: in the order in which they are worth compiling. store: keeps what is compiled; interrupted, a search goes
            on from it. jobs: processes at a time; each takes up to 4 GiB.
        tell: is called after each case, with its number and how many there are.
    """
    tried: list[Tried] = []

    def take(found: Tried) -> None:
        tried.append(found)
        tell(found, len(tried), len(cases))

    waiting = []
    for case in cases:
        if store.find(case) is None:
            waiting.append(case)
        else:
            take(_judged(case, store, calibration, True))
    # A process for each: the compiler may end the one that it runs in, and gives memory back only at its end.
    context = multiprocessing.get_context("spawn")
    pending: dict[concurrent.futures.Future, tuple[Case, concurrent.futures.ProcessPoolExecutor]] = {}
    try:
        while waiting or pending:
            while waiting and len(pending) < jobs:
                pool = concurrent.futures.ProcessPoolExecutor(1, context, _end_with_parent)
                case = waiting.pop(0)
                with _uninterrupted():
                    pending[pool.submit(_compile, case, store)] = case, pool
            done, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                case, pool = pending.pop(future)
                error = future.exception()
                take(Tried(case, None, error) if error else _judged(case, store, calibration, False))
                pool.shutdown()
    except BaseException:
        for process in multiprocessing.active_children():
            process.kill()  # at once: the compiler would tell of a SIGTERM at length
        raise
    return sorted(tried, key=_order)


def _judged(case: Case, store: Store, calibration: Calibration | None, known: bool) -> Tried:
    """What comes of a case that is kept."""
    compiled = store.find(case)
    if compiled is None:
        return Tried(case, None, ValueError(f"what was compiled is not in {store.directory} any more"))
    seconds = compiled.trace_seconds + compiled.compile_seconds
    try:
        return Tried(case, predict(case, compiled, calibration), None, seconds, known)
    except Exception as error:  # of this case alone; the others go on
        return Tried(case, None, error, seconds, known)


@contextmanager
def _uninterrupted() -> Iterator[None]:
    """Processes that begin meanwhile do not see Ctrl-C, which is for the one that began them to answer."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Ends this process with the one that began it, however that ends: a compiler alone would go on for minutes."""

    def watch() -> None:
        if (parent := multiprocessing.parent_process()) is not None:
            parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _compile(case: Case, store: Store) -> None:
    store.keep(case, compile_case(case))


def _order(tried: Tried) -> tuple[int, float]:
    if tried.prediction is None or tried.prediction.rate is None:
        return 2, 0.0
    return (0 if tried.prediction.fits else 1), -tried.prediction.rate
