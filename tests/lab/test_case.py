"""What is asked of the lab: models by name, meshes that are filled up, batches; and an answer in words."""

import dataclasses
import json
import math

import pytest

from ivl3_jax.cli.lab_cases import Question
from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.case import batch_of, fitted, model_of
from ivl3_jax.lab.compile import BatchShape
from ivl3_jax.lab.telling import bar, table, tell
from ivl3_jax.lab.topology import Topology
from ivl3_jax.sharding.plan import ShardingPlan
from tests.lab.predictions import case as case_of
from tests.lab.predictions import prediction, timeline
from tests.models.small import checkpoint

V5E = Topology.read("v5e:4x4")


@pytest.fixture
def case(libtpu):
    return Question("1b", "v5e:4x4", plan="fsdp_tensor", mesh={"tensor": 2}, tokens=2048, tiles=4).asked()


@pytest.mark.parametrize("name", ["8b", "8B", "internvl3-8b", "InternVL3-8B"])
def test_a_published_size(name):
    found, config = model_of(name)
    assert found == "InternVL3-8B" and config.decoder.width == 3584


def test_a_directory():
    found, config = model_of(str(checkpoint()))
    assert found == checkpoint().name and config.decoder.width == 64


def test_what_is_left_goes_to_fsdp():
    plan = ShardingPlan.read("fsdp_tensor")
    assert fitted(plan, V5E, {"tensor": 2}).mesh == {"fsdp": 8, "tensor": 2}
    assert fitted(plan, V5E, {"fsdp": 4, "tensor": 4}).mesh == {"fsdp": 4, "tensor": 4}


def test_data_takes_the_slices():
    plan = fitted(ShardingPlan.read("hybrid"), Topology.read("v5e:4x4", 2), {})
    assert plan.mesh == {"data": 2, "fsdp": 16}
    staged = fitted(ShardingPlan.read("pipeline"), Topology.read("v5e:4x4", 2), {"stage": 2})
    assert (staged.mesh["data"], staged.mesh["stage"], staged.mesh["fsdp"]) == (2, 2, 8)


def test_a_mesh_that_does_not_divide():
    with pytest.raises(ValueError, match="mesh tensor 3 does not divide the 16 chips of v5e:4x4"):
        fitted(ShardingPlan.read("fsdp_tensor"), V5E, {"tensor": 3})


def test_rows_of_a_batch():
    plan = fitted(ShardingPlan.read("fsdp_tensor"), V5E, {"tensor": 2})
    assert batch_of(plan, V5E, rows_per_chip=None, tokens=8, tiles=0).rows == 8
    assert batch_of(plan, V5E, rows_per_chip=1.5, tokens=8, tiles=0).rows == 24
    with pytest.raises(ValueError, match=r"rows-per-chip 0.3 makes 4.8 rows on 16 chips; .* 8 shards, so that 0.5, or"):
        batch_of(plan, V5E, rows_per_chip=0.3, tokens=8, tiles=0)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"tokens": 0}, "tokens is 0; it must be at least 1"),
        ({"documents": 0}, "documents is 0; it must be at least 1"),
        ({"slices": 0}, "slices is 0; it must be at least 1"),
        ({"tiles": -1}, "tiles is -1; it must be at least 0"),
        ({"slices": 65}, "slices is 65; it must be at most 64"),
        ({"documents": 5, "tokens": 48}, "documents is 5, .* rows of 48 tokens into equal segments; 4 or 6 would"),
        ({"documents": 2048, "tokens": 48}, "documents is 2048, .*; 48 would"),
        ({"rows_per_chip": 0.0}, "rows_per_chip is 0.0; it must be above 0"),
        ({"rows_per_chip": math.inf}, "rows_per_chip is inf; it must be above 0 and finite"),
    ],
)
def test_numbers_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Question("1b", "v5e:4x4", **fields)


def test_more_chips_than_there_are():
    with pytest.raises(ValueError, match=r"slices is 9: v5p:16x16x32 x 9 has 73,728 chips; .* at most 65,536"):
        Question("1b", "v5p:16x16x32", slices=9).slice()


def test_a_case_says_what_it_is(case):
    assert case.name == "InternVL3-1B under fsdp_tensor (fsdp 8 x tensor 2), 0.5 rows a chip, on v5e:4x4"
    assert (case.rows, case.tokens) == (0.5, 8 * 2048)
    assert json.loads(json.dumps(case.facts())) == case.facts()


def test_an_answer_in_the_terminal():
    said = tell(prediction(found=timeline()))
    assert all(len(line) <= 120 for line in said.splitlines())
    for part in (
        "memory of a chip",
        "predicted step",
        "predicted MFU",
        "predicted rate",
        "no TPU took part",
        "held-out error",
        "fits",
    ):
        assert part in said


def test_a_small_step_in_the_terminal():
    found = prediction(dataclasses.replace(case_of(), batch=BatchShape(1, 2048, 1)), timeline())
    said = tell(dataclasses.replace(found, operations=32e6, calibration=Calibration(vectors=1.5)))
    assert "a step: 1 row of 2,048 tokens and 1 tile, together 2,048 tokens; one document a row" in said
    assert "32 MFLOP a chip" in said
    assert "constants of your own: vectors 1.5 (shipped 0.85)" in said
    several = dataclasses.replace(found, case=dataclasses.replace(found.case, documents=8))
    assert "; 8 equal documents a row" in tell(several) and "constants" not in tell(several)


def test_tables_and_bars():
    assert table([("a", "bb"), ("ccc", "d")]) == ["  a    bb", "  ccc  d"]
    assert bar(0.5) == "█" * 20 and bar(-1) == "" and bar(7) == "█" * 40
