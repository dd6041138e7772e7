"""config.json of the authors' original ("remote code") layout, read into an InternVLConfig and written from one."""

import json
from pathlib import Path
from typing import Any

from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.config_fields import Fields
from ivl3_jax.written_fields import source_fields, token_ids

MODEL_TYPE = "internvl_chat"
TEMPLATE = "internvl2_5"
IMAGE_TOKEN = "<IMG_CONTEXT>"
QWEN_IMAGE_TOKEN = 151667  # of every published size with a Qwen2.5 decoder
# Where transformers finds the authors' code, in files beside config.json.
_MODEL = "modeling_internvl_chat.InternVLChatModel"
AUTO_MAP = {
    "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
    "AutoModel": _MODEL,
    "AutoModelForCausalLM": _MODEL,
}
# The decoder's class in `llm_config.architectures`, and our name of it.
ARCHITECTURES = {
    "Qwen2ForCausalLM": "qwen2",
    "InternLM2ForCausalLM": "internlm2",
    "InternLM3ForCausalLM": "internlm3",
}


def image_token_id(directory: str | Path) -> int | None:
    """The id of `<IMG_CONTEXT>` in a directory's tokenizer files, None if they do not say."""
    directory = Path(directory)

    def content(name: str) -> dict[str, Any]:
        try:
            found = json.loads((directory / name).read_bytes())
        except (OSError, ValueError):
            return {}  # the tokenizer's own reader complains
        return found if isinstance(found, dict) else {}

    added = content("added_tokens.json").get(IMAGE_TOKEN)
    listed = [token.get("id") for token in content("tokenizer.json").get("added_tokens", []) if _is_image(token)]
    decoder = content("tokenizer_config.json").get("added_tokens_decoder", {})
    decoded = [int(number) for number, token in decoder.items() if _is_image(token) and number.isdigit()]
    return next((found for found in (added, *listed, *decoded) if isinstance(found, int)), None)


def _is_image(token: Any) -> bool:
    return isinstance(token, dict) and token.get("content") == IMAGE_TOKEN


