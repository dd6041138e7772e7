"""Floating-point operations that a step needs by the model's shapes, and what accelerators can do."""

import math
from collections.abc import Mapping

import jax
from flax.traverse_util import flatten_dict

from ivl3_jax.chips import CHIPS
from ivl3_jax.config import InternVLConfig
from ivl3_jax.models.model import Params
from ivl3_jax.training.config import Component
from ivl3_jax.training.trained import ADAPTERS

# Dense bfloat16 products, peak operations a second of one device as jax names it; from the vendors' data sheets.
PEAKS = {kind: chip.teraflops * 1e12 for chip in CHIPS.values() for kind in chip.kinds} | {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}


class StepFlops:
    """What a step's forward and backward pass need, as a function of what is in its batch.

    Products of matrices only, two operations for each multiplication, as Chowdhery et al. 2022 count them (PaLM, app.
    B): padding and what is computed twice to save memory do not count. Attention counts pairs of positions that see
    each other; the output projection positions that are trained on.
    """

    def __init__(self, config: InternVLConfig, params: Params, components: Mapping[str, Component]) -> None:
        """`params`: arrays or their shapes."""
        flat = flatten_dict(params)
        self._config = config
        self._sizes = dict.fromkeys(("vision", "projector", "decoder", "head"), 0)
        self._adapters = dict.fromkeys(self._sizes, 0)
        for path, leaf in flat.items():
            sizes = self._adapters if path[-1] in ADAPTERS else self._sizes
            if path[-1] in ("kernel", *ADAPTERS):
                sizes["head" if path[1] == "head" else path[0]] += math.prod(leaf.shape)
        if config.decoder.tie_embeddings:
            self._sizes["head"] = config.decoder.width * config.decoder.vocab
        adapted = {path[0] for path in flat if path[-1] in ADAPTERS}
        # Forward is one pass; the gradients of activations and of weights are another each, in layers that have them.
        self._passes: dict[str, tuple[float, float, float]] = {}
        flows = False
        for name in ("vision", "projector", "decoder"):
            component = components[name]
            depth = {"vision": config.vision.layers, "decoder": config.decoder.layers}.get(name, 1)
            chosen = component.chosen(depth) & component.train
            through = 1.0 if flows else 1 - int(chosen.argmax()) / depth if chosen.any() else 0.0
            weights = 0.0 if name in adapted else float(chosen.mean())
            # Of attention's products neither factor is a weight: two gradients for each.
            self._passes[name] = 1 + weights + through, 3, 1 + 2 * through
            flows |= bool(chosen.any())
        trained = components["decoder"].layers is None and self._passes["decoder"][0] == 3
        self._passes["head"] = (3 if trained else 2 if flows else 1), 3, 0

    def __call__(self, *, positions: float, tokens: float, attended: float, tiles: float) -> float:
        """Operations of a step; `positions`, `tokens`, `attended`, `tiles` as in `Metrics`."""
        vision, decoder = self._config.vision, self._config.decoder
        patches = vision.positions
        rows = {
            "vision": tiles * patches,
            "projector": tiles * self._config.tile_tokens,
            "decoder": positions,
            "head": tokens,
        }
        attention = {
            "vision": 4 * tiles * patches**2 * vision.width * vision.layers,
            "decoder": 4 * attended * decoder.heads * decoder.head_dim * decoder.layers,
        }
        total = 0.0
        for name, (dense, adapters, pairs) in self._passes.items():
            products = dense * self._sizes[name] + adapters * self._adapters[name]
            total += 2 * rows[name] * products + pairs * attention.get(name, 0)
        return total


def peak_flops() -> float | None:
    """Peak operations a second of all devices of the run; None where the accelerator is not in `PEAKS`."""
    peak = PEAKS.get(jax.devices()[0].device_kind)
    return None if peak is None else peak * jax.device_count()
