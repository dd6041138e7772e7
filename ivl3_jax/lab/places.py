"""Where in the model an instruction comes from, in words: from its scopes and the functions that were being run."""

import re
from collections.abc import Sequence

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "ragged-all-to-all", "collective-permute")
STEP = "step"
COMPONENTS = {"vision": "ViT", "projector": "projector", "decoder": "decoder"}

# Functions of the model that say what is computed, as they are named in the sources.
WORDS = {
    "Ring.send": "attention, keys and values round the ring",
    "gathered": "attention, keys and values of the whole row",
    "headwise": "attention, positions for heads",
    "_move": "from stage to stage",
    "_turn": "from stage to stage",
    "_to_stages": "layers to their stages",
    "reordered": "order of positions",
    "InternVL.enter": "order of positions",
    "InternVL.leave": "order of positions",
    "Attention.project": "attention's q, k, v",
    "attention": "inside attention",
    "Attention.__call__": "attention's output",
    "SwiGLU.__call__": "MLP",
    "GeluMLP.__call__": "MLP",
    "RMSNorm.__call__": "norm",
    "LayerNorm.__call__": "norm",
    "Block.inside": "input of attention or MLP",
    "Block.__call__": "residual stream",
    "Block.feed_forward": "residual stream",
    "run": "scan over layers",
    "Decoder.rope": "rotary tables",
    "Embedding.__call__": "token embedding",
    "InternViT.embed": "patch embedding",
    "InternViT.__call__": "features",
    "Projector.from_unshuffled": "MLP",
    "InternVL.visual_tokens": "visual tokens",
    "InternVL.merge": "visual tokens into the rows",
    "cross_entropy": "output projection and loss",
    "token_losses": "loss",
    "NextToken.totals": "weights of the loss",
    "NextToken.__call__": "loss",
    "MixedPreference.totals": "weights of the loss",
    "MixedPreference.__call__": "loss",
    "_by_group": "loss by source",
    "tree_norm": "norm of the gradient",
    "make_step": "update",
}
WEIGHTS = ("contract", "brought", "merged", "Linear.__call__")  # which bring a weight to where it is used
OPERATIONS = {
    "reshard": "laid out anew",
    "dot_general": "product",
    "reduce_sum": "sum",
    "all_gather": "gather",
    "psum": "sum",
    "ppermute": "shift",
    "all_to_all": "exchange",
}


def place(op_name: str, functions: Sequence[str] = (), kind: str = "", loop: str = "") -> str:
    """Such as `decoder layers, backward: MLP, gradients`.

    Args:
        op_name: scopes and operation, as JAX names them. functions: that were being run, the innermost first.
        kind: of a collective, which tells weights that are gathered from sums.
        loop: the scope of the loop that it stands in, which says where it is if nothing else does.
    """
    named = op_name.startswith("jit")
    scope = op_name if named and (component(op_name) != STEP or not loop) else loop
    what = _what(op_name, functions, kind) if named else ""
    if scope is loop and what == WORDS["make_step"]:
        what = ""
    return ": ".join(filter(None, (f"{component(scope)}{_layers(scope)}, {direction(scope)}".strip(", "), what)))


def component(scope: str) -> str:
    """`ViT`, `projector`, `decoder`, or `step` for what belongs to none."""
    found = re.search(r"\b(vision|projector|decoder)\b", scope)
    return COMPONENTS[found[1]] if found else STEP


def direction(scope: str) -> str:
    """`forward`, `backward`, `recomputed` for what the backward pass computes again, or "" for neither."""
    if "rematted_computation" in scope:
        return "recomputed"
    return "backward" if "transpose(" in scope else "forward" if "jvp(" in scope else ""


def _layers(scope: str) -> str:
    return " layers" if "/layers/" in scope else ""


def _what(op_name: str, functions: Sequence[str], kind: str) -> str:
    operation = op_name.rpartition("/")[2]
    words = next((WORDS[name] for name in functions if name in WORDS), OPERATIONS.get(operation, operation))
    if kind in KINDS and direction(op_name) == "backward":
        return f"{words}, gradients"
    if kind == "all-gather" and functions and functions[0] in WEIGHTS:
        return f"{words}, weights"
    return words
