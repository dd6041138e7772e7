"""The one table between our parameter paths and the names of PyTorch checkpoints.

A row says for one of our parameters which tensor of a checkpoint holds it, in which arrangement, and for which
configurations it exists. Layers of a checkpoint are separate tensors, `{i}` in their names; ours are stacked.
"""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from ivl3_jax.config import InternVLConfig
from ivl3_jax.conversion.layout import Layout

Condition = Callable[[InternVLConfig], bool]


def _always(config: InternVLConfig) -> bool:
    return True


@dataclass(frozen=True)
class Tensor:
    """A tensor in a checkpoint: its name, `{i}` standing for the layer, and a pattern of `Layout`."""

    name: str
    pattern: str


@dataclass(frozen=True)
class Row:
    """One of our parameters: its path, where each checkpoint layout keeps it, which configurations have it."""

    path: str
    hf: Tensor
    when: Condition = _always


def _norm(path: str, name: str, axis: str = "embed", bias: Condition | None = None) -> list[Row]:
    rows = [Row(f"{path}/scale", Tensor(f"{name}.weight", f"{axis} -> {axis}"))]
    return rows + ([Row(f"{path}/bias", Tensor(f"{name}.bias", f"{axis} -> {axis}"), bias)] if bias else [])


def _linear(path: str, name: str, pattern: str, bias: Condition | None = None) -> list[Row]:
    """`pattern` is the kernel's. The bias has the kernel's output axes: their first dimension, and ours of those."""
    rows = [Row(f"{path}/kernel", Tensor(f"{name}.weight", pattern))]
    if bias is None:
        return rows
    output = pattern[: pattern.index(")") + 1] if pattern.startswith("(") else pattern.split()[0]
    return [*rows, Row(f"{path}/bias", Tensor(f"{name}.bias", f"{output} -> {output.strip('()')}"), bias)]


def _vision_norm_bias(config: InternVLConfig) -> bool:
    return config.vision.norm == "layer_norm"


def _vision_qkv_bias(config: InternVLConfig) -> bool:
    return config.vision.qkv_bias


def _vision_qk_norm(config: InternVLConfig) -> bool:
    return config.vision.qk_norm


def _decoder_qkv_bias(config: InternVLConfig) -> bool:
    return config.decoder.qkv_bias


def _untied(config: InternVLConfig) -> bool:
    return not config.decoder.tie_embeddings


_EMBED = "model.vision_tower.embeddings"
_VIT = "model.vision_tower.encoder.layer.{i}"
_PROJECTOR = "model.multi_modal_projector"
_LLM = "model.language_model"
_BLOCK = "model.language_model.layers.{i}"
_QKV = "(heads head_dim) embed -> embed heads head_dim"
_GROUPED = "(kv_heads head_dim) embed -> embed kv_heads head_dim"
_OUT = "embed (heads head_dim) -> heads head_dim embed"
_UP = "mlp embed -> embed mlp"
_DOWN = "embed mlp -> mlp embed"
_HEADS = "(heads head_dim) -> heads head_dim"

