"""A guess of a step's time and memory from shapes alone, in milliseconds: which plans are worth compiling.

Rooflines as in How to Scale Your Model (jax-ml.github.io/scaling-book, "Training"): products at the chip's peak, and
collectives at the bandwidth of the links that a mesh axis has. What FSDP moves hides behind products as far as there
are any; what tensor and context parallelism move stands between products and is waited for. Right to some tens of
percent.
"""

from dataclasses import dataclass
from functools import cache
from math import prod

import jax.numpy as jnp
from flax import nnx

from ivl3_jax.config import InternVLConfig
from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.case import Case
from ivl3_jax.lab.prediction import operations
from ivl3_jax.lab.topology import PlacedMesh, Span, Topology
from ivl3_jax.models.internvl import InternVL
from ivl3_jax.sharding.axes import MESH_AXES
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.remat import ATTENTION, INPUT

GIB = 2**30
HEADROOM = 1.5  # GiB of working memory of kernels and fusions, about


@dataclass(frozen=True)
class Estimate:
    """A guess: `parts` in seconds of a step, which add up; `memory` in GiB of a chip, by kind."""

    parts: dict[str, float]
    memory: dict[str, float]

    @property
    def seconds(self) -> float:
        return sum(self.parts.values())

    @property
    def gibibytes(self) -> float:
        return sum(self.memory.values())


@dataclass(frozen=True)
class Leaf:
    """A parameter: its component, the logical axes of its dimensions, their sizes, and layers stacked on it."""

    component: str
    axes: tuple[str, ...]
    sizes: tuple[int, ...]
    layers: int


@cache
def leaves(config: InternVLConfig) -> tuple[Leaf, ...]:
    """The parameters of a model."""
    module = nnx.eval_shape(lambda: InternVL(config, ShardingPlan(), rngs=nnx.Rngs(params=0), param_dtype=jnp.float32))
    found = []
    for path, leaf in nnx.to_flat_state(nnx.split(module)[1]):
        stacked = len(leaf.shape) > len(leaf.axes)
        found.append(Leaf(path[0], leaf.axes, leaf.shape[stacked:], leaf.shape[0] if stacked else 1))
    return tuple(found)


def estimate(case: Case, calibration: Calibration | None = None) -> Estimate:
    """Guesses what a case takes, without compiling it."""
    return _Guess(case, calibration or Calibration()).estimate()


@cache
def _placed(topology: Topology, shape: tuple[int, ...]) -> PlacedMesh:
    return topology.make_mesh(ShardingPlan(mesh=dict(zip(MESH_AXES, shape, strict=True))))


@cache
def _span(topology: Topology, shape: tuple[int, ...], axis: str) -> Span:
    return _placed(topology, shape).axis(axis)


