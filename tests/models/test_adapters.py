"""Adapters of the whole model: what they compute, begin with, cost and refuse."""

import dataclasses

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.extend.core import jaxprs_in_params

from ivl3_jax.inference.engine import Engine
from ivl3_jax.models.adapters import (
    Lora,
    adapted,
    base_params,
    is_adapter,
    merged,
    scales,
    with_adapters,
    without_adapters,
)
from ivl3_jax.models.model import Model, abstract_model, place_batch
from ivl3_jax.sharding.plan import ShardingPlan
from tests.inference.test_engine import prompt
from tests.models.adapted import EVERYWHERE, adapter_gradients, loss_function, parted, trained
from tests.models.small import CONFIG, model, random_batch, relative
from tests.tolerances import STACK

TARGETS = {
    "vision": ["q", "k", "v", "out", "up", "down"],
    "projector": ["up", "down"],
    "decoder": ["q", "k", "v", "out", "gate", "up", "down"],
}


@pytest.fixture(scope="module")
def batch():
    return random_batch(2, [(20, 1), (17, 1)], length=40, tiles=2)


def test_new_adapters_change_no_bit(batch):
    new = adapted(model(), EVERYWHERE)
    np.testing.assert_array_equal(new(batch), model()(batch))
    base = flatten_dict(model().params, sep="/")
    leaves = flatten_dict(new.params, sep="/")
    assert all(leaves[path] is leaf for path, leaf in base.items())
    added = {(path.split("/")[0], path.split("/")[-2]) for path in leaves.keys() - base.keys()}
    assert added == {(component, target) for component, targets in TARGETS.items() for target in targets}
    assert leaves["decoder/layers/attention/out/lora_a"].shape == (2, 8, 16, 4)
    assert leaves["decoder/layers/attention/k/lora_b"].shape == (2, 4, 2, 16)
    assert leaves["projector/up/lora_a"].shape == (256, 3)
    assert scales(new.graphdef, new.params)["projector/up"] == 5 / 3


def test_merged_equals_applied(batch):
    one = trained(model())
    other = merged(one)
    assert other.graphdef == model().graphdef
    assert relative(one(batch), model()(batch)) > 0.1
    assert relative(one(batch), other(batch)) < STACK["float32"]


def test_float64(batch):
    with jax.enable_x64(True):
        one = trained(Model.init(CONFIG, seed=1, param_dtype="float64", dtype="float64"))
        assert {leaf.dtype for leaf in jax.tree.leaves(one.params)} == {np.dtype(np.float64)}
        assert relative(one(batch), merged(one)(batch)) < STACK["float64"]


def test_without_adapters_is_the_base(batch):
    one = trained(model())
    base = without_adapters(one)
    assert base.graphdef == model().graphdef
    np.testing.assert_array_equal(base(batch), model()(batch))
    assert jax.tree.all(jax.tree.map(lambda a, b: a is b, base_params(one.params), model().params))


@pytest.mark.parametrize("policy", ["dots", pytest.param("full", marks=pytest.mark.long)])
def test_remat(policy, batch):
    plain, kept = trained(model()), trained(model(CONFIG, policy))
    (value, found), (expected_value, expected) = (adapter_gradients(one, batch) for one in (kept, plain))
    assert value == pytest.approx(expected_value, rel=1e-6)
    assert {path: relative(found[path], x) for path, x in expected.items() if relative(found[path], x) > 1e-5} == {}


def test_gradients_by_finite_differences(batch):
    """Of every adapter along a direction of its own, in float64."""
    step = 1e-5
    with jax.enable_x64(True):
        one = trained(Model.init(CONFIG, seed=1, param_dtype="float64", dtype="float64"))
        _, gradients = adapter_gradients(one, batch)
        adapters, base = parted(one)
        rng = np.random.default_rng(0)
        with jax.set_mesh(one.mesh):
            placed, loss = place_batch(batch, one.plan, one.mesh), jax.jit(loss_function(one))
            for path, leaf in adapters.items():
                direction = rng.standard_normal(leaf.shape)
                ahead, behind = (loss(adapters | {path: leaf + s * direction}, base, placed) for s in (step, -step))
                expected = float(ahead - behind) / (2 * step)
                assert np.vdot(gradients[path], direction) == pytest.approx(expected, rel=1e-5, abs=1e-9), path


def products(jaxpr):
    """The shapes of all products in a program, either way round: a gradient may be made transposed."""
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            yield tuple(sorted(eqn.outvars[0].aval.shape))
        for inner in jaxprs_in_params(eqn.params):
            yield from products(inner)


def test_no_gradient_of_the_base_and_no_merged_copy(batch):
    """No product of a training step on the adapters has the shape of a kernel that is adapted."""
    one = trained(model())
    adapters, base = parted(one)
    with jax.set_mesh(one.mesh):
        placed = place_batch(batch, one.plan, one.mesh)
        step, everything = (
            jax.make_jaxpr(jax.grad(loss_function(one), argnums))(adapters, base, placed) for argnums in (0, (0, 1))
        )
    kernels = {(64, 64), (64, 128), (32, 64), (64, 256)}
    assert kernels <= set(products(everything.jaxpr))
    assert not kernels & set(products(step.jaxpr))
    assert {(4, 64), (4, 128), (3, 256), (2, 128)} <= set(products(step.jaxpr))


