"""Proving that a checkpoint gives here what it gives in PyTorch: every module, every layer, logits, loss, gradients."""

import gc
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from flax.traverse_util import flatten_dict

from ivl3_jax.batch import IGNORE, Batch, empty_batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion import tolerances
from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.conversion.comparison import Difference, Report, compare, difference
from ivl3_jax.conversion.lora import LoraDirectory, open_weights
from ivl3_jax.conversion.names import layout_of
from ivl3_jax.conversion.reader import match_names, resolve_tying
from ivl3_jax.hf_config import read_config
from ivl3_jax.layers import taps
from ivl3_jax.models.internvl import batch_loss
from ivl3_jax.models.model import Model, place_batch
from ivl3_jax.sharding.plan import ShardingPlan

# Bidirectional attention without rope does not feel a constant added to all keys: this gradient is zero but for
# rounding, and is measured against that of q's bias.
ZERO_GRADIENT, ITS_SCALE = "vision/layers/attention/k/bias", "vision/layers/attention/q/bias"

PLAN = ShardingPlan("parity", remat={"vision": "full", "decoder": "full"})


def example_batch(config: InternVLConfig, tokens: int = 512, tiles: int = 3, seed: int = 0) -> Batch:
    """One row of random text with two images of random pixels in it, every text position trained with its own weight.

    Args:
        tokens: of text; short prompts hide faults of positions. tiles: of both images together, 0 for none.

    Returns:
        A batch of one row with tokens + tiles * config.tile_tokens positions.
    """
    rng = np.random.default_rng(seed)
    length = tokens + tiles * config.tile_tokens
    batch = empty_batch(1, length, tiles, 1, config.vision.image_size)
    text = rng.integers(0, config.decoder.vocab - 1, length)
    batch.tokens[0] = text + (text >= config.image_token_id)  # anything but the image token
    first = (tiles + 1) // 2 * config.tile_tokens
    gap, visual = tokens // 3, np.arange(tiles * config.tile_tokens)
    places = np.where(visual < first, 5 + visual, 5 + visual + gap)
    batch.tokens[0, places] = config.image_token_id
    batch.visual_index[0, places] = visual
    batch.tiles[:] = rng.integers(0, 256, batch.tiles.shape)
    batch.segment_ids[:] = 1
    batch.positions[:] = np.arange(length)
    batch.labels[0, :-1] = np.where(batch.visual_index[0, 1:] < 0, batch.tokens[0, 1:], IGNORE)
    batch.loss_weights[:] = np.where(batch.labels == IGNORE, 0, rng.uniform(0.5, 1.5, batch.labels.shape))
    return batch


def check_length(config: InternVLConfig, tokens: int, tiles: int) -> None:
    """Refuses an `example_batch` that the model has no positions for.

    Raises:
        ValueError: as said.
    """
    length, limit = tokens + tiles * config.tile_tokens, config.decoder.longest_row
    if length > limit:
        raise ValueError(f"{tokens} text tokens and {tiles} tiles make {length} positions; the decoder knows {limit}")


def run(model: Model, batch: Batch) -> dict[str, np.ndarray]:
    """Every tap of a forward pass, the logits among them, in the order of computation."""
    order: list[str] = []  # a jitted function returns its dictionaries sorted

    def forward(params: Any, batch: Batch) -> dict[str, jax.Array]:
        with taps.collect() as found:
            nnx.merge(model.graphdef, params)(batch)
            order[:] = found
            return found

    with jax.set_mesh(model.mesh):
        found = jax.jit(forward)(model.params, place_batch(batch, model.plan, model.mesh))
    return {name: np.asarray(found[name]) for name in order}


