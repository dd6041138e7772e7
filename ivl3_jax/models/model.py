"""A model in hand: definition, parameters on a mesh, and where they came from."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import jax
import jax.numpy as jnp
from flax import nnx
from flax.traverse_util import unflatten_dict
from jax.sharding import Mesh, NamedSharding, auto_axes

from ivl3_jax.batch import Batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.models.internvl import InternVL
from ivl3_jax.sharding.plan import Rules, ShardingPlan
from ivl3_jax.sharding.validation import (
    check_activations,
    check_batch,
    check_heads,
    check_microbatches,
    check_pipeline,
    check_sizes,
)

Params = dict[str, Any]  # nested, leaves are arrays


@dataclass(frozen=True)
class Model:
    """Parameters and everything needed to use them.

    Attributes:
        config: sizes. plan, mesh: where the parameters lie.
        graphdef: the definition, as `nnx.merge(graphdef, params)` wants it.
        params: nested dictionary of arrays, layers stacked on a leading axis.
        source: the directory with its tokenizer and processor files, such as the one it was loaded from.
    """

    config: InternVLConfig
    plan: ShardingPlan
    mesh: Mesh
    graphdef: nnx.GraphDef
    params: Params
    source: Path | None = None

    @classmethod
    def init(
        cls,
        config: InternVLConfig,
        plan: ShardingPlan | None = None,
        *,
        seed: int = 0,
        param_dtype: str = "float32",
        dtype: str = "float32",
        devices: list | None = None,
    ) -> Self:
        """A freshly initialised model, each device making only its own slices."""
        plan = plan or ShardingPlan()
        mesh = plan.make_mesh(devices)
        graphdef, abstract = abstract_model(config, plan, mesh, param_dtype=param_dtype, dtype=dtype)
        return cls(config, plan, mesh, graphdef, fresh_params(config, plan, mesh, abstract, seed=seed))

    def __call__(self, batch: Batch) -> jax.Array:
        """Logits [B, S, V] of a batch of numpy or JAX arrays."""
        with jax.set_mesh(self.mesh):
            return self._logits(self.params, place_batch(batch, self.plan, self.mesh))

    @cached_property
    def _logits(self) -> Any:
        return jax.jit(lambda params, batch: nnx.merge(self.graphdef, params)(batch))

    @property
    def parameter_count(self) -> int:
        return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(self.params))

    def with_plain_rope(self) -> Self:
        """The same model with dynamic NTK off, see `RopeScaling`; `save` writes it as before."""
        config = dataclasses.replace(self.config, decoder=self.config.decoder.with_plain_rope())
        with jax.set_mesh(self.mesh):
            module = nnx.merge(self.graphdef, self.params)
            module.config, module.decoder.config = config, config.decoder
            return dataclasses.replace(self, config=config, graphdef=nnx.split(module)[0])

    def replace(self, params: Params) -> Self:
        """The same model with other parameters of the same shapes."""
        return dataclasses.replace(self, params=params)


def fresh_params(
    config: InternVLConfig, plan: ShardingPlan, mesh: Mesh, abstract: Params, *, seed: int, only: Sequence[str] = ()
) -> Params:
    """Freshly initialised parameters of the shapes and layouts in `abstract`; of the components `only`, if any."""
    wanted = {name: part for name, part in abstract.items() if name in only or not only}
    dtype = jax.tree.leaves(abstract)[0].dtype

    def make(key: jax.Array) -> Params:
        module = InternVL(config, plan, rngs=nnx.Rngs(params=key), param_dtype=dtype)
        made = nnx.to_pure_dict(nnx.split(module)[1])
        return {name: made[name] for name in wanted}

    with jax.set_mesh(mesh):
        layouts = jax.tree.map(lambda leaf: leaf.sharding.spec, wanted)
        # Random draws have no layout of their own: let the compiler spread them.
        return jax.jit(auto_axes(make, out_sharding=layouts))(jax.random.key(seed))


def abstract_model(
    config: InternVLConfig,
    plan: ShardingPlan,
    mesh: Mesh,
    *,
    param_dtype: str = "float32",
    dtype: str = "float32",
) -> tuple[nnx.GraphDef, Params]:
    """The definition, and its parameters as ShapeDtypeStructs with the plan's shardings; nothing is allocated.

    Raises:
        ValueError: a dimension does not divide over its mesh axes, an array would use a mesh axis twice, the decoder's
            layers do not fit the plan's pipeline, or float64 is asked for without 64-bit mode.
    """
    check_activations(plan)
    check_pipeline(config.decoder.layers, plan)
    check_heads(config.decoder.heads, plan)
    if "float64" in (param_dtype, dtype) and not jax.config.jax_enable_x64:
        raise ValueError("float64 needs 64-bit mode: set JAX_ENABLE_X64=1, or jax.config.update first")

    def make() -> InternVL:
        dtypes = {"param_dtype": jnp.dtype(param_dtype), "dtype": jnp.dtype(dtype)}
        return InternVL(config, plan, rngs=nnx.Rngs(params=0), **dtypes)

    module = nnx.eval_shape(make)
    graphdef, state = nnx.split(module)
    plan = plan.for_heads(config.decoder.kv_heads)
    flat = nnx.to_flat_state(state)
    return graphdef, unflatten_dict({path: placed(path, leaf, leaf.axes, plan, mesh) for path, leaf in flat})


def placed(
    path: tuple[str, ...], leaf: Any, axes: tuple[str, ...], plan: ShardingPlan, mesh: Mesh
) -> jax.ShapeDtypeStruct:
    """The shape and dtype of a parameter with the plan's sharding.

    Args:
        path: its component first. leaf: anything that has a shape and a dtype.
        axes: the logical names of its dimensions, without the leading one of stacked layers.
        plan: for the model's kv heads, see `ShardingPlan.for_heads`.

    Raises:
        ValueError: a dimension does not divide over its mesh axes, or a mesh axis would be used twice.
    """
    rules: Rules = getattr(plan, path[0])
    axes = ("layers",) * (len(leaf.shape) - len(axes)) + axes
    spec, sizes = rules.parameter(*axes), dict(zip(axes, leaf.shape, strict=True))
    check_sizes("/".join(path), sizes, spec, plan)
    check_sizes(f"{'/'.join(path)} in use", sizes, rules.activation(*axes), plan)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))


def batch_specs(plan: ShardingPlan) -> Batch:
    """The layout of each array of a batch: its rows as the decoder's batch axis.

    Positions are whole: the model, which alone knows their order on the shards, takes each device's from them.
    """
    return Batch(*[plan.decoder.activation("batch")] * len(Batch._fields))


def place_batch(batch: Batch, plan: ShardingPlan, mesh: Mesh) -> Batch:
    """Puts a batch of host arrays onto the mesh.

    Raises:
        ValueError: rows or positions do not divide over the plan's axes, or rows not into its microbatches.
    """
    B, S = batch.tokens.shape
    check_batch(B, S, plan)
    check_microbatches(B, plan)
    return jax.tree.map(lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec)), batch, batch_specs(plan))
