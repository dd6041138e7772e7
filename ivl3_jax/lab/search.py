"""Compiling the promising plans of a slice, one process each, and ranking what came of them."""

import concurrent.futures
import multiprocessing
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.case import Case
from ivl3_jax.lab.prediction import Prediction, compile_case, predict
from ivl3_jax.lab.store import Store


@dataclass(frozen=True)
class Tried:
    """What came of a case: a prediction, or the reason why there is none."""

    case: Case
    prediction: Prediction | None
    failure: str | None = None
    seconds: float = 0.0
    known: bool = False


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

    def take(case: Case, failure: str | None, known: bool) -> None:
        compiled = store.find(case) if failure is None else None
        found = None if compiled is None else predict(case, compiled, calibration)
        seconds = 0.0 if compiled is None else compiled.trace_seconds + compiled.compile_seconds
        tried.append(Tried(case, found, failure, seconds, known))
        tell(tried[-1], len(tried), len(cases))

    waiting = []
    for case in cases:
        if store.find(case) is None:
            waiting.append(case)
        else:
            take(case, None, True)
    # A process for each: the compiler may end the one that it runs in, and gives memory back only at its end.
    context = multiprocessing.get_context("spawn")
    pending: dict[concurrent.futures.Future, tuple[Case, concurrent.futures.ProcessPoolExecutor]] = {}
    try:
        while waiting or pending:
            while waiting and len(pending) < jobs:
                pool = concurrent.futures.ProcessPoolExecutor(1, mp_context=context)
                case = waiting.pop(0)
                pending[pool.submit(_compile, case, store)] = case, pool
            done, _ = concurrent.futures.wait(pending, return_when=concurrent.futures.FIRST_COMPLETED)
            for future in done:
                case, pool = pending.pop(future)
                take(case, _failure(future), False)
                pool.shutdown()
    except BaseException:
        for process in multiprocessing.active_children():
            process.terminate()
        raise
    return sorted(tried, key=_order)


def _compile(case: Case, store: Store) -> None:
    store.keep(case, compile_case(case))


def _failure(future: concurrent.futures.Future) -> str | None:
    try:
        future.result()
    except concurrent.futures.process.BrokenProcessPool:
        return "the compiler ended its process"
    except ValueError as error:
        return " ".join(str(error).split())[:600]
    return None


def _order(tried: Tried) -> tuple[int, float]:
    if tried.prediction is None or tried.prediction.rate is None:
        return 2, 0.0
    return (0 if tried.prediction.fits else 1), -tried.prediction.rate
