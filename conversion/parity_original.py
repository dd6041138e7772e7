"""transformers' model filled from an original checkpoint through a second map, written apart from the package's own.

It shares nothing with the rest of the package: the names of tensors, the thirds of the ViT's qkv, the blocks of
InternLM2's wqkv and the meaning of config.json are all stated once more, so that a fault in the first map shows.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedConfig

from ivl3_jax.conversion.parity_original_config import read_config

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"

# Original names to those of transformers' model, the first match counts; what is fused is taken apart in `_tensors`.
RENAMES = tuple(
    (re.compile(f"^{pattern}"), replacement)
    for pattern, replacement in (
        (r"vision_model\.embeddings\.class_embedding$", "model.vision_tower.embeddings.cls_token"),
        (r"vision_model\.embeddings\.position_embedding$", "model.vision_tower.embeddings.position_embeddings"),
        (
            r"vision_model\.embeddings\.patch_embedding\.",
            "model.vision_tower.embeddings.patch_embeddings.projection.",
        ),
        (r"vision_model\.encoder\.layers\.(\d+)\.attn\.proj\.", r"VIT.\1.attention.projection_layer."),
        (r"vision_model\.encoder\.layers\.(\d+)\.attn\.", r"VIT.\1.attention."),
        (r"vision_model\.encoder\.layers\.(\d+)\.norm1\.", r"VIT.\1.layernorm_before."),
        (r"vision_model\.encoder\.layers\.(\d+)\.norm2\.", r"VIT.\1.layernorm_after."),
        (r"vision_model\.encoder\.layers\.(\d+)\.ls(\d)$", r"VIT.\1.lambda_\2"),
        (r"vision_model\.encoder\.layers\.(\d+)\.mlp\.", r"VIT.\1.mlp."),
        (r"mlp1\.0\.", "model.multi_modal_projector.layer_norm."),
        (r"mlp1\.1\.", "model.multi_modal_projector.linear_1."),
        (r"mlp1\.3\.", "model.multi_modal_projector.linear_2."),
        (r"language_model\.(lm_head|output)\.", "lm_head."),
        (r"language_model\.model\.tok_embeddings\.", "LLM.embed_tokens."),
        (r"language_model\.model\.layers\.(\d+)\.attention\.wo\.", r"LLM.layers.\1.self_attn.o_proj."),
        (r"language_model\.model\.layers\.(\d+)\.attention\.", r"LLM.layers.\1.self_attn."),
        (r"language_model\.model\.layers\.(\d+)\.feed_forward\.w1\.", r"LLM.layers.\1.mlp.gate_proj."),
        (r"language_model\.model\.layers\.(\d+)\.feed_forward\.w2\.", r"LLM.layers.\1.mlp.down_proj."),
        (r"language_model\.model\.layers\.(\d+)\.feed_forward\.w3\.", r"LLM.layers.\1.mlp.up_proj."),
        (r"language_model\.model\.layers\.(\d+)\.attention_norm\.", r"LLM.layers.\1.input_layernorm."),
        (r"language_model\.model\.layers\.(\d+)\.ffn_norm\.", r"LLM.layers.\1.post_attention_layernorm."),
        (r"language_model\.model\.", "LLM."),
    )
)
UNUSED = re.compile(r"rotary_emb\.inv_freq$|embeddings\.position_ids$")


def load(directory: Path, dtype: torch.dtype) -> tuple[InternVLForConditionalGeneration, list[str]]:
    """The model of an original checkpoint, with attention written out.

    Args:
        directory: safetensors, one file or shards with an index, of any float dtype.
        dtype: of the model.

    Returns:
        The model, and the names of biases which Llama's class has and the checkpoint has not; these are zeros.

    Raises:
        ValueError: the tensors are not those of the model that config.json describes.
    """
    files = _files(directory)
    config = read_config(directory, files)
    state = {name: tensor.to(dtype) for name, tensor in _tensors(files, config)}
    if config.tie_word_embeddings and "lm_head.weight" in state:
        # A projection in the file that is not the embedding unties, whatever the config says.
        tied = torch.equal(state["lm_head.weight"], state["model.language_model.embed_tokens.weight"])
        config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
        if tied:
            del state["lm_head.weight"]
    zero = _missing_biases(config, state)
    state |= {name: torch.zeros(size, dtype=dtype) for name, size in zero.items()}
    model, info = InternVLForConditionalGeneration.from_pretrained(
        None, config=config, state_dict=state, dtype=dtype, attn_implementation="eager", output_loading_info=True
    )
    missing = sorted(set(info["missing_keys"]) - ({"lm_head.weight"} if config.tie_word_embeddings else set()))
    for names, what in ((missing, "lacks"), (sorted(info["unexpected_keys"]), "has beyond transformers' model")):
        if names:
            raise ValueError(f"{directory}, read through the second map, {what} {len(names)} tensors: {names[:5]}")
    return model, sorted(zero)


def _files(directory: Path) -> dict[str, Path]:
    """The file of each tensor."""
    index = directory / INDEX
    if index.is_file():
        return {name: directory / file for name, file in json.loads(index.read_text())["weight_map"].items()}
    with safe_open(directory / SINGLE, "pt") as opened:
        return dict.fromkeys(opened.keys(), directory / SINGLE)


def _tensors(files: dict[str, Path], config: InternVLConfig) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor under transformers' name, fused ones taken apart."""
    for file in sorted(set(files.values())):
        with safe_open(file, "pt") as opened:
            for name in (name for name, holder in files.items() if holder == file and not UNUSED.search(name)):
                tensor = opened.get_tensor(name)
                if ".attn.qkv." in name:
                    for letter, third in zip("qkv", torch.chunk(tensor, 3), strict=True):
                        yield _renamed(name.replace("attn.qkv", f"attn.{letter}_proj")), third
                elif ".attention.wqkv." in name:
                    for letter, rows in zip("qkv", _ungrouped(tensor, config.text_config), strict=True):
                        yield _renamed(name.replace("wqkv", f"{letter}_proj")), rows
                else:
                    yield _renamed(name), tensor


