"""What is asked of the lab: models by name, meshes that are filled up, batches; and what is kept of an answer."""

import dataclasses
import json

import pytest

from ivl3_jax.cli.lab_cases import Question
from ivl3_jax.lab import store as stores
from ivl3_jax.lab.case import batch_of, fitted, model_of
from ivl3_jax.lab.compile import Compiled, Memory, Shortage
from ivl3_jax.lab.store import Store
from ivl3_jax.lab.telling import bar, table, tell
from ivl3_jax.lab.topology import Topology
from ivl3_jax.sharding.plan import ShardingPlan
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
    ],
)
def test_numbers_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Question("1b", "v5e:4x4", **fields)


def test_a_case_says_what_it_is(case):
    assert case.name == "InternVL3-1B under fsdp_tensor (fsdp 8 x tensor 2), 0.5 rows a chip, on v5e:4x4"
    assert (case.rows, case.tokens) == (0.5, 8 * 2048)
    assert json.loads(json.dumps(case.facts())) == case.facts()


COMPILED = Compiled("HloModule x\n", Memory(1, 2, 3, 4, 10), None, 1.5, 2.5, ("a warning",), {"flag": True})
SHORT = dataclasses.replace(COMPILED, text="", memory=None, shortage=Shortage("HBM", 20, 16, "too much"))


@pytest.mark.parametrize("compiled", [COMPILED, SHORT])
def test_what_is_compiled_is_kept(compiled, case, tmp_path):
    store, calls = Store(tmp_path / "kept"), []

    def compile(case):
        calls.append(case)
        return compiled

    assert store.find(case) is None
    assert store.compiled(case, compile) == store.compiled(case, compile) == compiled
    assert calls == [case]


def test_another_case_is_not_taken_for_it(case, tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.keep(case, COMPILED)
    renamed = dataclasses.replace(case, plan=dataclasses.replace(case.plan, name="other"), documents=4)
    assert store.find(renamed) == COMPILED  # neither a plan's name nor the documents are compiled
    assert store.find(dataclasses.replace(case, plan=case.plan.with_mesh({"fsdp": 16, "tensor": 1}))) is None
    assert store.find(dataclasses.replace(case, dtype="float32")) is None
    monkeypatch.setattr(stores, "_source", lambda: "another commit")
    assert store.find(case) is None


def test_a_half_written_answer_is_none(case, tmp_path):
    store = Store(tmp_path)
    store.keep(case, COMPILED)
    for file in tmp_path.glob("*.json"):
        file.unlink()
    assert store.find(case) is None


def test_an_answer_in_the_terminal():
    said = tell(prediction(found=timeline()))
    assert all(len(line) <= 120 for line in said.splitlines())
    for part in ("memory of a chip", "predicted step", "predicted MFU", "predicted rate", "no TPU took part", "fits"):
        assert part in said


def test_tables_and_bars():
    assert table([("a", "bb"), ("ccc", "d")]) == ["  a    bb", "  ccc  d"]
    assert bar(0.5) == "█" * 20 and bar(-1) == "" and bar(7) == "█" * 40
