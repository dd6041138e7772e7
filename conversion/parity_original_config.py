"""An original config.json as transformers' InternVLConfig: a second reading, apart from the package's own.

It states only what a forward pass needs, and takes a file that the package's own reading has accepted.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from transformers import InternVLConfig

MODEL_TYPE = "internvl_chat"
IMAGE_TOKEN, QWEN_IMAGE_TOKEN = "<IMG_CONTEXT>", 151667
# The last parts of the names of an InternLM decoder's biases.
ATTENTION_BIAS = tuple(f"{name}.bias" for name in ("q_proj", "k_proj", "v_proj", "o_proj", "wqkv", "wo"))
MLP_BIAS = tuple(f"{name}.bias" for name in ("gate_proj", "up_proj", "down_proj", "w1", "w2", "w3"))


def is_original(directory: Path) -> bool:
    """Whether a checkpoint directory's config.json is of the original layout."""
    return _json(directory / "config.json").get("model_type") == MODEL_TYPE


def read_config(directory: Path, tensors: Iterable[str]) -> InternVLConfig:
    """The config of transformers' model for an original directory.

    Args:
        tensors: the names of its tensors. For InternLM they say whether there are biases: Llama's class has them in all
            of an attention's or an MLP's projections, or in none.
    """
    fields = _json(directory / "config.json")
    vision, text = fields["vision_config"], fields["llm_config"]
    side = fields.get("force_image_size") or vision["image_size"]
    merged = round(1 / fields["downsample_ratio"])
    tied = text.get("tie_word_embeddings", False)
    vision_config = {
        "hidden_size": vision["hidden_size"],
        "num_hidden_layers": vision["num_hidden_layers"],
        "num_attention_heads": vision["num_attention_heads"],
        "intermediate_size": vision["intermediate_size"],
        "image_size": [side, side],
        "patch_size": [vision["patch_size"]] * 2,
        "norm_type": vision["norm_type"],
        "layer_norm_eps": vision["layer_norm_eps"],
        "use_qk_norm": vision["qk_normalization"],
        "attention_bias": vision["qkv_bias"],
        "hidden_act": "gelu",
        "use_mean_pooling": True,  # transformers' word for no norm behind the last block
    }
    return InternVLConfig(
        vision_config=vision_config,
        text_config=_text_config(text, list(tensors)) | {"tie_word_embeddings": tied},
        image_token_id=_image_token(directory, fields),
        image_seq_length=(side // vision["patch_size"] // merged) ** 2,
        downsample_ratio=fields["downsample_ratio"],
        vision_feature_layer=fields.get("select_layer", -1),
        vision_feature_select_strategy="default",
        tie_word_embeddings=tied,
    )


def _text_config(text: dict[str, Any], tensors: list[str]) -> dict[str, Any]:
    scaling = text.get("rope_scaling") or {}
    rope = {"rope_type": scaling.get("rope_type", scaling.get("type", "default")), "rope_theta": text["rope_theta"]}
    if "factor" in scaling:
        rope["factor"] = scaling["factor"]
    kind: dict[str, Any] = {"model_type": "qwen2", "use_sliding_window": False}
    if not text["architectures"][0].startswith("Qwen2"):
        decoder = [name for name in tensors if name.startswith("language_model.")]
        biases = (any(name.endswith(ends) for name in decoder) for ends in (ATTENTION_BIAS, MLP_BIAS))
        kind = {"model_type": "llama"} | dict(zip(("attention_bias", "mlp_bias"), biases, strict=True))
    return kind | {
        "hidden_size": text["hidden_size"],
        "num_hidden_layers": text["num_hidden_layers"],
        "num_attention_heads": text["num_attention_heads"],
        "num_key_value_heads": text["num_key_value_heads"],
        "head_dim": text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"],
        "intermediate_size": text["intermediate_size"],
        "vocab_size": text["vocab_size"],
        "rms_norm_eps": text["rms_norm_eps"],
        "max_position_embeddings": text["max_position_embeddings"],
        "rope_parameters": rope,
        "hidden_act": "silu",
    }


def _image_token(directory: Path, fields: dict[str, Any]) -> int:
    """From the tokenizer's files, where the authors keep it, or from this project's own field."""
    added = dict(_json(directory / "added_tokens.json"))
    for token in _json(directory / "tokenizer.json").get("added_tokens", []):
        added.setdefault(token["content"], token["id"])
    for number, token in _json(directory / "tokenizer_config.json").get("added_tokens_decoder", {}).items():
        added.setdefault(token["content"], int(number))
    return added.get(IMAGE_TOKEN, fields.get("img_context_token_id", QWEN_IMAGE_TOKEN))


def _json(file: Path) -> dict[str, Any]:
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
