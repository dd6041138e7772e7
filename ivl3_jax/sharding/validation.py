"""What a plan cannot do is said before anything compiles."""

from collections.abc import Mapping

from jax.sharding import PartitionSpec

from ivl3_jax.sharding.axes import COMPONENTS
from ivl3_jax.sharding.plan import ShardingPlan

# The activations of each component, by the logical axes of their dimensions.
ACTIVATIONS = {
    "vision": (
        ("tiles", "positions", "embed"),
        ("tiles", "positions", "heads", "head_dim"),
        ("tiles", "positions", "mlp"),
    ),
    "projector": (("tiles", "visual", "unshuffled"), ("tiles", "visual", "mlp"), ("tiles", "visual", "embed")),
    "decoder": (
        ("batch", "residual", "embed"),
        ("batch", "sequence", "embed"),
        ("batch", "sequence", "heads", "head_dim"),
        ("batch", "sequence", "mlp"),
        ("batch", "sequence", "vocab"),
        ("batch", "visual", "embed"),
    ),
}

SHOWN = 16  # sizes that would work, in a message


def check_layout(name: str, axes: tuple[str, ...], spec: PartitionSpec, plan: ShardingPlan) -> None:
    """Refuses a layout that uses a mesh axis twice; `axes` are the logical names of the dimensions."""
    used: dict[str, str] = {}
    for axis, to in zip(axes, spec, strict=True):
        for mesh_axis in _mesh_axes(to):
            if mesh_axis in used:
                raise ValueError(
                    f"plan {plan.name!r}: {name} would be sharded over mesh axis {mesh_axis!r} twice, as "
                    f"{used[mesh_axis]} and as {axis}; send one of them elsewhere"
                )
            used[mesh_axis] = axis


def check_sizes(name: str, sizes: Mapping[str, int], spec: PartitionSpec, plan: ShardingPlan) -> None:
    """Refuses a layout in which a dimension does not divide; `sizes` maps the logical axes to sizes, in order."""
    check_layout(name, tuple(sizes), spec, plan)
    for (axis, size), to in zip(sizes.items(), spec, strict=True):
        shards = plan.size(_mesh_axes(to))
        if size % shards:
            works = [n for n in range(1, size + 1) if size % n == 0][:SHOWN]
            raise ValueError(
                f"plan {plan.name!r}: {name} has {axis} = {size}, which does not divide over "
                f"{' x '.join(_mesh_axes(to))} = {shards}; sizes that would work: {', '.join(map(str, works))}"
            )


def check_activations(plan: ShardingPlan) -> None:
    """Refuses a plan whose activations use a mesh axis twice, or part heads from their keys and values."""
    for component in COMPONENTS:
        table = getattr(plan, component).activations
        if "head_dim" in table:
            raise ValueError(
                f"plan {plan.name!r}: {component}.activations shards head_dim; attention needs whole heads"
            )
        if table.get("kv_heads", table.get("heads")) != table.get("heads"):
            raise ValueError(
                f"plan {plan.name!r}: {component}.activations sends kv_heads to {list(table['kv_heads'])} and heads to "
                f"{list(table.get('heads', ()))}; leave kv_heads out, or send both to the same mesh axes"
            )
        for axes in ACTIVATIONS[component]:
            name = f"the {component} activation [{', '.join(axes)}]"
            check_layout(name, axes, getattr(plan, component).activation(*axes), plan)


def _mesh_axes(to: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (to,) if isinstance(to, str) else tuple(to or ())
