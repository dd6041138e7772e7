"""Short names of cases that stand beside each other: the plan, its mesh, and of all else what differs."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from ivl3_jax.lab.case import Case
from ivl3_jax.sharding.remat import POLICIES, Remat

# Fields of a case that are told in words; others by their own names.
WORDS = {
    "batch.tokens": "{} tokens a row",
    "batch.tiles": "{} tiles a row",
    "documents": "{} documents a row",
    "topology": "on {}",
    "model": "{}",
    "remat.decoder": "remat {}",
    "remat.vision": "ViT remat {}",
    "context": "{}",
    "pipeline": "{}",
}
ASKED = ("rows", "batch.tokens", "batch.tiles", "documents", "topology", "model")
LEFT_OUT = (
    "plan.name",
    "plan.mesh",
    "plan.remat",
    "plan.context",
    "plan.pipeline",
    "config",
    "batch.rows",
    "batch.segments",
)


def labels(cases: Sequence[Case]) -> list[str]:
    """A name for each, as `sequence (fsdp 8 x tensor 2), remat dots`.

    Plan and mesh, and of other fields those that differ between the cases and that the plan's name does not tell.
    """
    told = [fields(case) for case in cases]
    every = list(dict.fromkeys(name for each in told for name in each))
    shown = [name for name in every if _differs(name, told) and not _implied(name, cases, told)]
    return [
        ", ".join([f"{case.plan.name} ({case.mesh})", *(_said(name, found[name]) for name in shown if name in found)])
        for case, found in zip(cases, told, strict=True)
    ]


def fields(case: Case) -> dict[str, str]:
    """What a case is made of but for its mesh and the sizes of its model, each value as text."""
    found = {"rows": f"{case.rows:g}"}
    found |= {f"remat.{part}": policy_name(case.plan.remat_of(part)) for part in ("decoder", "vision")}
    if case.plan.mesh.get("context", 1) > 1:
        found["context"] = " ".join((case.plan.context.attention, case.plan.context.order))
    if (schedule := case.plan.schedule) is not None:
        found["pipeline"] = f"{schedule.microbatches} microbatches, {schedule.repeats} rounds"
    flat = flattened(case.facts())
    return found | {name: value for name, value in flat.items() if not name.startswith(LEFT_OUT)}


def policy_name(policy: Remat) -> str:
    """The name of a remat policy, or what it keeps."""
    for name, known in POLICIES.items():
        if policy == known:
            return name
    kept = "everything" if policy.save is None else " ".join(policy.save) or "nothing"
    return f"keeps {kept}" + (f", on the host {' '.join(policy.offload)}" if policy.offload else "")


def flattened(tree: Mapping[str, Any], place: str = "") -> dict[str, str]:
    """The leaves of nested tables by dotted names, as text; a list is a leaf."""
    found: dict[str, str] = {}
    for name, value in tree.items():
        at = f"{place}.{name}".lstrip(".")
        if isinstance(value, Mapping):
            found |= flattened(value, at)
        else:
            found[at] = " ".join(map(str, value)) or "none" if isinstance(value, list | tuple) else _text(value)
    return found


def _text(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    return "none" if value is None else f"{value:,}" if type(value) is int else str(value)


def _differs(name: str, told: Sequence[Mapping[str, str]]) -> bool:
    return len({each.get(name) for each in told}) > 1


def _implied(name: str, cases: Sequence[Case], told: Sequence[Mapping[str, str]]) -> bool:
    """Whether the name of a plan says it already: each has one value. What was asked is always told."""
    values = defaultdict(set)
    for case, found in zip(cases, told, strict=True):
        values[case.plan.name].add(found.get(name))
    return name not in ASKED and all(len(found) == 1 for found in values.values())


def _said(name: str, value: str) -> str:
    if name == "rows":
        return f"{value} row{'' if value == '1' else 's'} a chip"
    if name in WORDS:
        told = WORDS[name].format(value)
        return told.replace("documents", "document") if value == "1" else told
    return f"{name.removeprefix('plan.').removeprefix('train.')} {value}"
