"""What two cases differ in, and what that does to collectives, in plain words."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ivl3_jax.lab.labels import flattened, policy_name
from ivl3_jax.lab.places import COMPONENTS, STEP
from ivl3_jax.sharding.remat import POLICIES, Remat

NONE = "none"

# What it does that an axis of a table is sharded over more mesh axes, and over fewer.
EFFECTS = {
    "parameters.embed": (
        "weights are stored in more parts, and gathered before they are used",
        "weights are stored in fewer parts, and gathered over fewer devices",
    ),
    "parameters.heads": (
        "attention's weights are stored by heads in more parts",
        "attention's weights are stored by heads in fewer parts",
    ),
    "parameters.mlp": ("the MLP's weights are stored in more parts", "the MLP's weights are stored in fewer parts"),
    "parameters.vocab": (
        "embedding table and output projection are stored in more parts",
        "embedding table and output projection are stored in fewer parts",
    ),
    "activations.batch": (
        "rows are spread over more devices: gradients of weights are summed over them",
        "rows are spread over fewer devices: gradients of weights are summed over fewer",
    ),
    "activations.sequence": (
        "positions inside a block are spread: attention needs the keys and values of all, which cross these axes",
        "positions inside a block are no longer spread: keys and values need not cross these axes",
    ),
    "activations.residual": (
        "what attention and MLP give need only be scattered, a reduce-scatter for an all-reduce, unless the compiler "
        "makes it one with a slice; and an all-gather stands before the next",
        "reduce-scatter and all-gather around attention and MLP become one all-reduce after each",
    ),
    "activations.heads": (
        "heads are split: what attention's output projection gives is summed over these devices",
        "heads are split less: less of the output projection's sum crosses devices",
    ),
    "activations.mlp": (
        "the hidden size is split: what the MLP's last product gives is summed over these devices",
        "the hidden size is split less: less of the last product's sum crosses devices",
    ),
    "activations.vocab": (
        "the vocabulary is split in embedding and loss: their sums cross these devices",
        "the vocabulary is split less: table and projection are gathered instead",
    ),
    "activations.tiles": (
        "tiles are spread over more devices: weights are gathered over them, features move to the decoder's layout",
        "tiles are spread over fewer devices, of which some compute the same",
    ),
}
CHOICES = {
    "context.attention": "how queries meet the keys and values of other shards: these are gathered, sent round a "
    "ring, or positions are exchanged for heads",
    "context.order": "which positions a shard holds; plain needs no reordering, zigzag gives all shards the same work",
    "pipeline.microbatches": "how many pieces a batch is cut into: each is sent from stage to stage",
    "pipeline.repeats": "how often a piece goes round all stages",
}
REMAT = "the backward pass finds other values saved: what it computes again, its gathers included, changes"

# Words of a place that a rule on a logical axis may bear on; an axis that is not here bears on its whole component.
BEARS_ON = {
    "vocab": ("token embedding", "loss"),
    "heads": ("attention", "scan over layers"),
    "kv_heads": ("attention",),
    "head_dim": ("attention",),
    "mlp": ("MLP",),
    "residual": (
        "attention's output",
        "MLP",
        "input of attention",
        "residual",
        "norm",
        "embedding",
        "visual tokens",
        "loss",
    ),
    "sequence": ("inside attention", "rotary", "visual tokens", "norm", "loss"),
}

ELSEWHERE = {"context": ("attention", "order of positions"), "pipeline": ("stage", "decoder")}


@dataclass(frozen=True)
class Change:
    """One thing in which two cases differ: its dotted name, both values as text, what it does, or ""."""

    name: str
    before: str
    after: str
    effect: str = ""

    @property
    def axes(self) -> set[str]:
        """Mesh axes that the two values do not share, of a rule; the axis itself, of the mesh."""
        head, _, axis = self.name.rpartition(".")
        return {axis} if head == "mesh" else set(self.before.split(" x ")) ^ set(self.after.split(" x "))

    def causes(self, place: str, axes: set[str]) -> bool:
        """Whether collectives of a place in the model, over these mesh axes, may have changed by this."""
        part, _, rest = self.name.partition(".")
        if part == "mesh":
            return bool(self.axes & axes)
        if part == "remat":
            return "recomputed" in place and place.startswith(COMPONENTS[rest])
        if part in ELSEWHERE:
            return any(word in place for word in ELSEWHERE[part])
        of_weights = "weights" in place or "gradients" in place
        if part not in COMPONENTS:
            return part not in ("documents", "model", "compiler", "topology", "calibration") and not of_weights
        mine = place.startswith(COMPONENTS[part]) or (place.startswith(STEP) and part == "decoder")
        axis = rest.rpartition(".")[2]
        if axis == "tiles":
            mine = mine or "visual tokens" in place
        words = BEARS_ON.get(axis)
        touches = bool(self.axes & axes) or (of_weights and words is not None)  # a part of a weight is gathered
        return mine and touches and (words is None or any(word in place for word in words))


def changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
    """What two cases, as `Case.facts` has them, differ in.

    Of a plan's rules only mesh axes of more than one device count: others do nothing.
    """
    old, new = _told(before), _told(after)
    found = []
    for name in dict.fromkeys([*old, *new]):
        values = old.get(name, NONE), new.get(name, NONE)
        if values[0] != values[1]:
            found.append(Change(name, *values, _effect(name, *values)))
    return sorted(found, key=lambda change: _rank(change.name))


def _rank(name: str) -> int:
    part = name.partition(".")[0]
    return 0 if part == "mesh" else 1 if part in COMPONENTS else 2 if part == "remat" else 3


def _told(case: Mapping[str, Any]) -> dict[str, str]:
    """The case by dotted names; a plan's rules by the axes that are in use."""
    plan = case["plan"]
    mesh = {axis: size for axis, size in plan["mesh"].items() if size > 1}
    found = {f"mesh.{axis}": str(size) for axis, size in mesh.items()}
    for part in COMPONENTS:
        for table in ("parameters", "activations"):
            for axis, to in plan[part][table].items():
                found[f"{part}.{table}.{axis}"] = " x ".join(name for name in to if name in mesh) or NONE
    found |= {f"remat.{part}": _policy(policy) for part, policy in plan["remat"].items()}
    others = {name: value for name, value in plan.items() if name not in (*COMPONENTS, "mesh", "remat", "name")}
    rest = {name: value for name, value in case.items() if name not in ("plan", "config")}
    return found | flattened(others) | flattened(rest) | flattened({"config": case["config"]})


def _policy(found: Any) -> str:
    if isinstance(found, str):
        return policy_name(POLICIES[found])
    save = found["save"]
    return policy_name(Remat(None if save is None else tuple(save), tuple(found["offload"])))


def _effect(name: str, before: str, after: str) -> str:
    part, _, rest = name.partition(".")
    if part == "remat":
        return REMAT
    if name in CHOICES:
        return CHOICES[name]
    if part not in COMPONENTS or rest not in EFFECTS:
        return ""
    old, new = (set(value.split(" x ")) - {NONE} for value in (before, after))
    return EFFECTS[rest][0] if new - old else EFFECTS[rest][1] if old - new else ""


def shortened(found: Iterable[Change], most: int = 3) -> str:
    """Names of the changes in one line, the most telling first: rules before the mesh."""
    names = [change.name for change in sorted(found, key=lambda change: (_rank(change.name) or 9, change.name))]
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
