"""The one table between our parameter paths and the names of PyTorch checkpoints.

A row says for one of our parameters which tensor of a checkpoint holds it, in which arrangement, and for which
configurations it exists. Layers of a checkpoint are separate tensors, `{i}` in their names; ours are stacked.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

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
    """One of our parameters: its path, where each checkpoint layout keeps it, which configurations have it.

    Attributes:
        hf: in transformers' `-hf` layout.
        original: in that of the authors' remote code. internlm2: there, where the decoder is InternLM2's class.
    """

    path: str
    hf: Tensor
    original: Tensor
    internlm2: Tensor | None = None
    when: Condition = _always

    def tensor(self, layout: str, config: InternVLConfig) -> Tensor:
        """Where a checkpoint of `layout` (one of `LAYOUTS`) has it."""
        if layout == "hf":
            return self.hf
        return (self.internlm2 if config.decoder.family == "internlm2" else None) or self.original


def _row(path: str, names: Sequence[str], patterns: str | Sequence[str], when: Condition = _always) -> Row:
    """`names` and `patterns` in the order hf, original, internlm2; a single pattern is that of all."""
    patterns = [patterns] * len(names) if isinstance(patterns, str) else patterns
    hf, original, *internlm2 = map(Tensor, names, patterns)
    return Row(path, hf, original, internlm2[0] if internlm2 else None, when)


def _norm(path: str, *names: str, axis: str = "embed", bias: Condition | None = None) -> list[Row]:
    rows = [_row(f"{path}/scale", [f"{name}.weight" for name in names], f"{axis} -> {axis}")]
    return rows + (
        [_row(f"{path}/bias", [f"{name}.bias" for name in names], f"{axis} -> {axis}", bias)] if bias else []
    )


def _linear(path: str, *names: str, patterns: str | Sequence[str], bias: Condition | None = None) -> list[Row]:
    """`patterns` are the kernel's. The bias has the kernel's output axes: their first dimension, and ours of those."""
    rows = [_row(f"{path}/kernel", [f"{name}.weight" for name in names], patterns)]
    if bias is None:
        return rows
    patterns = [bias_pattern(pattern) for pattern in ([patterns] if isinstance(patterns, str) else patterns)]
    return [
        *rows,
        _row(f"{path}/bias", [f"{name}.bias" for name in names], patterns * (len(names) // len(patterns)), bias),
    ]


def bias_pattern(kernel: str) -> str:
    """The pattern of a linear layer's bias, from that of its kernel."""
    theirs, ours = (re.findall(r"\([^)]*\)|\w+", side) for side in kernel.split("->"))
    axes = re.sub(r":\w+|[()]", "", theirs[0]).split()
    return f"{theirs[0]} -> {' '.join(part for part in ours if part.strip('()').split()[0] in axes)}"


def _vision_norm_bias(config: InternVLConfig) -> bool:
    return config.vision.norm == "layer_norm"


def _vision_qkv_bias(config: InternVLConfig) -> bool:
    return config.vision.qkv_bias


def _vision_qk_norm(config: InternVLConfig) -> bool:
    return config.vision.qk_norm


def _decoder_qkv_bias(config: InternVLConfig) -> bool:
    return config.decoder.qkv_bias


def _decoder_out_bias(config: InternVLConfig) -> bool:
    return config.decoder.out_bias


def _decoder_mlp_bias(config: InternVLConfig) -> bool:
    return config.decoder.mlp_bias


def _untied(config: InternVLConfig) -> bool:
    return not config.decoder.tie_embeddings


LAYOUTS = ("hf", "original")

# ViTs and language models are published alone too, under their names in the original layout without these prefixes.
ALONE = {"vision": "vision_model.", "decoder": "language_model."}

