"""Hugging Face's config.json of the `-hf` layout, read into an InternVLConfig and written from one."""

import json
from pathlib import Path
from typing import Any

from ivl3_jax.config import ROPE_TYPES, DecoderConfig, InternVLConfig, ProjectorConfig, RopeScaling, VisionConfig


def read_config(directory: str | Path) -> InternVLConfig:
    """Reads `config.json` of a checkpoint directory.

    Raises:
        FileNotFoundError: no config.json there.
        ValueError: not JSON, or a field is missing, unsupported or contradictory.
    """
    file = Path(directory) / "config.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a checkpoint directory holds config.json and safetensors")
    try:
        fields = json.loads(file.read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    return from_hf(fields, file)


def from_hf(fields: dict[str, Any], file: str | Path = "config.json") -> InternVLConfig:
    """Builds from the fields of an `-hf` config.json; `file` is named in errors."""
    top = _Fields(fields, str(file))
    top.expect("model_type", ("internvl",), "the transformers-native `-hf` layout")
    vision, text = top.section("vision_config"), top.section("text_config")
    text.expect("model_type", ("qwen2", "llama"), "Qwen2.5, and InternLM3 in Llama's form")
    text.expect("attention_bias", (False,), absent=False)
    text.expect("mlp_bias", (False,), absent=False)
    top.expect("projector_hidden_act", ("gelu",), absent="gelu")
    top.expect("vision_feature_select_strategy", ("default",), "dropping CLS", absent="default")
    vision.expect("hidden_act", ("gelu",), absent="gelu")
    vision.expect("use_mean_pooling", (True,), "without it a final LayerNorm follows the ViT", absent=True)
    vision.expect("use_absolute_position_embeddings", (True,), absent=True)
    vision.expect("num_channels", (3,), absent=3)
    text.expect("hidden_act", ("silu",), absent="silu")
    text.expect("use_sliding_window", (False,), "full causal attention", absent=False)
    ratio = top.get("downsample_ratio")
    if not isinstance(ratio, int | float) or ratio <= 0 or (1 / ratio) % 1:
        raise ValueError(f"{file}: downsample_ratio is {ratio!r}; it must be one over a whole number, as 0.5")
    tied = fields["tie_word_embeddings"] if "tie_word_embeddings" in fields else text.get("tie_word_embeddings")
    rope = text.rope()
    heads, width = text.whole("num_attention_heads"), text.whole("hidden_size")
    vision_config = {
        "layers": vision.whole("num_hidden_layers"),
        "width": vision.whole("hidden_size"),
        "heads": vision.whole("num_attention_heads"),
        "mlp": vision.whole("intermediate_size"),
        "image_size": vision.square("image_size"),
        "patch_size": vision.square("patch_size"),
        "norm": vision.get("norm_type"),
        "norm_eps": vision.get("layer_norm_eps"),
        "qk_norm": vision.get("use_qk_norm"),
        "qkv_bias": vision.get("attention_bias"),
        "layer_scale": fields["vision_config"].get("layer_scale_init_value", 0.1),
        "drop_path": fields["vision_config"].get("drop_path_rate", 0.0),
        "initializer_range": fields["vision_config"].get("initializer_range", 0.02),
    }
    decoder_config = {
        "layers": text.whole("num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": text.whole("num_key_value_heads"),
        "head_dim": fields["text_config"].get("head_dim") or width // heads,
        "mlp": text.whole("intermediate_size"),
        "vocab": text.whole("vocab_size"),
        "rope_theta": rope["rope_theta"],
        "max_positions": text.whole("max_position_embeddings"),
        "norm_eps": text.get("rms_norm_eps"),
        "qkv_bias": text.get("model_type") == "qwen2",
        "tie_embeddings": bool(tied),
        "initializer_range": fields["text_config"].get("initializer_range", 0.02),
    }
    image_token_id, select_layer = top.whole("image_token_id", 0), top.whole("vision_feature_layer", None)
    try:
        scaling = RopeScaling(rope["rope_type"], rope.get("factor") or 1.0)
        return InternVLConfig(
            VisionConfig(**vision_config),
            ProjectorConfig(downsample=round(1 / ratio)),
            DecoderConfig(rope_scaling=scaling, **decoder_config),
            image_token_id,
            select_layer,
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def to_hf(config: InternVLConfig) -> dict[str, Any]:
    """The fields of an `-hf` config.json that transformers (4.52 and later) reads; inverse of `from_hf`."""
    v, d = config.vision, config.decoder
    rope = {"rope_theta": d.rope_theta, "rope_type": d.rope_scaling.type}
    if d.rope_scaling.type != "default":
        rope["factor"] = d.rope_scaling.factor
    return {
        "architectures": ["InternVLForConditionalGeneration"],
        "model_type": "internvl",
        "downsample_ratio": 1 / config.projector.downsample,
        "image_seq_length": config.tile_tokens,
        "image_token_id": config.image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.select_layer,
        "vision_feature_select_strategy": "default",
        "tie_word_embeddings": d.tie_embeddings,
        "vision_config": {
            "model_type": "internvl_vision",
            "num_hidden_layers": v.layers,
            "hidden_size": v.width,
            "num_attention_heads": v.heads,
            "intermediate_size": v.mlp,
            "image_size": [v.image_size, v.image_size],
            "patch_size": [v.patch_size, v.patch_size],
            "num_channels": 3,
            "norm_type": v.norm,
            "layer_norm_eps": v.norm_eps,
            "use_qk_norm": v.qk_norm,
            "attention_bias": v.qkv_bias,
            "layer_scale_init_value": v.layer_scale,
            "drop_path_rate": v.drop_path,
            "initializer_range": v.initializer_range,
            "hidden_act": "gelu",
            "use_absolute_position_embeddings": True,
            "use_mask_token": False,
            "use_mean_pooling": True,
        },
        "text_config": {
            "model_type": "qwen2" if d.qkv_bias else "llama",
            "num_hidden_layers": d.layers,
            "hidden_size": d.width,
            "num_attention_heads": d.heads,
            "num_key_value_heads": d.kv_heads,
            "head_dim": d.head_dim,
            "intermediate_size": d.mlp,
            "vocab_size": d.vocab,
            "rope_theta": d.rope_theta,
            "rope_parameters": rope,
            "max_position_embeddings": d.max_positions,
            "rms_norm_eps": d.norm_eps,
            "tie_word_embeddings": d.tie_embeddings,
            "initializer_range": d.initializer_range,
            "hidden_act": "silu",
            "use_sliding_window": False,
        },
    }


class _Fields:
    """One section of a config.json, whose complaints say the file, the place and what would be valid."""

    def __init__(self, fields: dict[str, Any], file: str, place: str = "") -> None:
        self.fields, self.file, self.place = fields, file, place
        if not isinstance(fields, dict):
            raise ValueError(f"{file}: {place.rstrip('.') or 'the file'} is {fields!r}; it must be a JSON object")

    def get(self, name: str) -> Any:
        if name not in self.fields:
            raise ValueError(f"{self.file}: {self.place}{name} is missing; a published checkpoint states it")
        return self.fields[name]

    def section(self, name: str) -> "_Fields":
        return _Fields(self.get(name), self.file, f"{self.place}{name}.")

    def expect(self, name: str, allowed: tuple, why: str = "", *, absent: Any = None) -> None:
        value = self.get(name) if absent is None else self.fields.get(name, absent)
        if value not in allowed:
            valid = " or ".join(map(repr, allowed))
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; supported: {valid}{why and f' ({why})'}")

    def whole(self, name: str, least: int | None = 1) -> int:
        value = self.get(name)
        if type(value) is not int or (least is not None and value < least):
            bound = "" if least is None else f" of at least {least}"
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be a whole number{bound}")
        return value

    def square(self, name: str) -> int:
        value = self.get(name)
        sides = list(value) if isinstance(value, list | tuple) else [value]
        if len(set(sides)) != 1 or not isinstance(sides[0], int):
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be one whole number or two equal")
        return sides[0]

    def rope(self) -> dict[str, Any]:
        """Rope fields from `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
        found = {"rope_type": "default"}
        if "rope_theta" in self.fields:
            found["rope_theta"] = self.fields["rope_theta"]
        for name in ("rope_scaling", "rope_parameters"):
            part = self.fields.get(name) or {}
            found |= {"rope_type": part["type"]} if "type" in part else {}
            found |= part
        if "rope_theta" not in found:
            raise ValueError(f"{self.file}: {self.place}rope_theta is missing, there and in rope_parameters")
        if found["rope_type"] not in ROPE_TYPES:
            raise ValueError(
                f"{self.file}: {self.place}rope type is {found['rope_type']!r}; supported: {', '.join(ROPE_TYPES)}"
            )
        return found
