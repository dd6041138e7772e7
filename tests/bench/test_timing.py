"""Kernels by the clock: what is computed is what is compared, and what cannot be says so."""

import pytest

from ivl3_jax.bench import timing
from ivl3_jax.bench.problems import PROBLEMS, Attention, Decoding, Loss

TINY = [
    Attention("vit", 2, 129, 4, 4, 64),
    Attention("packed", 1, 200, 4, 2, 64, (90, 1, 70)),
    Loss("loss", 32, 64, 500),
    Decoding("decoding", 2, 64, 4, 2, 64),
]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "ROUNDS", 1)
    monkeypatch.setattr(timing, "PRODUCT", {"cpu": 64})


@pytest.mark.parametrize("problem", TINY, ids=lambda problem: problem.name)
def test_all_compute_the_same(problem):
    found = list(timing.measure(problem, ["xla", "oracle"]))
    parts = {"forward"} if isinstance(problem, Decoding) else {"forward", "both"}
    ours = "ours (pages)" if isinstance(problem, Decoding) else "ours (chunked)"
    assert {(one.part, one.implementation) for one in found} == {
        (part, name) for part in parts for name in (ours, "xla", "oracle")
    }
    for one in found:
        assert one.milliseconds > 0 and one.error < 1e-5, one


def test_what_cannot_be_done_here_says_why():
    (first, *_) = [one for one in timing.measure(TINY[0], ["splash"]) if one.implementation == "splash"]
    assert first.milliseconds is None and first.why == "splash attention is for TPUs"


def test_operations():
    assert PROBLEMS["vit-6b"].flops(False) == 4 * 13 * 25 * 1025**2 * 128
    assert PROBLEMS["causal"].flops(True) == 3.5 * 4 * 28 * 128 * 16384 * 16385 / 2
    assert PROBLEMS["loss-1b"].flops(True) == 3 * 2 * 16384 * 896 * 151674
    assert sum(PROBLEMS["packed"].segments) == 16384 and len(PROBLEMS["packed"].segments) == 20