_EMBED, _EMBED_O = "model.vision_tower.embeddings", "vision_model.embeddings"
_VIT, _VIT_O = "model.vision_tower.encoder.layer.{i}", "vision_model.encoder.layers.{i}"
_PROJECTOR = "model.multi_modal_projector"
_LLM, _LLM_O = "model.language_model", "language_model.model"
_BLOCK, _BLOCK_O = f"{_LLM}.layers.{{i}}", f"{_LLM_O}.layers.{{i}}"
_QKV = "(heads head_dim) embed -> embed heads head_dim"
_GROUPED = "(kv_heads head_dim) embed -> embed kv_heads head_dim"
_OUT = "embed (heads head_dim) -> heads head_dim embed"
_UP = "mlp embed -> embed mlp"
_DOWN = "embed mlp -> mlp embed"
_HEADS = "(heads head_dim) -> heads head_dim"
# The original ViT keeps q, k and v as the thirds of one tensor; InternLM2 in blocks of head_dim rows, for each kv head
# those of its query heads, then of its key, then of its value.
_THIRDS = [f"(one:{i}:3 heads head_dim) embed -> embed (heads one) head_dim" for i in range(3)]
_WQKV = [
    "(kv_heads group:0:slots head_dim) embed -> embed (kv_heads group) head_dim",
    "(kv_heads one:k:slots head_dim) embed -> embed (kv_heads one) head_dim",
    "(kv_heads one:v:slots head_dim) embed -> embed (kv_heads one) head_dim",
]


def _vision_qkv(name: str, third: str) -> list[Row]:
    names = f"{_VIT}.attention.{name}_proj", f"{_VIT_O}.attn.qkv"
    return _linear(f"vision/layers/attention/{name}", *names, patterns=[_QKV, third], bias=_vision_qkv_bias)


def _decoder_qkv(name: str, separate: str, fused: str) -> list[Row]:
    names = *(f"{block}.self_attn.{name}_proj" for block in (_BLOCK, _BLOCK_O)), f"{_BLOCK_O}.attention.wqkv"
    patterns = [separate, separate, fused]
    return _linear(f"decoder/layers/attention/{name}", *names, patterns=patterns, bias=_decoder_qkv_bias)


def _decoder(path: str, name: str, internlm2: str, pattern: str, bias: Condition) -> list[Row]:
    names = f"{_BLOCK}.{name}", f"{_BLOCK_O}.{name}", f"{_BLOCK_O}.{internlm2}"
    return _linear(f"decoder/layers/{path}", *names, patterns=pattern, bias=bias)


ROWS: tuple[Row, ...] = (
    _row("vision/cls", [f"{_EMBED}.cls_token", f"{_EMBED_O}.class_embedding"], "1 1 embed -> embed"),
    *_linear(
        "vision/patch",
        f"{_EMBED}.patch_embeddings.projection",
        f"{_EMBED_O}.patch_embedding",
        patterns="embed channel row column -> (row column channel) embed",
        bias=_always,
    ),
    _row(
        "vision/positions",
        [f"{_EMBED}.position_embeddings", f"{_EMBED_O}.position_embedding"],
        "1 positions embed -> positions embed",
    ),
    *_norm("vision/layers/norm1", f"{_VIT}.layernorm_before", f"{_VIT_O}.norm1", bias=_vision_norm_bias),
    *(row for name, third in zip("qkv", _THIRDS, strict=True) for row in _vision_qkv(name, third)),
    *(
        _row(
            f"vision/layers/attention/{name}_norm/scale",
            [f"{_VIT}.attention.{name}_norm.weight", f"{_VIT_O}.attn.{name}_norm.weight"],
            _HEADS,
            _vision_qk_norm,
        )
        for name in "qk"
    ),
    *_linear(
        "vision/layers/attention/out",
        f"{_VIT}.attention.projection_layer",
        f"{_VIT_O}.attn.proj",
        patterns=_OUT,
        bias=_always,
    ),
    _row("vision/layers/ls1", [f"{_VIT}.lambda_1", f"{_VIT_O}.ls1"], "embed -> embed"),
    *_norm("vision/layers/norm2", f"{_VIT}.layernorm_after", f"{_VIT_O}.norm2", bias=_vision_norm_bias),
    *_linear("vision/layers/mlp/up", f"{_VIT}.mlp.fc1", f"{_VIT_O}.mlp.fc1", patterns=_UP, bias=_always),
    *_linear("vision/layers/mlp/down", f"{_VIT}.mlp.fc2", f"{_VIT_O}.mlp.fc2", patterns=_DOWN, bias=_always),
    _row("vision/layers/ls2", [f"{_VIT}.lambda_2", f"{_VIT_O}.ls2"], "embed -> embed"),
    *_norm("projector/norm", f"{_PROJECTOR}.layer_norm", "mlp1.0", axis="unshuffled", bias=_always),
    *_linear(
        "projector/up",
        f"{_PROJECTOR}.linear_1",
        "mlp1.1",
        patterns="mlp unshuffled -> unshuffled mlp",
        bias=_always,
    ),
    *_linear("projector/down", f"{_PROJECTOR}.linear_2", "mlp1.3", patterns=_DOWN, bias=_always),
    _row(
        "decoder/embed/table",
        [f"{_LLM}.embed_tokens.weight", f"{_LLM_O}.embed_tokens.weight", f"{_LLM_O}.tok_embeddings.weight"],
        "vocab embed -> vocab embed",
    ),
    *_norm(
        "decoder/layers/norm1",
        f"{_BLOCK}.input_layernorm",
        f"{_BLOCK_O}.input_layernorm",
        f"{_BLOCK_O}.attention_norm",
    ),
    *_decoder_qkv("q", _QKV, _WQKV[0]),
    *_decoder_qkv("k", _GROUPED, _WQKV[1]),
    *_decoder_qkv("v", _GROUPED, _WQKV[2]),
    *_decoder("attention/out", "self_attn.o_proj", "attention.wo", _OUT, _decoder_out_bias),
    *_norm(
        "decoder/layers/norm2",
        f"{_BLOCK}.post_attention_layernorm",
        f"{_BLOCK_O}.post_attention_layernorm",
        f"{_BLOCK_O}.ffn_norm",
    ),
    *_decoder("mlp/gate", "mlp.gate_proj", "feed_forward.w1", _UP, _decoder_mlp_bias),
    *_decoder("mlp/up", "mlp.up_proj", "feed_forward.w3", _UP, _decoder_mlp_bias),
    *_decoder("mlp/down", "mlp.down_proj", "feed_forward.w2", _DOWN, _decoder_mlp_bias),
    *_norm("decoder/norm", f"{_LLM}.norm", f"{_LLM_O}.norm", f"{_LLM_O}.norm"),
    _row(
        "decoder/head/kernel",
        ["lm_head.weight", "language_model.lm_head.weight", "language_model.output.weight"],
        "vocab embed -> embed vocab",
        _untied,
    ),
)

