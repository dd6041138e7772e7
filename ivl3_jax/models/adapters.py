"""LoRA: a model with adapters on its linear layers, the same without them, and the same with them folded in."""

import dataclasses
import math
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.experimental import multihost_utils
from jax.sharding import Mesh, auto_axes

from ivl3_jax.config import Lora
from ivl3_jax.layers.linear import Linear
from ivl3_jax.layers.lora import kaiming_uniform, merge
from ivl3_jax.layers.parameter import accumulation_dtype
from ivl3_jax.models.internvl import InternVL
from ivl3_jax.models.model import Model, Params, placed
from ivl3_jax.sharding.axes import COMPONENTS
from ivl3_jax.sharding.plan import ShardingPlan

LEAVES = ("lora_a", "lora_b")


class Adapter(NamedTuple):
    """Of one linear layer, or of one in every layer of a stack: r, and what A B is multiplied by, alpha / r."""

    rank: int
    scale: float


def adapted(model: Model, specs: Mapping[str, Lora], seed: int = 0) -> Model:
    """The same model with new adapters, which change nothing yet: A is drawn as peft draws it, B is zero.

    The leaves `lora_a` [layers, *inputs, r] and `lora_b` [layers, r, *outputs] lie beside the `kernel` they adapt, laid
    out by the plan. They are stored in at least float32 whatever the model is stored in, as peft does by default; the
    products are in the dtype of the computation. All other leaves are those of `model`. An A depends on `seed`, its
    path and its shape, and on nothing else.

    Args:
        specs: by component: `vision`, `projector`, `decoder`.

    Raises:
        ValueError: another component, a target that it does not have, or a model that has adapters already.
    """
    graphdef, params = with_adapters(model.graphdef, model.params, specs, model.plan, model.mesh)
    leaves = flatten_dict(params, sep="/")
    fresh = {path: leaf for path, leaf in leaves.items() if is_adapter(path)}
    inputs = {f"{path}/lora_a": len(linear.inputs) for path, linear in _linears(nnx.merge(graphdef, params)).items()}

    def make(key: jax.Array) -> dict[str, jax.Array]:
        return {path: first(jax.random.fold_in(key, zlib.crc32(path.encode())), path) for path in fresh}

    def first(key: jax.Array, path: str) -> jax.Array:
        shape, dtype = fresh[path].shape, fresh[path].dtype
        if path not in inputs:
            return jnp.zeros(shape, dtype)
        return kaiming_uniform(key, shape, dtype, math.prod(shape[-1 - inputs[path] : -1]))

    with jax.set_mesh(model.mesh):
        layouts = jax.tree.map(lambda leaf: leaf.sharding.spec, fresh)
        made = jax.jit(auto_axes(make, out_sharding=layouts))(jax.random.key(seed))
    return dataclasses.replace(model, graphdef=graphdef, params=unflatten_dict(leaves | made, sep="/"))


def with_adapters(
    graphdef: nnx.GraphDef, params: Params, specs: Mapping[str, Lora], plan: ShardingPlan, mesh: Mesh
) -> tuple[nnx.GraphDef, Params]:
    """The definition with adapters, and its parameters: the given ones, and the adapters' as ShapeDtypeStructs.

    What `abstract_model` returns thus becomes the abstract model with adapters, for ahead-of-time compilation.

    Raises:
        ValueError: as `adapted`; or the plan does not fit.
    """
    there = _linears(nnx.merge(graphdef, params))
    adapters = {}
    for component, spec in specs.items():
        if component not in COMPONENTS:
            raise ValueError(f"adapters of {component!r}: no component is called so; valid: {', '.join(COMPONENTS)}")
        names = {path: path.rsplit("/", 1)[1] for path in there if path.startswith(f"{component}/")}
        for target in spec.targets or ():
            if target not in names.values():
                valid = ", ".join(names.values())
                raise ValueError(f"adapters of {component}: it has no linear layers {target!r}; valid: {valid}")
        scale = 2.0 if spec.alpha is None else spec.alpha / spec.rank
        chosen = [path for path, name in names.items() if spec.targets is None or name in spec.targets]
        adapters |= {path: Adapter(spec.rank, scale) for path in chosen}
    return attach(graphdef, params, adapters, plan, mesh)


