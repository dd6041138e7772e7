"""Adapters that do something, and their gradients."""

import jax
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict

from ivl3_jax.models.adapters import Lora, adapted, is_adapter
from ivl3_jax.models.internvl import batch_loss
from ivl3_jax.models.model import place_batch

EVERYWHERE = {"vision": Lora(2), "projector": Lora(3, alpha=5), "decoder": Lora(4)}


def trained(model, specs=EVERYWHERE, seed=3):
    """`model` with adapters whose B is random, the same under every plan."""
    new = adapted(model, specs, seed)
    leaves = flatten_dict(new.params, sep="/")
    for number, path in enumerate(sorted(path for path in leaves if path.endswith("lora_b"))):
        leaf = leaves[path]
        values = 0.1 * np.random.default_rng([seed, number]).standard_normal(leaf.shape)
        leaves[path] = jax.device_put(values.astype(leaf.dtype), leaf.sharding)
    return new.replace(unflatten_dict(leaves, sep="/"))


def parted(model):
    """The adapters, and the other leaves, by path."""
    leaves = flatten_dict(model.params, sep="/")
    return tuple({path: x for path, x in leaves.items() if is_adapter(path) == wanted} for wanted in (True, False))


def loss_function(model):
    """The loss as a function of the adapters, of the other leaves, and of a batch."""

    def loss(adapters, base, batch):
        return batch_loss(nnx.merge(model.graphdef, unflatten_dict(base | adapters, sep="/")), batch)

    return loss


def adapter_gradients(model, batch):
    """The loss, and its gradient for every adapter by its path, which lies as the adapter does."""
    adapters, base = parted(model)
    with jax.set_mesh(model.mesh):
        placed = place_batch(batch, model.plan, model.mesh)
        value, found = jax.jit(jax.value_and_grad(loss_function(model)))(adapters, base, placed)
    assert all(found[path].sharding == leaf.sharding for path, leaf in adapters.items())
    return float(value), {path: np.asarray(x) for path, x in found.items()}
