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


def check_batch(rows: int, tokens: int, plan: ShardingPlan, of: str = "") -> None:
    """Refuses B rows of S positions that do not divide; `of` says in messages which rows they are."""
    if tokens % (chunks := len(plan.chunks)):
        axes = plan.decoder.activations["sequence"]
        works = [str(n) for n in range(1, tokens // 2 + 1) if tokens % (2 * n) == 0 == plan.devices % n][:SHOWN]
        lengths = [str(n) for n in (tokens // chunks * chunks, -(-tokens // chunks) * chunks) if n]
        raise ValueError(
            f"plan {plan.name!r}: tokens{of} has sequence = {tokens}, which does not divide into the {chunks} chunks "
            f"of context.order zigzag, two for each of {' x '.join(axes)} = {chunks // 2}; sizes that would work: "
            f"{', '.join(works) or 'none'}; rows that would: {', '.join(lengths)}"
        )
    for axis in ("sequence", "residual"):
        check_sizes(f"tokens{of}", {"batch": rows, axis: tokens}, plan.decoder.activation("batch", axis), plan)


def check_heads(heads: int, plan: ShardingPlan) -> None:
    """Refuses a decoder whose query heads cannot be spread over the shards of the sequence as well."""
    axes = tuple(axis for name in ("heads", "sequence") for axis in plan.decoder.activations.get(name, ()))
    shards = plan.size(axes)
    if plan.context.attention == "all_to_all" and heads % shards:
        works = [n for n in range(1, heads + 1) if heads % n == 0][:SHOWN]
        raise ValueError(
            f"plan {plan.name!r}: context.attention is 'all_to_all' and the decoder has heads = {heads}, which do not "
            f"divide over {' x '.join(axes)} = {shards}; sizes that would work: {', '.join(map(str, works))}; or use "
            "gather or ring"
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


def check_pipeline(layers: int, plan: ShardingPlan) -> None:
    """Refuses a plan by which so many layers of the decoder cannot be a pipeline; with one stage there is none."""
    if (schedule := plan.schedule) is None:
        return
    S, R, M = schedule.stages, schedule.repeats, schedule.microbatches
    rows = plan.decoder.activations.get("batch", ())
    if rows[:2] != ("stage", "data"):
        right = ["stage", "data", *(axis for axis in rows if axis not in ("stage", "data"))]
        raise ValueError(
            f"plan {plan.name!r}: decoder.activations sends batch to {list(rows)}; a pipeline of {S} stages needs "
            f"stage and data first: {right}"
        )
    if M % S:
        raise ValueError(
            f"plan {plan.name!r}: pipeline.microbatches is {M}; it must be a multiple of the {S} stages: "
            f"{S}, {2 * S}, {3 * S}, ..."
        )
    if layers % (S * R):
        works = [n for n in range(1, layers + 1) if layers % n == 0]
        raise ValueError(
            f"plan {plan.name!r}: the decoder's {layers} layers cannot be cut into stages x repeats = {S} x {R} equal "
            f"runs; stages x repeats that would work: {', '.join(map(str, works))}"
        )


def check_microbatches(rows: int, plan: ShardingPlan) -> None:
    """Refuses rows, of a batch or of a part of one, that cannot be cut into the pipeline's microbatches."""
    if (schedule := plan.schedule) is None:
        return
    axes, M = plan.decoder.activations["batch"][1:], schedule.microbatches
    shards = plan.size(axes)
    if rows % (shards * M):
        works = [n for n in range(schedule.stages, rows // shards + 1, schedule.stages) if rows % (shards * n) == 0]
        raise ValueError(
            f"plan {plan.name!r}: {rows} rows, spread over {' x '.join(axes) or 'nothing'} = {shards}, cannot be cut "
            f"into pipeline.microbatches = {M}; rows that would work: multiples of {shards * M}; microbatches: "
            f"{', '.join(map(str, works[:SHOWN])) or 'none'}"
        )


def _mesh_axes(to: str | tuple[str, ...] | None) -> tuple[str, ...]:
    return (to,) if isinstance(to, str) else tuple(to or ())
