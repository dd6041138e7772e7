"""Adapters that lie with two processes: merged, written by the first, and read by both."""

import pytest

import ivl3_jax
from tests.conversion.checkpoints import random_tensors, small_config, write_checkpoint
from tests.conversion.test_adapters import assert_same
from tests.models.adapted import trained
from tests.multiprocess.processes import run_together

SCRIPT = """
import sys
from pathlib import Path
import jax
import numpy as np

address, number, source, out = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
jax.distributed.initialize(address, num_processes=2, process_id=number)
import ivl3_jax
from tests.models.adapted import trained

base = ivl3_jax.load(source, "float32", ivl3_jax.ShardingPlan.read("fsdp_tensor", {"fsdp": 4}))
one = trained(base)
assert any(not leaf.is_fully_addressable and not leaf.is_fully_replicated for leaf in jax.tree.leaves(one.params))
ivl3_jax.save_adapter(one, out / "adapter")
ivl3_jax.save_unmerged(one, out / "unmerged")
ivl3_jax.save(one, out / "merged while written", layout="original")
ivl3_jax.save(ivl3_jax.merged(one), out / "merged first", layout="original")
back = ivl3_jax.load_adapter(base, out / "adapter")
for new, old in zip(jax.tree.leaves(back.params), jax.tree.leaves(one.params), strict=True):
    for a, b in zip(new.addressable_shards, old.addressable_shards, strict=True):
        assert a.index == b.index
        np.testing.assert_array_equal(a.data, b.data)
"""


@pytest.mark.long
def test_two_processes_write_what_one_writes(tmp_path):
    config = small_config()
    source = write_checkpoint(tmp_path / "in", config, random_tensors(config))
    run_together(SCRIPT, source, tmp_path)
    base = ivl3_jax.load(source, "float32")
    one = trained(base)
    assert_same(ivl3_jax.load_adapter(base, tmp_path / "adapter").params, one.params)
    for name in ("unmerged", "merged while written", "merged first"):
        assert_same(ivl3_jax.load(tmp_path / name, "float32").params, ivl3_jax.merged(one).params)