class _Guess:
    def __init__(self, case: Case, calibration: Calibration) -> None:
        self.case, self.plan = case, case.plan.for_heads(case.config.decoder.kv_heads)
        self.chip, self.constants = case.topology.chip, calibration
        rules = self.plan.decoder
        self.rows = rules.activations.get("batch", ())
        self.tensor = rules.activations.get("heads", ())
        self.context = rules.activations.get("sequence", ())
        self.local_tokens = case.tokens / self.plan.size(self.rows) / self.plan.size(self.context)

    def estimate(self) -> Estimate:
        compute = self._compute()
        weights, across = self._weights()
        parts = {
            "compute": compute,
            "pipeline bubble": compute * self._bubble(),
            "tensor": self._tensor(),
            "context": self._context(),
            "weights not hidden": max(0.0, weights - compute),
            "between slices": across,
        }
        return Estimate({name: seconds for name, seconds in parts.items() if seconds}, self._memory())

    def _compute(self) -> float:
        """Needed products, those computed twice, and those of the ViT that several chips compute alike."""
        needed = operations(self.case) / self.case.topology.chips
        vision = self._share_of_vision() * needed
        decoder = needed - vision
        again = {component: 1 + self._again(component) / 3 for component in ("vision", "decoder")}
        rules = self.plan.vision.activations
        spread = self.plan.size(rules.get("tiles", ())) * self.plan.size(rules.get("mlp", ()))
        alike = self.case.topology.chips / spread
        total = vision * again["vision"] * alike + decoder * again["decoder"]
        return total / (self.chip.teraflops * 1e12 * self.constants.products)

    def _share_of_vision(self) -> float:
        config, batch = self.case.config, self.case.batch
        size = dict.fromkeys(("vision", "decoder"), 0)
        for leaf in leaves(config):
            if leaf.component in size and len(leaf.sizes) > 1:
                size[leaf.component] += prod(leaf.sizes) * leaf.layers
        vision = size["vision"] * batch.tiles * config.vision.positions
        return vision / (vision + size["decoder"] * batch.tokens)

    def _recomputes(self, component: str) -> bool:
        return self._again(component) > 0

    def _again(self, component: str) -> float:
        """The part of a forward pass that the backward pass repeats: what it needs and does not find."""
        kept = self.case.plan.remat_of(component)
        if kept.save is None:
            return 0.0
        sizes = self._products(component)
        # What `down` gives is needed by nobody: the next layer's input is saved.
        missing = set(sizes) - {"down", *kept.save, *kept.offload}
        return sum(sizes[name] for name in missing) / sum(sizes.values())

    def _products(self, component: str) -> dict[str, float]:
        """Multiply-adds of a position in a layer, by what they give."""
        if component == "vision":
            vision = self.case.config.vision
            width = float(vision.width)
            linear = dict.fromkeys(("q", "k", "v", "out"), width**2) | dict.fromkeys(("up", "down"), width * vision.mlp)
            return linear | {ATTENTION: 2 * width * vision.positions}
        decoder, row = self.case.config.decoder, self.case.batch.tokens / self.case.documents
        heads, kv = decoder.heads * decoder.head_dim, decoder.kv_heads * decoder.head_dim
        return {
            **dict.fromkeys(("q", "out"), float(decoder.width * heads)),
            **dict.fromkeys(("k", "v"), float(decoder.width * kv)),
            **dict.fromkeys(("gate", "up", "down"), float(decoder.width * decoder.mlp)),
            ATTENTION: heads * row,
        }

    def _bubble(self) -> float:
        """Of the compute; the first and the last iterations of a pipeline leave stages idle."""
        schedule = self.case.plan.schedule
        if schedule is None:
            return 0.0
        return (schedule.stages - 1) / (schedule.microbatches * schedule.repeats)

    def _weights(self) -> tuple[float, float]:
        """Seconds of gathering weights and scattering gradients, and of reducing gradients between slices."""
        within = across = 0.0
        passes = (2 if self._recomputes("decoder") or self._recomputes("vision") else 1) + 2
        if self.case.plan.schedule is not None:
            passes *= self.case.plan.schedule.microbatches
        for leaf in leaves(self.case.config):
            rules = getattr(self.plan, leaf.component)
            stored = {axis for name in leaf.axes for axis in rules.parameters.get(name, ())}
            used = {axis for name in leaf.axes for axis in rules.activations.get(name, ())}
            size = 2.0 * prod(leaf.sizes) * leaf.layers / self.plan.size(tuple(used))
            within += passes * self._gather(size, tuple(stored - used))
            if "data" not in stored and self.plan.mesh.get("data", 1) > 1:
                share = size / self.plan.size(tuple(stored - used))
                across += 2 * self._gather(share, ("data",))
        return within, across

    def _tensor(self) -> float:
        """Each block's two sums over `tensor`, or the gathers and scatters that stand for them."""
        if self.plan.size(self.tensor) == 1:
            return 0.0
        size = 2.0 * self.local_tokens * self.case.config.decoder.width
        passes = 3 if self._recomputes("decoder") else 2
        return 2 * 2 * passes * self.case.config.decoder.layers * self._gather(size, self.tensor)

    def _context(self) -> float:
        shards = self.plan.size(self.context)
        if shards == 1:
            return 0.0
        decoder = self.case.config.decoder
        heads = self.plan.size(self.tensor)
        passes = 4 if self._recomputes("decoder") else 3
        if self.case.plan.context.attention == "all_to_all":
            size = 2.0 * self.local_tokens * decoder.head_dim * 2 * (decoder.heads + decoder.kv_heads) / heads
            return passes * decoder.layers * self._gather(size, self.context) * shards / 8
        kv = max(decoder.kv_heads / heads, 1)
        size = 2.0 * self.local_tokens * shards * decoder.head_dim * 2 * kv
        return passes * decoder.layers * self._gather(size, self.context)

    def _gather(self, size: float, axes: tuple[str, ...]) -> float:
        """Seconds of bringing `size` bytes together from the shards over mesh axes."""
        shards = self.plan.size(axes)
        if shards == 1:
            return 0.0
        lanes, slices = 0, 1
        for axis in axes:
            span = _span(self.case.topology, self.plan.mesh_shape, axis)
            lanes += sum(2 if ring.closed else 1 for ring in span.rings)
            slices *= span.slices
        links = lanes * self.chip.link * 1e9 * self.constants.ici
        network = self.chip.dcn * 1e9 * self.constants.dcn
        seconds = size * (shards - 1) / shards / links if lanes else 0.0
        return seconds + (size / (shards / slices) * (slices - 1) / slices / network if slices > 1 else 0.0)

    def _memory(self) -> dict[str, float]:
        case, config = self.case, self.case.config
        state = gradients = 0.0
        gathered = {"vision": 0.0, "projector": 0.0, "decoder": 0.0}
        wide = 4 if case.param_dtype == "float32" else 2
        moments = 0 if "optimizer" in case.plan.offload else 8 if case.train.moment_dtype == "float32" else 6
        for leaf in leaves(config):
            rules, count = getattr(self.plan, leaf.component), prod(leaf.sizes)
            own = count * leaf.layers / prod(self.plan.size(rules.parameters.get(name, ())) for name in leaf.axes)
            state += own * (wide + moments * self._trained(leaf))
            gradients += own * wide * self._trained(leaf)
            used = count / prod(self.plan.size(rules.activations.get(name, ())) for name in leaf.axes)
            # Of stacked layers two are held at once; a table of the vocabulary whole, its gradient in float32.
            gathered[leaf.component] += used * (4 if leaf.layers > 1 else 6 if "vocab" in leaf.axes else 2)
        found = {"state": state, "gradients": gradients, "gathered weights": sum(gathered.values())}
        found["activations"] = self._activations()
        return {name: size / GIB for name, size in found.items()} | {"working": HEADROOM}

    def _trained(self, leaf: Leaf) -> float:
        """The part of a parameter that is trained; of adapted components the adapters alone are, which are small."""
        component = self.case.train.components[leaf.component]
        adapted = leaf.component in self.case.train.adapters
        return float(component.train and not adapted) * float(component.chosen(leaf.layers).mean())

    def _activations(self) -> float:
        case, decoder, vision = self.case, self.case.config.decoder, self.case.config.vision
        heads = self.plan.size(self.tensor)
        residual = self.plan.size(self.plan.decoder.activations.get("residual", self.context))
        tokens = case.tokens / self.plan.size(self.rows) / case.train.accumulate
        local = tokens / self.plan.size(self.context)
        sizes = {
            INPUT: decoder.width / residual * self.plan.size(self.context),
            **dict.fromkeys(("q", ATTENTION), decoder.heads * decoder.head_dim / heads),
            **dict.fromkeys(("k", "v"), max(1, decoder.kv_heads / heads) * decoder.head_dim),
            **dict.fromkeys(("out", "down"), decoder.width),
            **dict.fromkeys(("gate", "up"), decoder.mlp / heads),
        }
        remat = case.plan.remat_of("decoder")
        kept = set(sizes) if remat.save is None else {INPUT, *remat.save} - set(remat.offload)
        total = 2.0 * local * sum(sizes[name] for name in kept) * decoder.layers / self.plan.mesh.get("stage", 1)
        if remat.save is None:
            total *= 2  # norms, rope and what lies between the products
        total += 2.0 * local * (3 * decoder.mlp / heads + 6 * decoder.width)  # of the layer at work
        tiles = case.batch.rows * case.batch.tiles / case.train.accumulate
        patches = tiles * vision.positions / self.plan.size(self.plan.vision.activations.get("tiles", ()))
        of_layer = 1 if self._recomputes("vision") else 8 + 2 * vision.mlp / vision.width
        total += 2.0 * patches * vision.width * vision.layers * of_layer + 2.0 * patches * 2 * vision.mlp
        return total