def run_alone(model: Model, batch: Batch, theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The taps of each module when it is given the reference's input of it, so that errors do not add up."""

    def forward(params: Any, batch: Batch, theirs: dict[str, jax.Array]) -> dict[str, jax.Array]:
        module = nnx.merge(model.graphdef, params)
        found = {}
        if "vision/embed" in theirs:
            inputs = _inputs(theirs, "vision")
            found |= _each_layer("vision", module.vision.layers, inputs, lambda layer, x: layer(x, jnp.zeros(()), None))
            with taps.collect() as projected:
                module.projector.from_unshuffled(theirs["projector/unshuffle"])
            found |= projected
        ends = module.decoder.ends(batch.positions, batch.segment_ids)
        rope = module.decoder.rope(batch.positions, ends, module.dtype)
        inputs = _inputs(theirs, "decoder")
        found |= _each_layer(
            "decoder", module.decoder.layers, inputs, lambda layer, x: layer(x, rope, batch.segment_ids)
        )
        found["decoder/norm"] = module.decoder.norm(theirs["decoder/layers/out"][-1])
        found["logits"] = module.decoder.logits(theirs["decoder/norm"])
        return found

    with jax.set_mesh(model.mesh):
        found = jax.jit(forward)(model.params, place_batch(batch, model.plan, model.mesh), theirs)
    return {name: np.asarray(value) for name, value in found.items()}


def gradients(model: Model, batch: Batch) -> tuple[float, dict[str, np.ndarray]]:
    """The loss sum(w · nll) / sum(w), and its gradient for every parameter by its path."""

    def loss(params: Any, batch: Batch) -> jax.Array:
        return batch_loss(nnx.merge(model.graphdef, params), batch)

    with jax.set_mesh(model.mesh):
        placed = place_batch(batch, model.plan, model.mesh)
        value, found = jax.jit(jax.value_and_grad(loss))(model.params, placed)
    vocab = model.config.decoder.vocab
    found = {path: np.asarray(leaf) for path, leaf in flatten_dict(found, sep="/").items()}
    for path, rows in (("decoder/embed/table", np.s_[:vocab]), ("decoder/head/kernel", np.s_[:, :vocab])):
        if path in found:
            found[path] = found[path][rows]
    return float(value), found


def compare_gradients(
    ours: tuple[float, dict[str, np.ndarray]], theirs: tuple[float, dict[str, np.ndarray]], dtype: str
) -> list[Difference]:
    """The loss, then every parameter's gradient, layer by layer."""
    loss = difference("gradient", "loss", None, np.array([ours[0]]), np.array([theirs[0]]), tolerances.STACK[dtype])
    tolerance = tolerances.GRADIENT[dtype]
    by_path = dict(theirs[1])
    zero = by_path.pop(ZERO_GRADIENT, None)
    found = [loss, *compare("gradient", ours[1], by_path, tolerance)]
    if zero is not None:
        scales = [float(np.linalg.norm(layer)) for layer in theirs[1][ITS_SCALE]]
        found += [
            difference("gradient", ZERO_GRADIENT, i, ours[1][ZERO_GRADIENT][i], zero[i], tolerance, scale)
            for i, scale in enumerate(scales)
        ]
    return found


def check(
    directory: str | Path,
    *,
    dtype: str = "float32",
    with_gradients: bool = False,
    tokens: int = 512,
    tiles: int = 3,
    seed: int = 0,
    say: Callable[[str], None] = lambda line: None,
) -> Report:
    """Compares a checkpoint here and in transformers, one after the other so that memory holds one at a time.

    Args:
        directory: in either layout, see `parity_reference.open_reference`.
        dtype: `float32`, or `float64`, for which the reference is kept from rounding to float32 inside; jax must be in
            64-bit mode.
        with_gradients: the loss and every gradient too.
        tokens, tiles, seed: of the random input, see `example_batch`.
        say: is told what is being done.
    """
    from ivl3_jax.conversion import parity_reference

    config = resolve_tying(directory, read_config(directory))
    with open_weights(directory) as file:
        match_names(file, config)  # a broken checkpoint is told of here rather than by the reference
        if isinstance(file, LoraDirectory):
            raise ValueError(
                f"{directory} has LoRA adapters that are not merged, which the reference does not read; merge them "
                f"first: ivl3 convert SOURCE DESTINATION --layout {layout_of(file.tensors)}"
            )
    check_length(config, tokens, tiles)
    batch = example_batch(config, tokens, tiles, seed)
    began = time.perf_counter()
    say("running the PyTorch reference")
    reference, how = parity_reference.open_reference(directory, dtype)
    inputs = parity_reference.inputs_from_batch(batch, config, dtype)
    theirs = parity_reference.run(reference, inputs)
    used = config.select_layer % (config.vision.layers + 1)
    theirs = {name: x[:used] if name.startswith("vision/layers/") else x for name, x in theirs.items()}
    if with_gradients:
        say("gradients of the PyTorch reference")
        weighted = batch.labels, batch.loss_weights
        their_gradients = parity_reference.gradients(reference, inputs, *weighted, config)
    versions = parity_reference.versions()
    del reference, inputs
    gc.collect()
    say("loading the checkpoint here")
    model = load(directory, dtype, PLAN)
    with jax.default_matmul_precision("highest"):
        say("module by module")
        differences = compare(
            "alone", run_alone(model, batch, theirs), _without_inputs(theirs), tolerances.LAYER[dtype]
        )
        say("the whole model")
        differences += compare("in place", run(model, batch), theirs, tolerances.STACK[dtype])
        if with_gradients:
            say("gradients here")
            del theirs
            differences += compare_gradients(gradients(model, batch), their_gradients, dtype)
    facts = {
        "checkpoint": str(directory),
        "reference": how,
        "dtype": dtype,
        "input": f"{tokens} text tokens, {tiles} tiles, seed {seed}",
        "versions": f"jax {jax.__version__}, {versions}, Python {platform.python_version()}",
        "seconds": f"{time.perf_counter() - began:.0f}",
    }
    return Report(f"Parity of {Path(directory).resolve().name} with PyTorch", facts, differences)


def _inputs(theirs: dict[str, jax.Array], component: str) -> jax.Array:
    """The reference's input of each layer, [layers, ...]: the embeddings, then each output but the last."""
    return jnp.concatenate([theirs[f"{component}/embed"][None], theirs[f"{component}/layers/out"][:-1]])


def _each_layer(component: str, layers: nnx.Module, inputs: jax.Array, call: Callable) -> dict[str, jax.Array]:
    """Each layer of a stack on its own input."""

    def one(layer_and_input: tuple[nnx.Module, jax.Array]) -> dict[str, jax.Array]:
        with taps.collect() as found:
            call(*layer_and_input)
            return found

    used = jax.tree.map(lambda leaf: leaf[: inputs.shape[0]], layers)
    found = jax.lax.map(one, (used, inputs))
    return {f"{component}/layers/{name}": value for name, value in found.items()}


def _without_inputs(theirs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The taps that are a module's output; the others have no module of their own to compare."""
    return {name: value for name, value in theirs.items() if name not in NOT_MODULES}


NOT_MODULES = ("vision/embed", "projector/unshuffle", "decoder/embed")
