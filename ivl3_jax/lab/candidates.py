"""The plans that a search looks at: shipped ones on every mesh that a model and a slice allow."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence

from ivl3_jax.config import InternVLConfig
from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.case import Case
from ivl3_jax.lab.roofline import Estimate, estimate, leaves
from ivl3_jax.lab.topology import Topology
from ivl3_jax.sharding.axes import COMPONENTS
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.plan_file import PLAN_DIRECTORY
from ivl3_jax.sharding.remat import ATTENTION, INPUT, POLICIES, Remat
from ivl3_jax.sharding.validation import check_activations, check_batch, check_heads, check_microbatches, check_pipeline

# Of the decoder; the ViT keeps its plan's. The last keeps what attention and the sums over `tensor` are made of.
REMATS = {
    "full": Remat(()),
    "attention": Remat((ATTENTION,)),
    "all but gate and up": Remat((ATTENTION, "q", "k", "v", "out", "down")),
    "dots": POLICIES["dots"],
    "inputs on the host": Remat((ATTENTION,), (INPUT,)),
}
TENSOR = (2, 4, 8, 16)
CONTEXT = (2, 4, 8, 16, 32)
STAGES = (2, 4, 8, 16)
REPEATS = (1, 2)
MICROBATCHES = (1, 2, 4)  # for each stage


def shipped(coupled: bool) -> list[str]:
    """Names of the shipped plans for more than one device; `coupled`: with the ViT sharded as the decoder too."""
    names = sorted(file.stem for file in PLAN_DIRECTORY.glob("*.yaml"))
    return [name for name in names if name != "single" and (coupled or not name.endswith("_coupled"))]


def plans(names: Iterable[str], topology: Topology) -> Iterator[ShardingPlan]:
    """The named plans on every mesh of the topology's chips, with every remat policy in `REMATS` and with their own.

    Of plans that are one on their mesh, since they differ in axes of size 1 alone, the first.
    """
    seen = set()
    for name in names:
        base = ShardingPlan.read(name)
        for sized in _meshes(base, topology):
            if (content := _content(sized)) in seen:
                continue
            seen.add(content)
            own = sized.remat_of("decoder")
            if own not in REMATS.values():
                yield dataclasses.replace(sized, name=f"{name}, its own remat")
            for told, remat in REMATS.items():
                policies = {**sized.remat, "decoder": remat}
                yield dataclasses.replace(sized, name=f"{name}, {told}", remat=policies)


def _content(plan: ShardingPlan) -> str:
    """What a plan does on its mesh, but for the name and the decoder's remat."""
    tables = {
        (component, kind, axis): used
        for component in COMPONENTS
        for kind in ("parameters", "activations")
        for axis, to in getattr(getattr(plan, component), kind).items()
        if (used := tuple(mesh_axis for mesh_axis in to if plan.mesh.get(mesh_axis, 1) > 1))
    }
    context = plan.context if plan.mesh.get("context", 1) > 1 else None
    rest = plan.mesh_shape, context, plan.schedule, plan.remat_of("vision"), plan.offload, plan.compiler
    return repr((sorted(tables.items()), rest))


def legal(case: Case) -> str | None:
    """Why a case cannot be, None if it can; without a compiler, and without a mesh."""
    plan, config = case.plan, case.config
    try:
        check_activations(plan)
        check_heads(config.decoder.heads, plan)
        check_pipeline(config.decoder.layers, plan)
        rows = case.batch.rows // case.train.accumulate
        check_batch(rows, case.batch.tokens, plan)
        check_microbatches(rows, plan)
    except ValueError as error:
        return str(error)
    return _undivided(config, plan)


