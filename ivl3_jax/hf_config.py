"""A checkpoint's config.json read into an InternVLConfig; that of the `-hf` layout also written from one."""

import json
from pathlib import Path
from typing import Any

from ivl3_jax.config import INTERNLM, DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.config_fields import Fields
from ivl3_jax.original_config import MODEL_TYPE as ORIGINAL
from ivl3_jax.original_config import from_original, image_token_id
from ivl3_jax.written_fields import source_fields, token_ids

UNFINISHED = "unfinished.json"  # a directory that holds it is not complete
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # of peft, without the model that they adapt
FAMILY = "internlm_family"  # our own field, which transformers passes over: whose class it is in the original layout


def read_config(directory: str | Path) -> InternVLConfig:
    """Reads `config.json` of a checkpoint directory, in the `-hf` or the original layout.

    Raises:
        NotADirectoryError: it is a file. FileNotFoundError: no such directory, or no config.json there; a peft adapter.
        ValueError: not JSON, or a field is missing, unsupported or contradictory.
    """
    fields, file = config_fields(directory)
    if isinstance(fields, dict) and fields.get("model_type") == ORIGINAL:
        return from_original(fields, image_token_id(directory), file)
    return from_hf(fields, file)


def config_fields(directory: str | Path) -> tuple[Any, Path]:
    """What `config.json` of a checkpoint directory of any kind holds, and that file.

    Raises:
        NotADirectoryError, FileNotFoundError: as `read_config`. ValueError: not JSON, or the directory is unfinished.
    """
    file = Path(directory) / "config.json"
    if file.parent.is_file():
        raise NotADirectoryError(f"{directory} is not a directory; a checkpoint is one, with config.json in it")
    if not file.parent.is_dir():
        raise FileNotFoundError(f"there is no directory {directory}; a checkpoint is one, with config.json in it")
    if (file.parent / UNFINISHED).is_file():
        raise ValueError(
            f"{directory} is unfinished: writing it was interrupted; repeat the command that wrote it, or remove it"
        )
    if not file.is_file():
        refuse_adapter(file.parent)
        raise FileNotFoundError(f"{file} does not exist; a checkpoint directory holds config.json and safetensors")
    try:
        return json.loads(file.read_bytes()), file
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None


def refuse_adapter(directory: Path) -> None:
    """For a directory that lacks a model.

    Raises:
        FileNotFoundError: it holds a peft adapter; the message says how that becomes a model.
    """
    peft = f"peft.PeftModel.from_pretrained(BASE, '{directory}').merge_and_unload().save_pretrained(DIRECTORY)"
    merging = {
        ADAPTERS[0]: f"ivl3_jax.save(ivl3_jax.load_adapter(ivl3_jax.load(BASE), '{directory}'), DIRECTORY)",
        ADAPTERS[1]: f"{peft}, with BASE opened by transformers",
    }
    for name, how in merging.items():
        if (directory / name).is_file():
            raise FileNotFoundError(
                f"{directory} holds a peft adapter ({name}) without the model that it adapts; merge it into BASE, the "
                f"one that it was trained on: {how}"
            )


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
    tied = (top if "tie_word_embeddings" in fields else text).flag("tie_word_embeddings")
    qwen = text.get("model_type") == "qwen2"
    if qwen:
        text.expect("attention_bias", (False,), absent=False)
        text.expect("mlp_bias", (False,), absent=False)
    vision_config: dict[str, Any] = {
        "layers": vision.layers(),
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
    bias, mlp_bias = text.flag("attention_bias", False), text.flag("mlp_bias", False)
    # Without a word of it InternLM2, whose class the published checkpoints have, but for biases that it cannot have.
    internlm = "internlm3" if mlp_bias else "internlm2"
    text.expect(FAMILY, INTERNLM, absent=internlm)
    decoder_config = text.decoder() | {
        "qkv_bias": qwen or bias,
        "out_bias": bias,
        "mlp_bias": mlp_bias,
        "tie_embeddings": tied,
        "family": "qwen2" if qwen else text.get(FAMILY, internlm),
    }
    image_token_id, select_layer = top.whole("image_token_id", 0), top.whole("vision_feature_layer", None)
    downsample = top.downsample()
    try:
        return InternVLConfig(
            VisionConfig(**vision_config),
            ProjectorConfig(downsample=downsample),
            DecoderConfig(**decoder_config),
            image_token_id,
            select_layer,
        )
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None


def to_hf(config: InternVLConfig, source: str | Path | None = None) -> dict[str, Any]:
    """The fields of an `-hf` config.json that transformers (4.52 and later) reads; inverse of `from_hf`.

    Args:
        source: a checkpoint directory in either layout, whose ids of special tokens are kept.

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
    top_ids, text_ids = token_ids(source_fields(source))
    if qwen:
        of_class: dict[str, Any] = {"use_sliding_window": False}
    else:
        of_class = {"attention_bias": d.qkv_bias, "mlp_bias": d.mlp_bias, FAMILY: d.family}
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
        **top_ids,
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
            **of_class,
            **text_ids,
        },
    }
