"""Kernels read from the TPU compiler's schedule: the method counts what is known, and reads this project's kernels."""

import pytest

from ivl3_jax.bench.cases import read
from ivl3_jax.bench.check import check
from ivl3_jax.bench.problems import Attention, Decoding, Loss

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "chip", ["v6e", pytest.param("v5e", marks=pytest.mark.long), pytest.param("v5p", marks=pytest.mark.long)]
)
def test_known_work_is_counted(libtpu, chip):
    known = list(check([chip]))
    assert len(known) == (5 if chip == "v5e" else 4)
    for one in known:
        if one.measured:
            # A lower bound; small blocks wait for their copies, which it does not see.
            least = 0.75 if one.measured < 1 else 0.3
            assert least < one.kernel.milliseconds / one.measured <= 1


@pytest.mark.parametrize(
    "problem",
    [
        pytest.param(Attention("vit", 2, 1025, 2, 2, 64), marks=pytest.mark.long),
        pytest.param(Attention("packed", 1, 2048, 4, 1, 128, (1000, 48, 1000)), marks=pytest.mark.long),
        pytest.param(Loss("loss", 2048, 896, 20000), marks=pytest.mark.long),
        Decoding("decoding", 4, 4096, 4, 1, 128),
    ],
    ids=["vit", "packed", "loss", "decoding"],
)
def test_readings(libtpu, problem):
    for reading in read(problem, "v6e", splash=False):
        assert 0 < reading.matrix <= 1 and reading.cycles > 0 and 0 < reading.memory <= 1
        assert 0 < reading.error < 0.01  # bfloat16 keeps 8 bits
