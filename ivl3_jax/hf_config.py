"""Hugging Face's config.json of the `-hf` layout, read into an InternVLConfig and written from one."""

import json
import sys
from pathlib import Path
from typing import Any

from ivl3_jax.config import ROPE_TYPES, DecoderConfig, InternVLConfig, ProjectorConfig, RopeScaling, VisionConfig


def read_config(directory: str | Path) -> InternVLConfig:
    """Reads `config.json` of a checkpoint directory.

    Raises:
        NotADirectoryError: it is a file. FileNotFoundError: no config.json there.
        ValueError: not JSON, or a field is missing, unsupported or contradictory.
    """
    file = Path(directory) / "config.json"
    if file.parent.is_file():
        raise NotADirectoryError(f"{directory} is not a directory; a checkpoint is one, with config.json in it")
    if not file.is_file():
        raise FileNotFoundError(f"{file} does not exist; a checkpoint directory holds config.json and safetensors")
    try:
        fields = json.loads(file.read_bytes())
    except (ValueError, RecursionError) as error:
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
    ratio = top.number("downsample_ratio")
    if ratio <= 0 or (1 / ratio) % 1:
        raise ValueError(f"{file}: downsample_ratio is {ratio!r}; it must be one over a whole number, as 0.5")
    tied = (top if "tie_word_embeddings" in fields else text).flag("tie_word_embeddings")
    rope = text.rope()
    heads, width = text.whole("num_attention_heads"), text.whole("hidden_size")
    # Some writers state null where each head has its share of the width.
    head_dim = width // heads if text.fields.get("head_dim") is None else text.whole("head_dim")
    vision_config = {
        "layers": vision.whole("num_hidden_layers"),
        "width": vision.whole("hidden_size"),
        "heads": vision.whole("num_attention_heads"),
        "mlp": vision.whole("intermediate_size"),
        "image_size": vision.square("image_size"),
        "patch_size": vision.square("patch_size"),
        "norm": vision.get("norm_type"),
        "norm_eps": vision.number("layer_norm_eps"),
        "qk_norm": vision.flag("use_qk_norm"),
        "qkv_bias": vision.flag("attention_bias"),
        "layer_scale": vision.number("layer_scale_init_value", 0.1),
        "drop_path": vision.number("drop_path_rate", 0.0),
        "initializer_range": vision.number("initializer_range", 0.02),
    }
    decoder_config = {
        "layers": text.whole("num_hidden_layers"),
        "width": width,
        "heads": heads,
        "kv_heads": text.whole("num_key_value_heads"),
        "head_dim": head_dim,
        "mlp": text.whole("intermediate_size"),
        "vocab": text.whole("vocab_size"),
        "rope_theta": rope.number("rope_theta"),
        "max_positions": text.whole("max_position_embeddings"),
        "norm_eps": text.number("rms_norm_eps"),
        "qkv_bias": text.get("model_type") == "qwen2",
        "tie_embeddings": tied,
        "initializer_range": text.number("initializer_range", 0.02),
    }
    image_token_id, select_layer = top.whole("image_token_id", 0), top.whole("vision_feature_layer", None)
    factor = rope.number("factor", 1.0)
    try:
        scaling = RopeScaling(rope.get("rope_type"), factor)
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

    def get(self, name: str, absent: Any = None) -> Any:
        """The field, or `absent` where the file lacks it; without `absent` it must be there."""
        if name not in self.fields and absent is None:
            raise ValueError(f"{self.file}: {self.place}{name} is missing; a published checkpoint states it")
        return self.fields.get(name, absent)

    def section(self, name: str) -> "_Fields":
        return _Fields(self.get(name), self.file, f"{self.place}{name}.")

    def expect(self, name: str, allowed: tuple, why: str = "", *, absent: Any = None) -> None:
        value = self.get(name, absent)
        if value not in allowed:
            valid = " or ".join(map(repr, allowed))
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; supported: {valid}{why and f' ({why})'}")

    def whole(self, name: str, least: int | None = 1) -> int:
        value = self.get(name)
        if type(value) is not int or (least is not None and value < least):
            bound = "" if least is None else f" of at least {least}"
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be a whole number{bound}")
        return value

    def number(self, name: str, absent: float | None = None) -> float:
        value = self.get(name, absent)
        # The comparison also refuses NaN, infinities and integers beyond every float.
        if type(value) not in (int, float) or not abs(value) <= sys.float_info.max:
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be a finite number")
        return value

    def flag(self, name: str, absent: bool | None = None) -> bool:
        value = self.get(name, absent)
        if not isinstance(value, bool):
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be true or false")
        return value

    def square(self, name: str) -> int:
        value = self.get(name)
        sides = value if isinstance(value, list | tuple) else [value]
        if not 1 <= len(sides) <= 2 or any(type(side) is not int or side != sides[0] for side in sides):
            raise ValueError(f"{self.file}: {self.place}{name} is {value!r}; it must be one whole number or two equal")
        return sides[0]

    def rope(self) -> "_Fields":
        """Rope fields from `rope_parameters` (transformers 5) or `rope_theta` with `rope_scaling` (before)."""
        found = {"rope_type": "default"}
        if "rope_theta" in self.fields:
            found["rope_theta"] = self.fields["rope_theta"]
        for name in ("rope_scaling", "rope_parameters"):
            part = {} if self.fields.get(name) is None else self.section(name).fields
            found |= {"rope_type": part["type"]} if "type" in part else {}
            found |= part
        if "rope_theta" not in found:
            raise ValueError(f"{self.file}: {self.place}rope_theta is missing, there and in rope_parameters")
        if found["rope_type"] not in ROPE_TYPES:
            raise ValueError(
                f"{self.file}: {self.place}rope type is {found['rope_type']!r}; supported: {', '.join(ROPE_TYPES)}"
            )
        return _Fields(found, self.file, self.place)
