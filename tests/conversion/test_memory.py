"""Loading needs little more memory than the loaded model: measured, in a process of its own."""

import os
import subprocess
import sys

import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from tests.conversion.checkpoints import BFLOAT16, abstract, random_tensors, write_checkpoint
from tests.conversion.test_round_trip import assert_same

# 79 million parameters, 316 MB in float32: most of them in stacks, of which none is more than a quarter of the whole.
CONFIG = InternVLConfig(
    VisionConfig(layers=8, width=256, heads=4, mlp=1024, image_size=28, patch_size=7),
    ProjectorConfig(),
    DecoderConfig(layers=24, width=384, heads=6, kv_heads=2, head_dim=64, mlp=1984, vocab=10_000),
    image_token_id=9_999,
)

SCRIPT = """
import sys
import jax, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from ivl3_jax.conversion.reader import read_params
from tests.conversion.checkpoints import abstract
from tests.conversion.test_memory import CONFIG

directory, devices = sys.argv[1], int(sys.argv[2])
mesh = jax.make_mesh((devices,), ("fsdp",), devices=jax.devices()[:devices])

def place(leaf):
    axis = next((i for i, n in reversed(list(enumerate(leaf.shape))) if n % devices == 0), None)
    spec = [None] * leaf.ndim
    if axis is not None:
        spec[axis] = "fsdp"
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

def status(key):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

tree = jax.tree.map(place, abstract(CONFIG))
jax.block_until_ready(jax.device_put(np.zeros(8)))
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before = status("VmRSS")
params = read_params(directory, tree, CONFIG)
print(status("VmHWM") - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("devices", [1, 8])
def test_peak_memory_of_loading(tmp_path, devices):
    write_checkpoint(tmp_path, CONFIG, random_tensors(CONFIG, BFLOAT16))
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path), str(devices)],
        env=os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr
    leaves = flatten_dict(abstract(CONFIG), sep="/")
    model = sum(leaf.size * 4 for leaf in leaves.values())
    largest = max(leaf.size * 4 for path, leaf in leaves.items() if "/layers/" in path)
    bound = model + 3 * largest / devices
    print(f"model {model / 1e6:.0f} MB, bound {bound / 1e6:.0f} MB, peak {int(run.stdout) / 1e6:.0f} MB")
    assert int(run.stdout) < bound


CONVERSION = """
import resource, sys
from ivl3_jax.conversion.convert import convert

with open("/proc/self/status") as lines:
    used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData"))
limit = used + 64_000_000
resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
convert(sys.argv[1], sys.argv[2], layout=sys.argv[3])
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_conversion_under_a_limit(tmp_path):
    """316 MB, and no more than 64 MB of memory to be had."""
    write_checkpoint(tmp_path / "in", CONFIG, random_tensors(CONFIG))
    for source, destination, layout in (("in", "original", "original"), ("original", "back", "hf")):
        arguments = [str(tmp_path / source), str(tmp_path / destination), layout]
        environment = os.environ | {"PYTHONPATH": ".", "MALLOC_ARENA_MAX": "2"}
        run = subprocess.run(
            [sys.executable, "-c", CONVERSION, *arguments], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr
    expected, found = (load_file(tmp_path / name / "model.safetensors") for name in ("in", "back"))
    assert_same(found, expected)