def attach(
    graphdef: nnx.GraphDef, params: Params, adapters: Mapping[str, Adapter], plan: ShardingPlan, mesh: Mesh
) -> tuple[nnx.GraphDef, Params]:
    """As `with_adapters`, of single linear layers by their paths.

    Raises:
        ValueError: the model has adapters already.
    """
    module = nnx.merge(graphdef, params)
    plan = plan.for_heads(module.config.decoder.kv_heads)
    if found := scales(graphdef, params):
        raise ValueError(f"the model has adapters already, at {next(iter(found))} and others; take it without_adapters")
    for path, linear in _linears(module).items():
        if path not in adapters:
            continue
        rank, linear.lora_scale = adapters[path]
        kernel, n = linear.kernel, len(linear.outputs)
        stack = kernel.shape[: kernel.ndim - len(kernel.axes)]
        a = (*kernel.shape[:-n], rank), (*linear.inputs, "rank")
        b = (*stack, rank, *kernel.shape[-n:]), ("rank", *linear.outputs)
        for name, (shape, axes) in zip(LEAVES, (a, b), strict=True):
            leaf = jax.ShapeDtypeStruct(shape, accumulation_dtype(kernel.dtype))
            setattr(linear, name, nnx.Param(placed((*path.split("/"), name), leaf, axes, plan, mesh), axes=axes))
    graphdef, state = nnx.split(module)
    return graphdef, nnx.to_pure_dict(state)


def scales(graphdef: nnx.GraphDef, params: Params) -> dict[str, float]:
    """The linear layers that have adapters, by their paths, and what A B is multiplied by."""
    linears = _linears(nnx.merge(graphdef, params))
    return {path: linear.lora_scale for path, linear in linears.items() if hasattr(linear, "lora_a")}


def is_adapter(path: str) -> bool:
    """Whether the leaf at a path, its parts joined by slashes, belongs to an adapter."""
    return path.endswith(LEAVES)


def can_have_adapter(path: str) -> bool:
    """Whether the linear layer at a path is one of the blocks or of the projector."""
    return "/layers/" in path or path.startswith("projector/")


def base_params(params: Params) -> Params:
    """The leaves that are not adapters'."""
    leaves = flatten_dict(params, sep="/")
    return unflatten_dict({path: leaf for path, leaf in leaves.items() if not is_adapter(path)}, sep="/")


def without_adapters(model: Model) -> Model:
    """The model that was adapted, its leaves the same arrays."""
    module = nnx.merge(model.graphdef, model.params)
    for linear in _linears(module).values():
        for name in (*LEAVES, "lora_scale"):
            if hasattr(linear, name):
                delattr(linear, name)
    return dataclasses.replace(model, graphdef=nnx.split(module)[0], params=base_params(model.params))


def merged(model: Model) -> Model:
    """The model with W + alpha / r · A B in the place of W and its adapter, computed by `layers.lora.merge`.

    Each process merges what its devices hold, on its host, in at least float32 and rounded once.
    """
    leaves = flatten_dict(model.params, sep="/")
    base = without_adapters(model)
    params = flatten_dict(base.params, sep="/")
    for path, scale in scales(model.graphdef, model.params).items():
        a, b = (_whole(leaves[f"{path}/{name}"]) for name in LEAVES)
        params[f"{path}/kernel"] = _merged(leaves[f"{path}/kernel"], a, b, scale, stacked="/layers/" in path)
    return dataclasses.replace(base, params=unflatten_dict(params, sep="/"))


def _merged(kernel: jax.Array, a: np.ndarray, b: np.ndarray, scale: float, stacked: bool) -> jax.Array:
    """kernel [layers, *inputs, *outputs] + scale · a [layers, *inputs, r] b [layers, r, *outputs], laid out as it."""
    if not stacked:
        a, b = a[None], b[None]
    n, made, arrays = a.ndim - 2, {}, []
    for shard in kernel.addressable_shards:
        if str(shard.index) not in made:  # replicas are merged once
            index = shard.index if stacked else (slice(None), *shard.index)
            out = np.array(shard.data)
            layers = out if stacked else out[None]
            for layer, left, right in zip(layers, a[index[: n + 1]], b[index[0], :, *index[n + 1 :]], strict=True):
                left, right = left.reshape(-1, left.shape[-1]), right.reshape(len(right), -1)
                layer[...] = merge(layer.reshape(len(left), -1), left, right, scale).reshape(layer.shape)
            made[str(shard.index)] = out
        arrays.append(jax.device_put(made[str(shard.index)], shard.device))
    return jax.make_array_from_single_device_arrays(kernel.shape, kernel.sharding, arrays)


def _whole(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable:
        return np.asarray(array)
    return multihost_utils.process_allgather(array, tiled=True)


def _linears(module: InternVL) -> dict[str, Linear]:
    """The linear layers that can have adapters, by their paths."""
    found = (("/".join(path), inner) for path, inner in nnx.iter_modules(module) if isinstance(inner, Linear))
    return {path: linear for path, linear in found if can_have_adapter(path)}