def _ungrouped(wqkv: torch.Tensor, text: PreTrainedConfig) -> tuple[torch.Tensor, ...]:
    """q, k and v out of InternLM2's fused rows: for each kv head its query heads, then its key, then its value."""
    size, queries = text.head_dim, text.num_attention_heads // text.num_key_value_heads
    q, k, v = [], [], []
    for head in range(text.num_key_value_heads):
        start = head * (queries + 2) * size
        key = start + queries * size
        q.append(wqkv[start:key])
        k.append(wqkv[key : key + size])
        v.append(wqkv[key + size : key + 2 * size])
    return torch.cat(q), torch.cat(k), torch.cat(v)


def _renamed(name: str) -> str:
    for pattern, replacement in RENAMES:
        if pattern.search(name):
            name = pattern.sub(replacement, name)
            break
    return name.replace("VIT.", "model.vision_tower.encoder.layer.").replace("LLM.", "model.language_model.")


def _missing_biases(config: InternVLConfig, state: dict[str, torch.Tensor]) -> dict[str, int]:
    """The biases, with their lengths, of an InternLM decoder in Llama's class which its own class has not."""
    text = config.text_config
    if text.model_type != "llama":
        return {}
    wanted = [f"self_attn.{name}_proj" for name in "qkvo"] if text.attention_bias else []
    wanted += [f"mlp.{name}_proj" for name in ("gate", "up", "down")] if text.mlp_bias else []
    names = [f"model.language_model.layers.{i}.{part}" for i in range(text.num_hidden_layers) for part in wanted]
    return {f"{name}.bias": len(state[f"{name}.weight"]) for name in names if f"{name}.bias" not in state}
