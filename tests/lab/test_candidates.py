"""Plans that a search looks at, the rooflines that order them, and the search itself."""

import dataclasses

import pytest

from ivl3_jax.cli.lab_search import SearchQuestion, cases
from ivl3_jax.lab.candidates import legal, plans, ranked, shipped
from ivl3_jax.lab.compile import Compiled, Shortage
from ivl3_jax.lab.roofline import estimate
from ivl3_jax.lab.search import search
from ivl3_jax.lab.store import Store
from ivl3_jax.lab.topology import Topology
from ivl3_jax.training.config import Component, TrainConfig

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def every(libtpu):
    return cases(SearchQuestion("8b", "v5p:4x4x4", tokens=16384, tiles=24))


def by_name(every, name, mesh, rows):
    return next(each for each in every if (each.plan.name, each.mesh, each.rows) == (name, mesh, rows))


def test_every_shipped_plan_is_looked_at(every):
    assert {each.plan.name.partition(",")[0] for each in every} == set(shipped(coupled=False))
    assert len(shipped(coupled=True)) == 2 * len(shipped(coupled=False))


def test_meshes_are_of_the_slices_size():
    for slices in (1, 2):
        topology = Topology.read("v5p:4x4x4", slices)
        found = list(plans(shipped(coupled=False), topology))
        assert found and all(plan.devices == topology.chips for plan in found)
        if slices > 1:
            assert all(max(plan.mesh.get("data", 1), plan.mesh.get("stage", 1)) % slices == 0 for plan in found)


def test_what_cannot_be_is_said(every):
    reasons = {legal(each) for each in every} - {None}
    assert any("heads = 28, which does not divide over 8" in reason for reason in reasons)
    assert all("\n" not in reason for reason in reasons)


def test_the_order_is_by_tokens_a_second_and_mixed(every):
    chosen, rejected = ranked(every, most=20)
    assert len(chosen) == 20 and len(chosen) + len(rejected) == len(every)
    rates = [case.tokens / guess.seconds for case, guess in chosen]
    assert rates[0] == max(rates)
    kinds = [(c.plan.name.partition(",")[0], c.plan.mesh_shape) for c, _ in chosen]
    assert len(set(kinds)) == 20


def test_tensor_parallelism_costs_time_and_saves_memory(every):
    narrow, wide = (estimate(by_name(every, "sequence, full", f"fsdp {64 // n} x tensor {n}", 1 / n)) for n in (2, 4))
    assert wide.parts["tensor"] > 0 and wide.memory["activations"] < narrow.memory["activations"]


def test_remat_costs_time_and_saves_memory(every):
    full, kept = (estimate(by_name(every, f"fsdp, {remat}", "fsdp 64", 1)) for remat in ("full", "all but gate and up"))
    assert full.parts["compute"] > kept.parts["compute"]
    assert full.memory["activations"] < kept.memory["activations"]


def test_twice_the_rows_take_twice_the_compute(every):
    one, two = (estimate(by_name(every, "fsdp, full", "fsdp 64", rows)) for rows in (1, 2))
    assert two.parts["compute"] == pytest.approx(2 * one.parts["compute"])
    assert two.memory["state"] == one.memory["state"]


def test_moments_on_the_host_are_not_in_hbm(every):
    case = by_name(every, "fsdp, full", "fsdp 64", 1)
    moved = dataclasses.replace(case, plan=dataclasses.replace(case.plan, offload=("optimizer",)))
    assert estimate(moved).memory["state"] == pytest.approx(estimate(case).memory["state"] / 3)


def test_a_pipeline_has_a_bubble(every):
    few, many = (
        estimate(next(e for e in every if e.plan.name == "pipeline, full" and e.plan.mesh.get("stage") == 4
                      and e.plan.mesh["tensor"] == 1 and e.plan.pipeline.microbatches == n))
        for n in (4, 16)
    )  # fmt: skip
    assert few.parts["pipeline bubble"] / few.parts["compute"] == pytest.approx(3 / 4)
    assert many.parts["pipeline bubble"] / many.parts["compute"] == pytest.approx(3 / 16)


def test_a_search_goes_on_and_tells_what_fails(every, tmp_path):
    """One case is kept already, without fitting; the other cannot be, which its own process finds out."""
    kept = every[0]
    wrong = dataclasses.replace(kept, plan=kept.plan.with_mesh({"tensor": 3}))
    store, told = Store(tmp_path), []
    short = Compiled("", None, Shortage("HBM", 2**37, 2**36, "too much"), 1.0, 2.0, (), {})
    store.keep(kept, short)
    tried = search([kept, wrong], store, tell=lambda each, number, count: told.append((each.case, number, count)))
    assert told == [(kept, 1, 2), (wrong, 2, 2)]
    by_case = {each.case.plan.mesh_shape: each for each in tried}
    assert by_case[kept.plan.mesh_shape].known and not by_case[kept.plan.mesh_shape].prediction.fits
    assert "the sizes of its mesh must multiply to 64" in by_case[wrong.plan.mesh_shape].failure


def test_plans_that_are_one_on_their_mesh_are_looked_at_once():
    topology = Topology.read("v5e:4x4")
    both = list(plans(["fsdp", "fsdp_coupled"], topology))
    assert {plan.name.partition(",")[0] for plan in both} == {"fsdp"}
    apart = list(plans(["context", "context_coupled"], topology))
    assert {plan.name.partition(",")[0] for plan in apart} == {"context", "context_coupled"}


def test_what_is_frozen_has_no_moments_and_no_gradients(every):
    case = by_name(every, "fsdp, full", "fsdp 64", 1)
    frozen = TrainConfig(vision=Component(train=False), decoder=Component(train=False))
    whole, warmed = (estimate(dataclasses.replace(case, train=train)).memory for train in (case.train, frozen))
    assert warmed["state"] < 0.35 * whole["state"] and warmed["gradients"] < 0.05 * whole["gradients"]


def test_several_slices_have_plans_of_every_kind(libtpu):
    found = cases(SearchQuestion("1b", "v5e:4x4", slices=2, tokens=2048))
    chosen, _ = ranked(found, most=len(found))
    assert {case.plan.name.partition(",")[0] for case, _ in chosen} >= {"fsdp", "fsdp_tensor", "pipeline"}


def test_what_a_file_says_is_looked_at_too(tmp_path):
    topology, remat = Topology.read("v5p:4x4x4"), "{vision: full, decoder: {save: [attention, q], offload: [input]}}"
    context, pipeline = tmp_path / "rows.yaml", tmp_path / "stages.yaml"
    context.write_text(f"extends: context\ncontext: {{attention: gather, order: plain}}\nremat: {remat}\n")
    pipeline.write_text("extends: pipeline\npipeline: {microbatches: 24}\n")
    found = [each for each in plans([str(context)], topology) if each.name.endswith("its own remat")]
    assert all(each.remat_of("decoder").offload == ("input",) for each in found)
    forms = {(each.context.attention, each.context.order) for each in found}
    assert forms == {("gather", "plain"), ("gather", "zigzag"), ("ring", "zigzag"), ("all_to_all", "plain")}
    assert any(each.pipeline.microbatches == 24 for each in plans([str(pipeline)], topology))