def test_over_bfloat16(batch):
    """Adapters stay in float32, and are rounded once, together with the weight."""
    one = trained(Model.init(CONFIG, seed=1, param_dtype="bfloat16", dtype="bfloat16"))
    leaves = flatten_dict(one.params, sep="/")
    assert all((leaf.dtype == np.float32) == is_adapter(path) for path, leaf in leaves.items())
    assert one(batch).dtype == jnp.bfloat16
    path = "decoder/layers/mlp/down"
    kernel, a, b = (np.asarray(leaves[f"{path}/{name}"]).astype(np.float64) for name in ("kernel", "lora_a", "lora_b"))
    found = np.asarray(merged(one).params["decoder"]["layers"]["mlp"]["down"]["kernel"])
    exact = kernel + 2 * np.einsum("lir,lro->lio", a, b)
    assert found.dtype == ml_dtypes.bfloat16
    apart = np.abs(found.astype(np.float64) - exact) / np.abs(exact)
    assert apart.max() < 2**-8 and (found != exact.astype(ml_dtypes.bfloat16)).mean() < 1e-3


def test_what_adapters_begin_with():
    one, other, alone = (
        flatten_dict(adapted(model(), specs, seed).params, sep="/")
        for specs, seed in ((EVERYWHERE, 1), (EVERYWHERE, 2), ({"decoder": Lora(4, targets=("k", "down"))}, 1))
    )
    for path, leaf in one.items():
        if path.endswith("lora_b"):
            assert not leaf.any()
    a = np.asarray(one["decoder/layers/mlp/down/lora_a"])
    assert 0.95 / 128**0.5 < np.abs(a).max() <= 1 / 128**0.5 and abs(a.mean()) < 0.1 / 128**0.5
    out = np.asarray(one["decoder/layers/attention/out/lora_a"])
    assert 0.95 / 128**0.5 < np.abs(out).max() <= 1 / 128**0.5  # 8 heads of 16 are its inputs
    assert len({leaf.tobytes() for path, leaf in map(as_bytes, one.items()) if path.endswith("lora_a")}) == 15
    assert not np.array_equal(a, other["decoder/layers/mlp/down/lora_a"])
    added = {path for path in alone if is_adapter(path)}
    assert added == {f"decoder/layers/{where}/lora_{half}" for where in ("attention/k", "mlp/down") for half in "ab"}
    for path in added:
        np.testing.assert_array_equal(alone[path], one[path])


def as_bytes(item):
    return item[0], np.asarray(item[1])


def test_abstract_is_as_real():
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 2, "tensor": 4})
    mesh = plan.make_mesh()
    graphdef, params = with_adapters(*abstract_model(CONFIG, plan, mesh), EVERYWHERE, plan, mesh)
    real = adapted(Model.init(CONFIG, plan), EVERYWHERE)
    assert graphdef == real.graphdef
    described = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.sharding), (params, real.params))
    assert described[0] == described[1]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(params))


def test_generation(batch):
    one = trained(model(), {"decoder": Lora(4), "vision": Lora(2)})
    prompts = [prompt(31, 1, 0), prompt(12, 0, 1)]
    tokens = Engine(one).generate(prompts, 8, ())
    assert tokens == Engine(merged(one)).generate(prompts, 8, ())
    assert tokens != Engine(model()).generate(prompts, 8, ())


def test_plain_rope_keeps_adapters():
    one = trained(model()).with_plain_rope()
    assert len(scales(one.graphdef, one.params)) == 15


@pytest.mark.parametrize(
    ("specs", "words"),
    [
        ({"llm": Lora(4)}, "adapters of 'llm': no component is called so; valid: vision, projector, decoder"),
        (
            {"decoder": Lora(4, targets=("q", "o"))},
            "adapters of decoder: it has no linear layers 'o'; valid: k, out, q, v, down, gate, up",
        ),
        ({"vision": Lora(4, targets=("gate",))}, "adapters of vision: .* 'gate'; valid: k, out, q, v, down, up"),
        ({"projector": Lora(4, targets=("q",))}, "adapters of projector: .* 'q'; valid: down, up"),
    ],
)
def test_what_there_is_not(specs, words):
    with pytest.raises(ValueError, match=words):
        adapted(model(), specs)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"rank": 0}, "Lora.rank is 0; it must be a whole number of at least 1"),
        ({"rank": 4.0}, "Lora.rank is 4.0"),
        ({"rank": 4, "alpha": 0}, "Lora.alpha is 0; it must be a finite number above 0"),
        ({"rank": 4, "alpha": float("nan")}, "Lora.alpha is nan"),
        ({"rank": 4, "targets": "q"}, "Lora.targets is 'q'; it must be a list of names"),
        ({"rank": 4, "targets": ()}, r"Lora.targets is \(\); it must be a list of names, or none for all layers"),
    ],
)
def test_a_spec_that_cannot_be(fields, words):
    with pytest.raises(ValueError, match=words):
        Lora(**fields)


def test_adapted_twice():
    with pytest.raises(ValueError, match="has adapters already, at .*; take it without_adapters"):
        adapted(adapted(model(), {"decoder": Lora(4)}), {"vision": Lora(2)})


def test_a_plan_that_does_not_fit():
    """The rank may be sharded, as any other axis, where it divides."""
    rules = dataclasses.replace(ShardingPlan().decoder, parameters={"rank": ("fsdp",)})
    plan = dataclasses.replace(ShardingPlan(), mesh={"fsdp": 4}, decoder=rules)
    mesh = plan.make_mesh()
    abstract = abstract_model(CONFIG, plan, mesh)
    _, params = with_adapters(*abstract, {"decoder": Lora(8)}, plan, mesh)
    assert params["decoder"]["layers"]["mlp"]["up"]["lora_b"].sharding.shard_shape((2, 8, 128)) == (2, 2, 128)
    with pytest.raises(ValueError, match=r"lora_a has rank = 6, which does not divide over fsdp = 4"):
        with_adapters(*abstract, {"decoder": Lora(6)}, plan, mesh)