def from_original(
    fields: dict[str, Any], image_token: int | None = None, file: str | Path = "config.json"
) -> InternVLConfig:
    """Builds from the fields of an original config.json.

    Args:
        image_token: id of `<IMG_CONTEXT>`, which the authors' files do not state, see `image_token_id`.
        file: named in errors.

    Raises:
        ValueError: a field is missing, unsupported or contradictory; or the image token is not known.
    """
    top = Fields(fields, str(file))
    vision, text = top.section("vision_config"), top.section("llm_config")
    top.expect("ps_version", ("v2",), "the order of pixel unshuffle", absent="v2")
    top.expect("template", (TEMPLATE,), "the chat text of InternVL2.5 and 3", absent=TEMPLATE)
    top.expect("image_fold", (None, 0), "no tile is cut again", absent=0)
    top.expect("pad2square", (False,), "tiles are not padded", absent=False)
    forced = top.whole("force_image_size") if fields.get("force_image_size") else None
    vision_config, decoder_config = vision_fields(vision, forced), decoder_fields(text)
    if image_token is None and "img_context_token_id" in fields:
        image_token = top.whole("img_context_token_id", 0)
    if image_token is None and decoder_config["family"] != "qwen2":
        raise ValueError(
            f"{Path(file).parent}: no tokenizer file says which id {IMAGE_TOKEN} has; added_tokens.json or "
            "tokenizer_config.json of the checkpoint does"
        )
    downsample = top.downsample()
    selected = top.whole("select_layer", None) if "select_layer" in fields else -1
    try:
        return InternVLConfig(
            VisionConfig(**vision_config),
            ProjectorConfig(downsample=downsample),
            DecoderConfig(**decoder_config),
            QWEN_IMAGE_TOKEN if image_token is None else image_token,
            selected,
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def vision_fields(vision: Fields, image_size: int | None = None) -> dict[str, Any]:
    """The arguments of VisionConfig that the section of a ViT states, or the config.json of one alone.

    `image_size` is taken instead of the stated one.
    """
    vision.expect("hidden_act", ("gelu",), absent="gelu")
    return {
        "layers": vision.layers(),
        "width": vision.whole("hidden_size"),
        "heads": vision.whole("num_attention_heads"),
        "mlp": vision.whole("intermediate_size"),
        "image_size": image_size or vision.square("image_size"),
        "patch_size": vision.square("patch_size"),
        "norm": vision.get("norm_type"),
        "norm_eps": vision.number("layer_norm_eps"),
        "qk_norm": vision.flag("qk_normalization"),
        "qkv_bias": vision.flag("qkv_bias"),
        "layer_scale": vision.number("initializer_factor", 0.1),
        "drop_path": vision.number("drop_path_rate", 0.0),
        "initializer_range": vision.number("initializer_range", 0.02),
    }


def decoder_fields(text: Fields) -> dict[str, Any]:
    """The arguments of DecoderConfig that the section of a language model states, or the config.json of one alone."""
    stated = text.get("architectures")
    if not isinstance(stated, list) or len(stated) != 1 or stated[0] not in tuple(ARCHITECTURES):
        raise ValueError(
            f"{text.file}: {text.place}architectures is {stated!r}; it must be a list of one of "
            f"{', '.join(ARCHITECTURES)}"
        )
    family = ARCHITECTURES[stated[0]]
    return text.decoder() | {
        **_biases(text, family),
        "tie_embeddings": text.flag("tie_word_embeddings", False),
        "family": family,
    }


def to_original(config: InternVLConfig, source: str | Path | None = None) -> dict[str, Any]:
    """The fields of an original config.json; inverse of `from_original`.

    Args:
        source: a checkpoint directory, whose ids of special tokens are kept; and if its config.json is an original one,
            its other fields too.

    Raises:
        ValueError: the family's own code has no such biases.
    """
    v, d = config.vision, config.decoder
    architecture = next(name for name, family in ARCHITECTURES.items() if family == d.family)
    rope = None if d.rope_scaling.type == "default" else {"type": d.rope_scaling.type, "factor": d.rope_scaling.factor}
    vision = {
        "architectures": ["InternVisionModel"],
        "model_type": "intern_vit_6b",
        "num_hidden_layers": v.layers,
        "hidden_size": v.width,
        "num_attention_heads": v.heads,
        "intermediate_size": v.mlp,
        "image_size": v.image_size,
        "patch_size": v.patch_size,
        "norm_type": v.norm,
        "layer_norm_eps": v.norm_eps,
        "qk_normalization": v.qk_norm,
        "qkv_bias": v.qkv_bias,
        "initializer_factor": v.layer_scale,
        "drop_path_rate": v.drop_path,
        "initializer_range": v.initializer_range,
        "hidden_act": "gelu",
    }
    text = {
        "architectures": [architecture],
        "model_type": d.family,
        "num_hidden_layers": d.layers,
        "hidden_size": d.width,
        "num_attention_heads": d.heads,
        "num_key_value_heads": d.kv_heads,
        "head_dim": d.head_dim,
        "intermediate_size": d.mlp,
        "vocab_size": d.vocab,
        "rope_theta": d.rope_theta,
        "rope_scaling": rope,
        "max_position_embeddings": d.max_positions,
        "rms_norm_eps": d.norm_eps,
        "tie_word_embeddings": d.tie_embeddings,
        "initializer_range": d.initializer_range,
        "hidden_act": "silu",
        **_bias_fields(d),
    }
    top = {
        "architectures": ["InternVLChatModel"],
        "auto_map": AUTO_MAP,
        "model_type": MODEL_TYPE,
        "downsample_ratio": 1 / config.projector.downsample,
        "force_image_size": v.image_size,
        "select_layer": config.select_layer,
        "ps_version": "v2",
        "template": TEMPLATE,
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "tie_word_embeddings": d.tie_embeddings,
    }
    kept = source_fields(source)
    if kept.get("model_type") != MODEL_TYPE:
        top_ids, text_ids = token_ids(kept)
        kept = top_ids | {"llm_config": text_ids}
        # Our own addition, for a checkpoint without tokenizer files; the remote code passes over it.
        top["img_context_token_id"] = config.image_token_id
    # Adapters were merged when the weights were read.
    kept |= {name: 0 for name in ("use_backbone_lora", "use_llm_lora") if name in kept}
    merged = {
        "vision_config": kept.get("vision_config", {}) | vision,
        "llm_config": kept.get("llm_config", {}) | text,
    }
    return top | {name: value for name, value in kept.items() if name not in merged} | merged


def _biases(text: Fields, family: str) -> dict[str, bool]:
    """InternLM2's `bias` is that of wqkv and wo; InternLM3's that of o_proj and the MLP, beside a `qkv_bias`."""
    if family == "qwen2":
        return {"qkv_bias": True}
    bias = text.flag("bias", False)
    if family == "internlm2":
        return {"qkv_bias": bias, "out_bias": bias}
    return {"qkv_bias": text.flag("qkv_bias", False), "out_bias": bias, "mlp_bias": bias}


def _bias_fields(d: DecoderConfig) -> dict[str, bool]:
    """The inverse of `_biases`."""
    fields = {} if d.family == "qwen2" else {"bias": d.out_bias}
    fields |= {"qkv_bias": d.qkv_bias} if d.family == "internlm3" else {}
    written = _biases(Fields(fields, "llm_config"), d.family)
    wanted = {"qkv_bias": d.qkv_bias, "out_bias": d.out_bias, "mlp_bias": d.mlp_bias}
    if {"out_bias": False, "mlp_bias": False} | written != wanted:
        raise ValueError(f"a decoder of the family {d.family} cannot have {wanted}: its own code has no such variant")
    return fields
