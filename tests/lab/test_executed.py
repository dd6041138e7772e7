"""`ivl3 lab run`: every shipped plan computes what one device does, and a plan that does not is told of."""

import os
import subprocess
import sys

import numpy as np
import pytest

from ivl3_jax.cli import lab_run
from ivl3_jax.lab import executed
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.plan_file import PLAN_DIRECTORY

pytestmark = pytest.mark.slow

# Meshes of eight devices.
MESHES = {
    "single": {},
    "fsdp": {"fsdp": 8},
    "fsdp_tensor": {"fsdp": 4, "tensor": 2},
    "sequence": {"fsdp": 2, "tensor": 4},
    "context": {"fsdp": 2, "context": 2, "tensor": 2},
    "hybrid": {"data": 2, "fsdp": 4},
    "fsdp_wide": {"data": 2, "fsdp": 4},
    "pipeline": {"stage": 2, "fsdp": 2, "tensor": 2},
}
SHIPPED = sorted(file.stem for file in PLAN_DIRECTORY.glob("*.yaml"))


def mesh_of(name):
    return MESHES[name.removesuffix("_coupled")]


@pytest.mark.long
@pytest.mark.parametrize("name", SHIPPED)
def test_on_eight_devices(name):
    found = list(executed.deviations(ShardingPlan.read(name, mesh_of(name))))
    assert len(found) > 80 and [each for each in found if each.over] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_there_is_a_batch_of_every_kind(name):
    config, rows, tokens = executed.tiny(ShardingPlan.read(name, mesh_of(name)))
    batch = executed.mixed(config, rows, tokens)
    shown = (batch.visual_index >= 0).any(1)
    assert shown[:-2].all() and not shown[-2:].any()
    assert (batch.segment_ids.max(1)[:-1] == 2).all() and (batch.segment_ids == 0).any(1).all()
    assert ((batch.loss_weights > 0).sum(1) > 0).all()


def run_alone(*argv):
    command = [sys.executable, "-m", "ivl3_jax.cli.main", "lab", "run", *argv]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, env=os.environ | {"XLA_FLAGS": ""})


def test_on_sixteen_devices_by_the_command():
    ran = run_alone("--plan", "context", "--mesh", "{data: 2, fsdp: 2, context: 2, tensor: 2}")
    assert ran.returncode == 0, ran.stderr
    assert "context on 16 devices: 87 comparisons, none over the tolerance" in ran.stdout


def test_a_deviation_is_told(monkeypatch, capsys):
    stepped = executed.stepped

    def wrong(config, plan, batch, devices=None):
        found = stepped(config, plan, batch, devices)
        if plan.devices > 1:
            found["gradient"]["decoder/norm/scale"] = found["gradient"]["decoder/norm/scale"] * 1.001
            found["loss"][""] = np.float32(np.nan)
        return found

    monkeypatch.setattr(executed, "stepped", wrong)
    assert lab_run.run(["--plan", "fsdp", "--mesh", "{fsdp: 2}"]) == 1
    told = capsys.readouterr().out
    assert "gradient decoder/norm/scale" in told and "loss" in told and "2 over the tolerance" in told


def test_a_plan_for_too_many_devices():
    with pytest.raises(ValueError, match=r"needs 1024 devices; this runs up to 64: give a smaller --mesh of the same"):
        lab_run.run(["--plan", "fsdp", "--mesh", "{fsdp: 1024}"])