# Other spellings of the same `-hf` tensors: transformers 4.52 wrote the prefixes without `model.`, and so does a model
# saved without its output projection; InternVL's own converter leaves the ViT's qk-norm under its original name.
_SPELLINGS = (
    (re.compile(r"^language_model\.lm_head\."), "lm_head."),
    (re.compile(r"^language_model\.(model\.)?"), "model.language_model."),
    (re.compile(r"^(vision_tower|multi_modal_projector)\."), r"model.\1."),
    (re.compile(r"(vision_tower\..*)\.attn\.([qk]_norm)\."), r"\1.attention.\2."),
)

# Tensors that some checkpoints carry and no forward pass reads.
IGNORED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.mask_token$|embeddings\.position_ids$")


def layout_of(names: Iterable[str]) -> str:
    """Which of `LAYOUTS` a checkpoint with tensors of these names is in."""
    return "original" if any(name.startswith(("vision_model.", "mlp1.")) for name in names) else "hf"


def canonical(name: str, layout: str = "hf") -> str:
    """A tensor's name as `ROWS` spells it."""
    if layout == "original":
        return name
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


def parameters(config: InternVLConfig, layout: str = "hf") -> Iterator[Parameter]:
    """Every parameter of a model, in the order of `ROWS`, with its tensors in one of `LAYOUTS`."""
    sizes = axis_sizes(config)
    for row in ROWS:
        if row.when(config):
            component, tensor = sizes[row.path.split("/")[0]], row.tensor(layout, config)
            stacked = "{i}" in tensor.name
            names = tuple(tensor.name.format(i=i) for i in range(component["layers"] if stacked else 1))
            yield Parameter(row.path, names, stacked, Layout(tensor.pattern, component))


def parameters_alone(config: InternVLConfig, component: str) -> Iterator[Parameter]:
    """Those of one component, with their tensors in a directory that holds nothing else; `component` of `ALONE`."""
    for parameter in parameters(config, "original"):
        if parameter.path.startswith(f"{component}/"):
            names = (name.removeprefix(ALONE[component]) for name in parameter.tensors)
            yield replace(parameter, tensors=tuple(names))


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
            "one": 1,
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
            "one": 1,
            "group": d.heads // d.kv_heads,
            # Blocks of head_dim rows that belong to one kv head in InternLM2's wqkv, and which of them are its own.
            "slots": d.heads // d.kv_heads + 2,
            "k": d.heads // d.kv_heads,
            "v": d.heads // d.kv_heads + 1,
        },
    }
