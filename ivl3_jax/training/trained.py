"""What of a model is trained, and how fast: whole components, ranges of layers, layer-wise decay."""

from collections.abc import Mapping

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from ivl3_jax.models.adapters import LEAVES as ADAPTERS
from ivl3_jax.models.model import Params
from ivl3_jax.training.config import Component

Rates = Mapping[tuple[str, ...], np.ndarray]  # by path: [1, ...] or [layers, 1, ...]


def rates(params: Params, components: Mapping[str, Component]) -> Rates:
    """For each parameter that is trained, by its path, the factors on the learning rate.

    Stacked parameters have a factor for each layer, which is 0 for layers that are not trained. Where there are
    adapters in a component, they alone are trained of it.

    Raises:
        ValueError: a component is to be trained by layers and has none of them, or nothing is trained.
    """
    for name, component in components.items():
        depth = _depth(params[name])
        by_layers = component.layers is not None or component.layer_decay != 1
        if by_layers and not depth:
            raise ValueError(f"train.{name} has layers or layer_decay, and the {name} has no layers; leave them out")
        if component.train and component.layers is not None and not component.chosen(depth).any():
            raise ValueError(f"train.{name}.layers is {component.layers!r}; it selects none of the {depth} layers")
    flat = flatten_dict(params)
    adapted = {path[0] for path in flat if path[-1] in ADAPTERS}
    found = {}
    for path, leaf in flat.items():
        component = components[path[0]]
        if not component.train or (path[0] in adapted and path[-1] not in ADAPTERS):
            continue
        factors = _factors(path, leaf.ndim, component, _depth(params[path[0]]), before=path[1] in BEFORE)
        if factors.any():
            found[path] = factors
    if not found:
        layers = {name: component.layers for name, component in components.items() if component.train}
        raise ValueError(f"nothing is trained: {layers} selects no layer")
    return found


BEFORE = ("patch", "cls", "positions", "embed")  # what comes before a component's first layer


def _depth(component: Params) -> int:
    return jax.tree.leaves(component["layers"])[0].shape[0] if "layers" in component else 0


def _factors(path: tuple[str, ...], ndim: int, component: Component, depth: int, *, before: bool) -> np.ndarray:
    if path[1] != "layers":
        decayed = component.layer_decay ** (depth + 1 if before else 0) if depth else 1.0
        return np.full((1,) * ndim, component.rate * decayed * (component.layers is None))
    decayed = component.layer_decay ** np.arange(depth, 0, -1)
    return (component.rate * decayed * component.chosen(depth)).reshape(-1, *(1,) * (ndim - 1))


def split(params: Params, trained: Rates) -> tuple[Params, Params]:
    """The parameters that are trained, and the others."""
    flat = flatten_dict(params)
    inside = {path: leaf for path, leaf in flat.items() if path in trained}
    outside = {path: leaf for path, leaf in flat.items() if path not in trained}
    return unflatten_dict(inside), unflatten_dict(outside)


def join(trained: Params, others: Params) -> Params:
    """What `split` took apart."""
    return unflatten_dict(flatten_dict(trained) | flatten_dict(others))
