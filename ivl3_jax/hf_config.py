"""A checkpoint's config.json read into an InternVLConfig; that of the `-hf` layout also written from one."""

import json
from pathlib import Path
from typing import Any

from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, RopeScaling, VisionConfig
from ivl3_jax.config_fields import Fields
from ivl3_jax.original_config import MODEL_TYPE as ORIGINAL
from ivl3_jax.original_config import from_original, image_token_id


def read_config(directory: str | Path) -> InternVLConfig:
    """Reads `config.json` of a checkpoint directory, in the `-hf` or the original layout.

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
    if isinstance(fields, dict) and fields.get("model_type") == ORIGINAL:
        return from_original(fields, image_token_id(directory), file)
    return from_hf(fields, file)


def from_hf(fields: dict[str, Any], file: str | Path = "config.json") -> InternVLConfig:
    """Builds from the fields of an `-hf` config.json; `file` is named in errors."""
    top = Fields(fields, str(file))
    top.expect("model_type", ("internvl",), f"the `-hf` layout; {ORIGINAL!r} is the original one")
    vision, text = top.section("vision_config"), top.section("text_config")
    text.expect("model_type", ("qwen2", "llama"), "Qwen2.5, and InternLM3 in Llama's form")
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
    qwen = text.get("model_type") == "qwen2"
    heads, width = text.whole("num_attention_heads"), text.whole("hidden_size")
    # Some writers state null where each head has its share of the width.
    head_dim = width // heads if text.fields.get("head_dim") is None else text.whole("head_dim")
    vision_config: dict[str, Any] = {
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
    decoder_config: dict[str, Any] = {
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
        "qkv_bias": qwen or text.flag("attention_bias", False),
        "out_bias": not qwen and text.flag("attention_bias", False),
        "mlp_bias": not qwen and text.flag("mlp_bias", False),
        "tie_embeddings": tied,
        "initializer_range": text.number("initializer_range", 0.02),
        "family": "qwen2" if qwen else "internlm2",
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
    """The fields of an `-hf` config.json that transformers (4.52 and later) reads; inverse of `from_hf`.

    Raises:
        ValueError: the decoder's biases have no `-hf` form.
    """
    v, d = config.vision, config.decoder
    qwen = d.family == "qwen2"
    if (d.qkv_bias, d.out_bias, d.mlp_bias) != (True, False, False) if qwen else d.qkv_bias != d.out_bias:
        raise ValueError(
            f"a {d.family} decoder with qkv_bias {d.qkv_bias}, out_bias {d.out_bias} and mlp_bias {d.mlp_bias} has no "
            "`-hf` form: transformers' Qwen2 has biases of q, k and v only, its Llama of all four projections or none"
        )
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
            "model_type": "qwen2" if qwen else "llama",
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
            **({"use_sliding_window": False} if qwen else {"attention_bias": d.qkv_bias, "mlp_bias": d.mlp_bias}),
        },
    }