ROWS: tuple[Row, ...] = (
    Row("vision/cls", Tensor(f"{_EMBED}.cls_token", "1 1 embed -> embed")),
    *_linear(
        "vision/patch",
        f"{_EMBED}.patch_embeddings.projection",
        "embed channel row column -> (row column channel) embed",
        _always,
    ),
    Row("vision/positions", Tensor(f"{_EMBED}.position_embeddings", "1 positions embed -> positions embed")),
    *_norm("vision/layers/norm1", f"{_VIT}.layernorm_before", bias=_vision_norm_bias),
    *_linear("vision/layers/attention/q", f"{_VIT}.attention.q_proj", _QKV, _vision_qkv_bias),
    *_linear("vision/layers/attention/k", f"{_VIT}.attention.k_proj", _QKV, _vision_qkv_bias),
    *_linear("vision/layers/attention/v", f"{_VIT}.attention.v_proj", _QKV, _vision_qkv_bias),
    Row("vision/layers/attention/q_norm/scale", Tensor(f"{_VIT}.attention.q_norm.weight", _HEADS), _vision_qk_norm),
    Row("vision/layers/attention/k_norm/scale", Tensor(f"{_VIT}.attention.k_norm.weight", _HEADS), _vision_qk_norm),
    *_linear("vision/layers/attention/out", f"{_VIT}.attention.projection_layer", _OUT, _always),
    Row("vision/layers/ls1", Tensor(f"{_VIT}.lambda_1", "embed -> embed")),
    *_norm("vision/layers/norm2", f"{_VIT}.layernorm_after", bias=_vision_norm_bias),
    *_linear("vision/layers/mlp/up", f"{_VIT}.mlp.fc1", _UP, _always),
    *_linear("vision/layers/mlp/down", f"{_VIT}.mlp.fc2", _DOWN, _always),
    Row("vision/layers/ls2", Tensor(f"{_VIT}.lambda_2", "embed -> embed")),
    *_norm("projector/norm", f"{_PROJECTOR}.layer_norm", "unshuffled", _always),
    *_linear("projector/up", f"{_PROJECTOR}.linear_1", "mlp unshuffled -> unshuffled mlp", _always),
    *_linear("projector/down", f"{_PROJECTOR}.linear_2", _DOWN, _always),
    Row("decoder/embed/table", Tensor(f"{_LLM}.embed_tokens.weight", "vocab embed -> vocab embed")),
    *_norm("decoder/layers/norm1", f"{_BLOCK}.input_layernorm"),
    *_linear("decoder/layers/attention/q", f"{_BLOCK}.self_attn.q_proj", _QKV, _decoder_qkv_bias),
    *_linear("decoder/layers/attention/k", f"{_BLOCK}.self_attn.k_proj", _GROUPED, _decoder_qkv_bias),
    *_linear("decoder/layers/attention/v", f"{_BLOCK}.self_attn.v_proj", _GROUPED, _decoder_qkv_bias),
    *_linear("decoder/layers/attention/out", f"{_BLOCK}.self_attn.o_proj", _OUT),
    *_norm("decoder/layers/norm2", f"{_BLOCK}.post_attention_layernorm"),
    *_linear("decoder/layers/mlp/gate", f"{_BLOCK}.mlp.gate_proj", _UP),
    *_linear("decoder/layers/mlp/up", f"{_BLOCK}.mlp.up_proj", _UP),
    *_linear("decoder/layers/mlp/down", f"{_BLOCK}.mlp.down_proj", _DOWN),
    *_norm("decoder/norm", f"{_LLM}.norm"),
    Row("decoder/head/kernel", Tensor("lm_head.weight", "vocab embed -> embed vocab"), _untied),
)

# Other spellings of the same `-hf` tensors: transformers 4.52 wrote the prefixes without `model.`, and InternVL's own
# converter leaves the ViT's qk-norm under its original name.
_SPELLINGS = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.model\."), "model.language_model."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
    (re.compile(r"(vision_tower\..*)\.attn\.([qk]_norm)\."), r"\1.attention.\2."),
)

# Tensors that some checkpoints carry and no forward pass reads.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.mask_token$|embeddings\.position_ids$")


def canonical(name: str) -> str:
    """A tensor's name as `ROWS` spells it."""
    for pattern, replacement in _SPELLINGS:
        name = pattern.sub(replacement, name)
    return name


@dataclass(frozen=True)
class Parameter:
    """One of our parameters under a given configuration.

    Attributes:
        path: ours, joined by slashes.
        tensors: the names of the checkpoint's tensors, one for each layer, or just one.
        stacked: whether ours has a leading axis of layers.
        layout: arrangement of a single layer.
    """

    path: str
    tensors: tuple[str, ...]
    stacked: bool
    layout: Layout

    @property
    def shape(self) -> tuple[int, ...]:
        """Of our array, without padding of the vocabulary."""
        return (len(self.tensors), *self.layout.our_shape) if self.stacked else self.layout.our_shape


def parameters(config: InternVLConfig) -> Iterator[Parameter]:
    """Every parameter of a model, in the order of `ROWS`, with its tensors in the `-hf` layout."""
    sizes = axis_sizes(config)
    for row in ROWS:
        if row.when(config):
            component = sizes[row.path.split("/")[0]]
            stacked = "{i}" in row.hf.name
            names = tuple(row.hf.name.format(i=i) for i in range(component["layers"] if stacked else 1))
            yield Parameter(row.path, names, stacked, Layout(row.hf.pattern, component))


def axis_sizes(config: InternVLConfig) -> dict[str, dict[str, int]]:
    """The size of every axis that a pattern may name, by component."""
    v, d = config.vision, config.decoder
    return {
        "vision": {
            "layers": v.layers,
            "embed": v.width,
            "heads": v.heads,
            "head_dim": v.head_dim,
            "mlp": v.mlp,
            "positions": v.positions,
            "row": v.patch_size,
            "column": v.patch_size,
            "channel": 3,
        },
        "projector": {
            "layers": 1,
            "unshuffled": config.projector.downsample**2 * v.width,
            "mlp": d.width,
            "embed": d.width,
        },
        "decoder": {
            "layers": d.layers,
            "embed": d.width,
            "heads": d.heads,
            "kv_heads": d.kv_heads,
            "head_dim": d.head_dim,
            "mlp": d.mlp,
            "vocab": d.vocab,
        },
    }
