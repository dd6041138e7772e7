"""The PyTorch reference, transformers' InternVLForConditionalGeneration, run so that it can be compared with ours.

Needs the `parity` extra (torch and transformers).
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MethodType
from typing import Any

import numpy as np
import torch
import transformers
from transformers import AttentionInterface, InternVLForConditionalGeneration
from transformers.masking_utils import AttentionMaskInterface, eager_mask

from ivl3_jax.batch import IGNORE, Batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion import parity_original
from ivl3_jax.conversion.names import parameters
from ivl3_jax.conversion.parity_original_config import is_original

Inputs = dict[str, torch.Tensor]

# ImageNet statistics of RGB in 0..1, written out once more so that the reference checks those of the package.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WIDE_ATTENTION = "eager_unrounded"

# The reference's modules behind our taps, by their names under `model.`; {i} is the layer.
OUTPUTS = {
    "vision/embed": "vision_tower.embeddings",
    "vision/layers/norm1": "vision_tower.encoder.layer.{i}.layernorm_before",
    "vision/layers/attention": "vision_tower.encoder.layer.{i}.attention",
    "vision/layers/norm2": "vision_tower.encoder.layer.{i}.layernorm_after",
    "vision/layers/mlp": "vision_tower.encoder.layer.{i}.mlp",
    "vision/layers/out": "vision_tower.encoder.layer.{i}",
    "projector/norm": "multi_modal_projector.layer_norm",
    "projector/up": "multi_modal_projector.linear_1",
    "projector/down": "multi_modal_projector",
    "decoder/layers/norm1": "language_model.layers.{i}.input_layernorm",
    "decoder/layers/attention": "language_model.layers.{i}.self_attn",
    "decoder/layers/norm2": "language_model.layers.{i}.post_attention_layernorm",
    "decoder/layers/mlp": "language_model.layers.{i}.mlp",
    "decoder/layers/out": "language_model.layers.{i}",
    "decoder/norm": "language_model.norm",
}
# Taps that the reference shows only as what it passes to a module.
ARGUMENTS = {
    "projector/unshuffle": "multi_modal_projector",
    "decoder/embed": "language_model",
}

# In the order of computation, so that a report can name the first tensor that differs.
ORDER = sorted([*ARGUMENTS, *OUTPUTS], key=lambda name: ("vision", "projector", "decoder").index(name.split("/")[0]))


def load_reference(directory: str | Path, dtype: str = "float32") -> InternVLForConditionalGeneration:
    """The reference model of a checkpoint in either layout; see `open_reference`."""
    return open_reference(directory, dtype)[0]


def open_reference(directory: str | Path, dtype: str = "float32") -> tuple[InternVLForConditionalGeneration, str]:
    """The reference model of a checkpoint, in evaluation mode, with attention written out.

    Args:
        directory: in the `-hf` layout, which transformers opens itself, or in the original one, which is read through
            the second map of `parity_original`.
        dtype: `float32`, `bfloat16`, or `float64`, where norms, softmax and rotary angles, which transformers always
            computes in float32, are kept in float64 too.

    Returns:
        The model, and how it was read, for reports.

    Raises:
        ValueError: as `parity_original.load`.
    """
    directory, torch_dtype = Path(directory), getattr(torch, dtype)
    if is_original(directory):
        model, zero = parity_original.load(directory, torch_dtype)
        how = "transformers, weights through the second map (conversion/parity_original.py)"
        if zero:
            how += f"; {len(zero)} biases that the checkpoint has not are zeros, {zero[0]} and others of its kind"
    else:
        model = InternVLForConditionalGeneration.from_pretrained(
            directory, dtype=torch_dtype, attn_implementation="eager"
        )
        how = "transformers, which opened the directory itself"
    if dtype == "float64":
        _widen(model)
    return model.eval(), how


def inputs_from_batch(batch: Batch, config: InternVLConfig, dtype: str = "float32") -> Inputs:
    """The reference's arguments for one of our batches.

    Args:
        batch: numpy arrays, one segment a row, padded on either side; surplus tiles are left out.
        config: for the image token and the number of visual tokens of a tile.
        dtype: of the normalised pixels, and what normalising is computed in.

    Raises:
        ValueError: the reference cannot be given this batch: several segments in a row, fractional positions, visual
            tokens out of order or at positions that do not hold the image token.
    """
    batch = Batch(*map(np.asarray, batch))
    if batch.segment_ids.max() > 1:
        raise ValueError("the batch has rows of several segments; the reference takes one a row")
    if np.any(batch.positions != np.rint(batch.positions)):
        raise ValueError("the batch has fractional positions; the reference takes whole ones")
    if np.any((batch.tokens == config.image_token_id) != (batch.visual_index >= 0)):
        raise ValueError(f"visual tokens must stand exactly where tokens are the image token, {config.image_token_id}")
    tiles = []
    for row, (index, row_tiles) in enumerate(zip(batch.visual_index, batch.tiles, strict=True)):
        index = index[index >= 0]
        used = index[:: config.tile_tokens] // config.tile_tokens
        if not np.array_equal(index, (used[:, None] * config.tile_tokens + np.arange(config.tile_tokens)).reshape(-1)):
            raise ValueError(f"row {row}: visual_index is not a sequence of whole tiles; the reference takes no other")
        tiles.append(row_tiles[used])
    inputs = {
        "input_ids": torch.from_numpy(batch.tokens.astype(np.int64)),
        "attention_mask": torch.from_numpy((batch.segment_ids > 0).astype(np.int64)),
        "position_ids": torch.from_numpy(batch.positions.astype(np.int64)),
    }
    pixels = np.concatenate(tiles)
    if len(pixels):
        torch_dtype = getattr(torch, dtype)
        scaled = torch.from_numpy(pixels).to(torch_dtype) / 255
        normalised = (scaled - torch.tensor(MEAN, dtype=torch_dtype)) / torch.tensor(STD, dtype=torch_dtype)
        inputs["pixel_values"] = normalised.permute(0, 3, 1, 2).contiguous()
    return inputs


def run(model: InternVLForConditionalGeneration, inputs: Inputs) -> dict[str, np.ndarray]:
    """A forward pass: the logits and every tap, named as ours are, layers stacked on a leading axis.

    Tiles of all rows come one after another, without the surplus ones of the batch: taps of `vision` and `projector`
    are [tiles, ...]. Without tiles there are none of them. Values at padded positions mean nothing.
    """
    with torch.no_grad(), _hooked(model) as taps:
        logits = model(**inputs, use_cache=False).logits
    found = {}
    for name in (name for name in ORDER if name in taps):
        values = taps.pop(name)
        found[name] = np.stack(values) if "/layers/" in name else values[0]
    return found | {"logits": _numpy(logits)}


def loss(
    model: InternVLForConditionalGeneration, inputs: Inputs, labels: np.ndarray, weights: np.ndarray
) -> torch.Tensor:
    """sum(weights * cross-entropy) / sum(weights), a scalar in the model's dtype, at least float32.

    Args:
        model, inputs: see `load_reference` and `inputs_from_batch`.
        labels: int [B, S], the token to be predicted at each position (already shifted), `IGNORE` for none.
        weights: float [B, S].
    """
    logits = model(**inputs, use_cache=False).logits
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    target = torch.from_numpy(np.asarray(labels, np.int64))
    each = torch.nn.functional.cross_entropy(logits.transpose(1, 2), target, ignore_index=IGNORE, reduction="none")
    weight = torch.from_numpy(np.array(weights)).to(logits.dtype)
    return (each * weight).sum() / weight.sum()


def gradients(
    model: InternVLForConditionalGeneration,
    inputs: Inputs,
    labels: np.ndarray,
    weights: np.ndarray,
    config: InternVLConfig,
) -> tuple[float, dict[str, np.ndarray]]:
    """The loss, and its gradient for each of our parameters by its path, in our layout.

    Arguments as of `loss`, and the config of the checkpoint. A parameter that the loss does not depend on has zeros.
    """
    model.zero_grad(set_to_none=True)
    # Recomputes layers in the backward pass: the written-out attention of all of them would not fit for the 1B.
    model.activation_checkpointing_enable()
    model.train()
    value = loss(model, inputs, labels, weights)
    value.backward()
    model.eval()
    model.activation_checkpointing_disable()
    theirs: Mapping[str, torch.nn.Parameter] = dict(model.named_parameters())
    ours = {}
    for parameter in parameters(config):
        array = np.empty((len(parameter.tensors), *parameter.layout.our_shape), _numpy(value).dtype)
        for layer, name in zip(array, parameter.tensors, strict=True):
            tensor = theirs[name]
            layer[...] = 0 if tensor.grad is None else parameter.layout.to_ours(_numpy(tensor.grad))
            tensor.grad = None  # two copies of all gradients would not fit beside a model of billions
        ours[parameter.path] = array if parameter.stacked else array[0]
    return value.item(), ours


@contextmanager
def _hooked(model: InternVLForConditionalGeneration) -> Iterator[dict[str, list[np.ndarray]]]:
    """Collects, while open, the taps of forward passes, one entry for each layer."""
    taps: dict[str, list[np.ndarray]] = defaultdict(list)
    handles = []
    layers = {"vision": len(model.model.vision_tower.encoder.layer), "decoder": len(model.model.language_model.layers)}
    for tap, name in OUTPUTS.items():
        for i in range(layers[tap.split("/")[0]] if "{i}" in name else 1):
            module = model.model.get_submodule(name.format(i=i))
            handles.append(module.register_forward_hook(_keep_output(taps[tap])))
    for tap, name in ARGUMENTS.items():
        module = model.model.get_submodule(name)
        handles.append(module.register_forward_pre_hook(_keep_argument(taps[tap]), with_kwargs=True))
    try:
        yield taps
    finally:
        for handle in handles:
            handle.remove()
        for tap in [tap for tap, values in taps.items() if not values]:
            del taps[tap]


def _keep_output(values: list[np.ndarray]) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: Any, output: Any) -> None:
        values.append(_numpy(output[0] if isinstance(output, tuple) else output))

    return hook


def _keep_argument(values: list[np.ndarray]) -> Callable[..., None]:
    def hook(module: torch.nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        values.append(_numpy(kwargs["inputs_embeds"] if "inputs_embeds" in kwargs else args[0]))

    return hook


def _numpy(tensor: torch.Tensor) -> np.ndarray:
    """As numpy, which has no bfloat16 of its own: those become float32."""
    tensor = tensor.detach()
    return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()


def _widen(model: InternVLForConditionalGeneration) -> None:
    """Replaces, in this one model, the parts that transformers computes in float32 whatever the model's dtype."""
    AttentionInterface.register(WIDE_ATTENTION, _attention)
    AttentionMaskInterface.register(WIDE_ATTENTION, eager_mask)
    model.set_attn_implementation(WIDE_ATTENTION)
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            module.forward = MethodType(_rms_norm, module)
        if type(module).__name__.endswith("RotaryEmbedding"):
            module.forward = MethodType(_rotary, module)


def _attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    **unused: Any,
) -> tuple[torch.Tensor, torch.Tensor]:
    key, value = (x.repeat_interleave(query.shape[1] // x.shape[1], dim=1) for x in (key, value))
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    probabilities = scores.softmax(-1)
    return (probabilities @ value).transpose(1, 2).contiguous(), probabilities


def _rms_norm(self: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.variance_epsilon))


def _rotary(self: torch.nn.Module, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, ...]:
    config = self.config
    if position_ids.max() >= config.max_position_embeddings:
        raise ValueError(
            f"position {position_ids.max()} is beyond {config.max_position_embeddings}, the trained length"
        )
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    exponents = torch.arange(0, head_dim, 2, dtype=x.dtype) / head_dim
    angles = position_ids[..., None].to(x.dtype) * config.rope_parameters["rope_theta"] ** -exponents
    angles = torch.cat((angles, angles), dim=-1)
    return angles.cos(), angles.sin()


def versions() -> str:
    """The versions of PyTorch and transformers, for reports."""
    return f"torch {torch.__version__}, transformers {transformers.__version__}"
