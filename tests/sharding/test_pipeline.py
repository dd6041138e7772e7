"""The decoder as a pipeline: the schedule, what it computes beside one device, and what a plan is refused for."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ivl3_jax.batch import IGNORE
from ivl3_jax.layers import pipeline, taps
from ivl3_jax.models.model import abstract_model, place_batch
from ivl3_jax.sharding.pipeline import Pipeline, Schedule
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.placing import Placement
from tests.models.small import changed, random_batch, relative
from tests.sharding.test_equal import CONFIG as TWO_LAYERS
from tests.sharding.test_equal import assert_gradients, assert_stepped, computed
from tests.tolerances import GRADIENT, STACK
from tests.training.test_preferences import made, packed, same_gradients

CONFIG = dataclasses.replace(TWO_LAYERS, decoder=dataclasses.replace(TWO_LAYERS.decoder, layers=8))
SCHEDULES = [
    Schedule(stages, stages * owned, repeats) for stages in (2, 3, 4) for owned in (1, 2, 3) for repeats in (1, 2, 3)
]


def plan_of(mesh, remat="none", **fields):
    plan = ShardingPlan.read("pipeline", mesh)
    return dataclasses.replace(plan, remat={"decoder": remat}, pipeline=Pipeline(**fields))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_every_microbatch_passes_all_runs_without_waiting(schedule):
    S, R = schedule.stages, schedule.repeats
    when = {}
    for t in range(schedule.iterations):
        for stage in range(S):
            busy, run, microbatch = map(int, schedule.work(t, stage))
            if busy:
                assert (microbatch, run * S + stage) not in when
                when[microbatch, run * S + stage] = t
    assert len(when) == schedule.microbatches * S * R
    for (microbatch, run), t in when.items():
        assert t == when[microbatch, 0] + run


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_a_new_microbatch_enters_when_the_first_stage_is_free(schedule):
    entered = 0
    for t in range(schedule.iterations):
        due, slot = map(int, schedule.exchange(t))
        busy, run, microbatch = map(int, schedule.work(t, 0))
        assert not busy or due == (run == 0)
        if busy and due:
            assert microbatch == entered and slot == entered % schedule.owned
            entered += 1
    assert entered == schedule.microbatches


def toy(layers, width):
    rng = np.random.default_rng(0)
    return {
        "w": rng.normal(size=(layers, width, width)).astype(np.float32) / width**0.5,
        "b": rng.normal(size=(layers, width)).astype(np.float32),
    }


def apply(layers, x, rows):
    """Divided by its own norm, which zeros do not have: what a bubble computes is not a number."""

    def layer(x, layer):
        w = jax.sharding.reshard(layer["w"], P())
        y = jnp.dot(x, w, out_sharding=jax.typeof(x).sharding.spec) + jax.sharding.reshard(layer["b"], P())
        return jnp.tanh(y) * rows[:, None] + x, None

    return jax.lax.scan(layer, x / jnp.sqrt((x * x).sum(-1, keepdims=True)), layers)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "microbatches", "repeats", "at_rest"),
    [
        ({"stage": 4, "fsdp": 2}, 8, 3, ("fsdp", "stage")),
        ({"stage": 2, "data": 2}, 6, 1, "data"),
        pytest.param({"stage": 4, "fsdp": 2}, 4, 1, ("stage", "fsdp"), marks=pytest.mark.long),
        pytest.param({"stage": 2, "data": 2, "fsdp": 2}, 6, 3, "fsdp", marks=pytest.mark.long),
        pytest.param({"stage": 2}, 8, 1, "stage", marks=pytest.mark.long),
        pytest.param({"stage": 3}, 6, 2, None, marks=pytest.mark.long),
    ],
    ids=str,
)
def test_values_and_gradients_of_a_toy(mesh, microbatches, repeats, at_rest):
    layers, width = 12, 8
    rng = np.random.default_rng(1)
    x, rows = rng.normal(size=(48, width)).astype(np.float32), rng.uniform(0.5, 1, 48).astype(np.float32)
    weights = rng.normal(size=x.shape).astype(np.float32)
    plan = ShardingPlan.read("pipeline", mesh)
    schedule = Schedule(mesh["stage"], microbatches, repeats)

    def in_turn(layers, x):
        """Run by run, as a pipeline's stages."""
        runs = jax.tree.map(lambda leaf: leaf.reshape(-1, 12 // (schedule.stages * repeats), *leaf.shape[1:]), layers)
        for i in range(schedule.stages * repeats):
            x = apply(jax.tree.map(lambda leaf, i=i: leaf[i], runs), x, rows)
        return (x * weights).sum(), x

    def piped(layers, x, rows, weights):
        y = pipeline.run(apply, layers, x, rows, schedule)
        return (y * weights).sum(), y

    one = ShardingPlan().make_mesh()
    with jax.set_mesh(one):
        expected = jax.jit(jax.grad(in_turn, argnums=(0, 1), has_aux=True))(toy(layers, width), x)
    mesh = plan.make_mesh()

    def put(value, *spec):
        return jax.device_put(value, NamedSharding(mesh, P(*spec)))

    at_rest = {name: put(leaf, None, at_rest) for name, leaf in toy(layers, width).items()}
    batch = ("stage", "data", "fsdp")
    with jax.set_mesh(mesh):
        operands = at_rest, put(x, batch, None), put(rows, batch), put(weights, batch, None)
        found = jax.jit(jax.grad(piped, argnums=(0, 1), has_aux=True))(*operands)
    assert jax.tree.map(jax.typeof, found[0][0]) == jax.tree.map(jax.typeof, at_rest)
    for name in ("w", "b"):
        assert relative(found[0][0][name], expected[0][0][name]) < GRADIENT["float32"], name
    assert relative(found[0][1], expected[0][1]) < GRADIENT["float32"]
    assert relative(found[1], expected[1]) < STACK["float32"]


@pytest.mark.parametrize(
    ("mesh", "fields", "layers", "message"),
    [
        ({"stage": 3}, {}, 8, "the decoder's 8 layers cannot be cut into stages x repeats = 3 x 1 equal runs; "),
        ({"stage": 2}, {"repeats": 3}, 8, "stages x repeats that would work: 1, 2, 4, 8"),
        ({"stage": 4}, {"microbatches": 2}, 8, "pipeline.microbatches is 2; it must be a multiple of the 4 stages: 4,"),
        ({"stage": 4}, {"microbatches": 6, "repeats": 2}, 8, "pipeline.microbatches is 6; it must be a multiple of"),
    ],
)
def test_what_a_pipeline_cannot_be(mesh, fields, layers, message):
    plan = plan_of(mesh, **fields)
    with pytest.raises(ValueError) as error:
        abstract_model(changed(decoder={"layers": layers}), plan, plan.make_mesh())
    assert message in str(error.value)


def test_rows_go_over_stage_and_data_first():
    for name, message in (
        ("fsdp_tensor", r"to \['data', 'fsdp'\]; a pipeline of 2 stages needs .* first: \['stage', 'data', 'fsdp'\]"),
        ("single", r"sends batch to \[\]; a pipeline of 2 stages needs stage and data first: \['stage', 'data'\]"),
    ):
        plan = ShardingPlan.read(name, {"stage": 2})
        with pytest.raises(ValueError, match=message):
            abstract_model(CONFIG, plan, plan.make_mesh())


def test_rows_are_cut_into_microbatches():
    plan = plan_of({"stage": 2, "fsdp": 2}, microbatches=4)
    mesh = plan.make_mesh()
    Placement(plan, mesh, rows=16, tokens=8, parts=2)
    with pytest.raises(ValueError) as error:
        Placement(plan, mesh, rows=24, tokens=8, parts=2)
    assert (
        "12 rows, spread over data x fsdp = 2, cannot be cut into pipeline.microbatches = 4; rows that would work: "
        "multiples of 8; microbatches: 2, 6" in str(error.value)
    )


def test_without_stages_the_options_have_no_effect():
    plan = plan_of({}, microbatches=3, repeats=5)
    assert plan.schedule is None
    abstract_model(CONFIG, plan, plan.make_mesh())


def test_taps_are_refused():
    plan = plan_of({"stage": 2})
    mesh = plan.make_mesh()
    graphdef, params = abstract_model(TWO_LAYERS, plan, mesh)

    def logits(params, batch):
        with taps.collect():
            return nnx.merge(graphdef, params)(batch)

    with jax.set_mesh(mesh), pytest.raises(ValueError, match="take a plan whose mesh has stage: 1"):
        jax.eval_shape(logits, params, place_batch(random_batch(2, [(8, 0)], length=8, tiles=0), plan, mesh))


def mixed_batch():
    """Sixteen rows of 48 positions: two segments with images, some text alone, some little but padding."""
    batch = random_batch(16, [(20, 1), (17, 1)], length=48, tiles=2)
    for row in (1, 6):  # text alone
        batch.visual_index[row] = -1
        batch.tokens[row, :37] = np.random.default_rng(row).integers(0, 300, 37)
    for name, padding in (("segment_ids", 0), ("positions", 0), ("labels", IGNORE), ("loss_weights", 0)):
        getattr(batch, name)[3, 9:] = padding
    return batch


@cache
def one_device():
    return computed(ShardingPlan(), mixed_batch(), CONFIG)


@pytest.mark.parametrize(
    ("mesh", "fields", "remat"),
    [
        ({"stage": 2, "fsdp": 2, "tensor": 2}, {"microbatches": 4, "repeats": 2}, "dots"),
        *(
            (mesh, fields, remat)
            for mesh, more in (({"stage": 2, "fsdp": 2, "tensor": 2}, 4), ({"stage": 4, "fsdp": 2}, 8))
            for fields in ({}, {"repeats": 2}, {"microbatches": more})
            for remat in ("none", "full")
        ),
        ({"stage": 4}, {"microbatches": 8, "repeats": 2}, "none"),
        ({"stage": 2, "data": 2, "fsdp": 2}, {"repeats": 4}, "dots"),
    ],
    ids=str,
)
@pytest.mark.long  # a pipeline on eight devices is in tests/lab/test_executed.py for every day
def test_everything_equals_one_device(mesh, fields, remat):
    same(plan_of(mesh, remat, **fields))


@pytest.mark.long
def test_positions_may_be_sharded_within_a_stage():
    plan = plan_of({"stage": 2, "context": 2, "tensor": 2}, microbatches=4)
    table = plan.decoder.activations | {"sequence": ("context",), "residual": ("context", "tensor")}
    same(dataclasses.replace(plan, decoder=dataclasses.replace(plan.decoder, activations=table)))


def same(plan):
    sharded, expected = computed(plan, mixed_batch(), CONFIG), one_device()
    filled = mixed_batch().segment_ids > 0
    for path, value in expected["fresh"].items():
        np.testing.assert_array_equal(sharded["fresh"][path], value, err_msg=path)
    assert relative(sharded["logits"][filled], expected["logits"][filled]) < STACK["float32"]
    assert sharded["loss"] == pytest.approx(expected["loss"], rel=STACK["float32"])
    assert sharded["norm"] == pytest.approx(expected["norm"], rel=GRADIENT["float32"])
    assert_gradients(sharded, expected)
    assert_stepped(sharded, expected)


@pytest.mark.long
@pytest.mark.parametrize("parts", [1, 2])
def test_preferences(parts):
    """MPO, in one part or two, each a pipeline of its own."""
    (expected,), gradients, _ = made(packed(), parts=parts)
    (metrics,), found, _ = made(packed(), plan=plan_of({"stage": 2, "tensor": 2}), parts=parts)
    assert float(metrics.loss) == pytest.approx(float(expected.loss), rel=STACK["float32"])
    for name, value in expected.parts.items():
        assert float(metrics.parts[name]) == pytest.approx(float(value), rel=STACK["float32"]), name
    same_gradients(found, gradients)