def _meshes(base: ShardingPlan, topology: Topology) -> Iterator[ShardingPlan]:
    """A plan on meshes in which every axis that it has is in use, and what is left is `fsdp`."""
    used = set(base.mesh)
    choices: dict[str, Sequence[int]] = {
        "tensor": TENSOR if base.mesh.keys() <= {"fsdp", "tensor"} else (1, *TENSOR),
        "context": CONTEXT,
        "stage": STAGES,
        "data": (2, 4, 8) if topology.slices == 1 else (topology.slices,),
    }
    meshes: list[dict[str, int]] = [{}]
    for axis, sizes in choices.items():
        if axis in used or (axis == "data" and topology.slices > 1):
            meshes = [{**mesh, axis: size} for mesh in meshes for size in sizes]
    for mesh in meshes:
        others = base.with_mesh({**mesh, "fsdp": 1}).devices
        if topology.chips % others:
            continue
        sized = base.with_mesh({**mesh, "fsdp": topology.chips // others})
        yield from _forms(sized)


def _forms(plan: ShardingPlan) -> Iterator[ShardingPlan]:
    """A plan's forms of context parallelism and of the pipeline, its own first where it is another."""
    if plan.mesh.get("context", 1) > 1:
        forms = [
            dataclasses.replace(plan.context, attention=attention, order=order)
            for attention, order in (("gather", "zigzag"), ("ring", "zigzag"), ("all_to_all", "plain"))
        ]
        for context in forms if plan.context in forms else [plan.context, *forms]:
            yield dataclasses.replace(plan, context=context)
    elif (stages := plan.mesh.get("stage", 1)) > 1:
        pipelines = [
            dataclasses.replace(plan.pipeline, microbatches=times * stages, repeats=repeats)
            for repeats in REPEATS
            for times in MICROBATCHES
        ]
        own = plan.pipeline.microbatches is not None and plan.pipeline not in pipelines
        for pipeline in [plan.pipeline, *pipelines] if own else pipelines:
            yield dataclasses.replace(plan, pipeline=pipeline)
    else:
        yield plan


def _undivided(config: InternVLConfig, plan: ShardingPlan) -> str | None:
    plan = plan.for_heads(config.decoder.kv_heads)
    for leaf in leaves(config):
        rules = getattr(plan, leaf.component)
        for table in (rules.parameters, rules.activations):
            for axis, size in zip(leaf.axes, leaf.sizes, strict=True):
                if axis != "vocab" and size % (shards := plan.size(table.get(axis, ()))):
                    return f"{leaf.component} has {axis} = {size}, which does not divide over {shards}"
    return None


def ranked(
    cases: Iterable[Case], *, most: int, room: float = 1.15, calibration: Calibration | None = None
) -> tuple[list[tuple[Case, Estimate]], list[tuple[str, str]]]:
    """The most promising cases by the roofline, most tokens a second first; and the others with the reason.

    Args:
        most: how many are kept. room: of HBM that a guess may take, as guesses of memory may be too high.
        calibration: of the rooflines.
    """
    found, rejected = [], []
    for case in cases:
        if (reason := legal(case)) is not None:
            rejected.append((case.name, reason))
            continue
        guess = estimate(case, calibration)
        if guess.gibibytes > room * case.topology.chip.hbm:
            told = f"about {guess.gibibytes:.0f} GiB of {case.topology.chip.hbm} by the roofline"
            rejected.append((case.name, told))
            continue
        found.append((case, guess))
    found = _mixed(sorted(found, key=lambda each: each[1].seconds / each[0].tokens))
    rejected += [
        (case.name, f"{case.tokens / guess.seconds / case.topology.chips:,.0f} tokens/s a chip by the roofline")
        for case, guess in found[most:]
    ]
    return found[:most], rejected


def _mixed(found: list[tuple[Case, Estimate]]) -> list[tuple[Case, Estimate]]:
    """First the best of every plan and mesh, then the second best of each, and so on.

    Guesses for what differs in remat and rows alone are closer to each other than to the truth; of the forms of context
    parallelism, which they hardly tell apart, the gather comes first.
    """
    places: dict[tuple, int] = {}
    order = []
    for case, guess in found:
        plan = case.plan
        kind = plan.name.partition(",")[0], plan.mesh_shape
        places[kind] = places.get(kind, 0) + 1
        order.append((places[kind], guess.seconds / case.tokens, len(order)))
    return [found[number] for _, _, number in sorted(order)]
