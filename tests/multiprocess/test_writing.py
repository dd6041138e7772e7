"""Parameters that lie with two processes become one checkpoint, written by the first."""

import pytest
from safetensors.numpy import load_file

from tests.conversion.checkpoints import random_tensors, small_config, write_checkpoint
from tests.conversion.test_round_trip import assert_same
from tests.multiprocess.processes import run_together

SCRIPT = """
import sys
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec

address, number, source, destination = sys.argv[1], int(sys.argv[2]), sys.argv[3], sys.argv[4]
jax.distributed.initialize(address, num_processes=2, process_id=number)
from ivl3_jax.conversion.reader import read_params
from ivl3_jax.conversion.writer import write_params
from ivl3_jax.hf_config import read_config
from tests.conversion.checkpoints import abstract

mesh = jax.make_mesh((4,), ("fsdp",), axis_types=(AxisType.Explicit,))

def spread(leaf):
    axis = next((i for i, n in reversed(list(enumerate(leaf.shape))) if i and n % 4 == 0), None)
    spec = [None] * leaf.ndim
    if axis is not None:
        spec[axis] = "fsdp"
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

config = read_config(source)
params = read_params(source, jax.tree.map(spread, abstract(config)), config)
assert any(not leaf.is_fully_addressable and not leaf.is_fully_replicated for leaf in jax.tree.leaves(params))
try:
    write_params(params, config, source, max_shard_bytes=100_000)
except (FileExistsError, RuntimeError) as error:
    print(type(error).__name__, error)
write_params(params, config, destination, max_shard_bytes=100_000)
"""


@pytest.mark.slow
def test_two_processes_write_one_checkpoint(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    source = write_checkpoint(tmp_path / "in", config, tensors)
    said = run_together(SCRIPT, source, tmp_path / "out")
    # What the writer refuses, both of them refuse, and both can go on.
    assert "FileExistsError" in said[0][0] and "exists and is not empty" in said[0][0]
    assert "RuntimeError process 0 could not write the checkpoint" in said[1][0]
    shards = [load_file(file) for file in sorted((tmp_path / "out").glob("*.safetensors"))]
    assert len(shards) > 1
    assert_same({name: tensor for shard in shards for name, tensor in shard.items()}, tensors)
