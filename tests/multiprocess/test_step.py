"""A step of several processes: packed rows give the loss and the gradients of unpacked ones on one device."""

import numpy as np
import pytest

from tests.multiprocess.processes import run_together
from tests.training.test_step import WEIGHTINGS, whole

# All combinations in one launch: they share their compiled steps.
SCRIPT = """
import sys
import jax
import numpy as np

address, number, count, file = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
jax.distributed.initialize(address, num_processes=count, process_id=number)
from ivl3_jax.sharding.plan import ShardingPlan
from tests.tolerances import STACK
from tests.training.test_step import WEIGHTINGS, agree, packed, steps_of

assert jax.process_count() == count and jax.device_count() == 4
plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 2, "tensor": 2})
with np.load(file) as expected:
    for parts in map(int, sys.argv[5:]):
        steps = steps_of(list(map(packed, WEIGHTINGS)), plan=plan, parts=parts)
        for weighting, (metrics, found, state) in zip(WEIGHTINGS, steps, strict=True):
            names = [name for name in expected if name.startswith(weighting + " ")]
            gradients = {name.partition(" ")[2]: expected[name] for name in names}
            loss = gradients.pop("loss")
            assert len(gradients) > 20
            assert all(leaf.is_fully_addressable == (count == 1) for leaf in jax.tree.leaves(state.params))
            np.testing.assert_allclose(float(metrics.loss), loss, rtol=STACK["float32"])
            agree(found, gradients)
            print("equal", weighting, parts)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("processes", "parts"), [(2, [2]), *(pytest.param(count, [1, 2], marks=pytest.mark.long) for count in (1, 2, 4))]
)
def test_packed_equals_unpacked(processes, parts, tmp_path):
    """For every weighting, with and without accumulation."""
    expected = {}
    for weighting in WEIGHTINGS:
        metrics, gradients, _ = whole(weighting)
        expected |= {f"{weighting} {path}": value for path, value in gradients.items()}
        expected[f"{weighting} loss"] = np.float64(metrics.loss)
    np.savez(tmp_path / "expected.npz", **expected)
    for said, _ in run_together(SCRIPT, processes, tmp_path / "expected.npz", *parts, processes=processes):
        assert said.count("equal") == len(parts) * len(WEIGHTINGS)
