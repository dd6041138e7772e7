"""Operations of a step beside a count of every product that the gradient of the model has."""

import math

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.interpreters import partial_eval

import ivl3_jax
from ivl3_jax.config import Lora
from ivl3_jax.models.model import Model, place_batch
from ivl3_jax.training.config import Component
from ivl3_jax.training.flops import StepFlops
from ivl3_jax.training.trained import rates
from tests.models.small import CONFIG, random_batch

TILES, POSITIONS = 2, 40
PATCH = 3 * 7 * 7 * CONFIG.vision.width  # the kernel's size
FROZEN = Component(train=False)
ALL = {"vision": Component(), "projector": Component(), "decoder": Component()}


def products(jaxpr):
    """Operations of all products of matrices.

    But of attention, which have batch dimensions, of the vocabulary, and of rope, which is a product for speed alone.
    """
    total = 0
    turn = (CONFIG.decoder.head_dim,) * 2
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            (contracted, _), (batched, _) = equation.params["dimension_numbers"]
            left, right = (variable.aval.shape for variable in equation.invars)
            if not batched and CONFIG.decoder.vocab not in (*left, *right) and turn not in (left, right):
                inner = math.prod(left[axis] for axis in contracted)
                total += 2 * math.prod(left) * math.prod(right) // inner
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        for parameter in equation.params.values():
            for inner in parameter if isinstance(parameter, tuple | list) else [parameter]:
                inner = getattr(inner, "jaxpr", inner)
                if hasattr(inner, "eqns"):
                    total += times * products(inner)
    return total


def counted(model, components):
    """Operations of linear layers in the loss and its gradient by what is trained."""
    batch = random_batch(1, [(POSITIONS, TILES)], length=POSITIONS, tiles=TILES)
    flat = flatten_dict(model.params)
    moving = {path: flat[path] for path in rates(model.params, components)}
    with jax.set_mesh(model.mesh):
        placed = place_batch(batch, model.plan, model.mesh)

        def loss(moving):
            return jnp.square(nnx.merge(model.graphdef, unflatten_dict(flat | moving))(placed)).sum()

        closed = jax.make_jaxpr(jax.value_and_grad(loss))(moving)
    jaxpr, _ = partial_eval.dce_jaxpr(closed.jaxpr, [True] * len(closed.jaxpr.outvars))
    return products(jaxpr)


def visual_attention(passes):
    vision = CONFIG.vision
    return passes * 4 * TILES * vision.positions**2 * vision.width * vision.layers


def stated(model, components, **counts):
    nothing = {"positions": 0, "tokens": 0, "attended": 0, "tiles": 0}
    return StepFlops(CONFIG, model.params, components)(**nothing | counts)


@pytest.fixture(scope="module")
def model():
    return Model.init(CONFIG, seed=1)


# What is trained; passes of the ViT and of the decoder; what the products do without of three passes over each matrix:
# the gradient of the pixels, and the CLS slot, which is no patch.
CASES = {
    "all": (ALL, 3, 3, 2 * PATCH * TILES * (CONFIG.vision.patches + 3)),
    "without the ViT": (ALL | {"vision": FROZEN}, 1, 3, 2 * PATCH * TILES),
}


@pytest.mark.parametrize("name", CASES)
def test_every_product_is_counted(model, name):
    components, vision, decoder, not_needed = CASES[name]
    linear = stated(model, components, positions=POSITIONS, tiles=TILES) - visual_attention(vision)
    assert linear == counted(model, components) + not_needed
    d = CONFIG.decoder
    assert stated(model, components, tokens=1) == decoder * 2 * d.width * d.vocab
    assert stated(model, components, attended=1) == decoder * 4 * d.heads * d.head_dim * d.layers


def test_adapters(model):
    """The gradient of a frozen matrix is not computed; those of A and B are.

    What is counted too much is the gradient of the first layer's input, which nothing needs.
    """
    adapted = ivl3_jax.adapted(model, {"decoder": Lora(2)})
    components = {"vision": FROZEN, "projector": FROZEN, "decoder": Component(lora=Lora(2))}
    linear = stated(adapted, components, positions=POSITIONS, tiles=TILES) - visual_attention(1)
    assert linear == pytest.approx(counted(adapted, components), rel=2e-3)
    full = stated(model, ALL, positions=POSITIONS, tiles=TILES)
    assert linear < 0.7 * full
