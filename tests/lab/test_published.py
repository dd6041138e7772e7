"""The published runs as data: their own figures follow from their shapes."""

import pytest

from ivl3_jax.lab.published import RUNS
from ivl3_jax.lab.topology import Topology

RUN = {run.name: run for run in RUNS}


@pytest.mark.parametrize(
    ("name", "published"), [("16B", 61.1), ("64B", 59.9), ("32B on v5e", 66.86), ("32B", 71.5), ("128B", 68.7)]
)  # % of peak, as the source states
def test_operations_are_counted_as_the_source_counts_them(name, published):
    assert 100 * RUN[name].utilisation == pytest.approx(published, abs=0.3)


@pytest.mark.parametrize("run", RUNS, ids=list(RUN))
def test_runs_fill_their_slices(run):
    assert Topology.read(run.topology).chips == run.chips == run.plan.devices
    assert run.batch.rows == run.rows * run.chips


def test_what_is_fitted():
    assert [run.name for run in RUNS if run.fitted] == ["16B", "32B", "8B"]
