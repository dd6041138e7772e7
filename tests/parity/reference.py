"""Tiny random checkpoints of the PyTorch reference, in which every parameter matters."""

import atexit
import json
import shutil
import tempfile
from functools import cache
from pathlib import Path

from ivl3_jax.conversion.companions import processor_files
from ivl3_jax.data.tokenizer_training import train_tokenizer, write_tokenizer_files
from ivl3_jax.hf_config import read_config

CORPUS = [
    "What is written here? The number 1729, and below it a word.",
    "How many digits are there in Image-1 and in Image-2?\nThere are seven of them, it's easy to see.",
]

STYLES = {
    "300m": {
        "hidden_size": 64,
        "num_attention_heads": 4,
        "intermediate_size": 160,
        "norm_type": "layer_norm",
        "use_qk_norm": False,
        "attention_bias": True,
        "patch_size": [7, 7],
    },
    "6b": {
        "hidden_size": 80,
        "num_attention_heads": 5,
        "intermediate_size": 192,
        "norm_type": "rms_norm",
        "use_qk_norm": True,
        "attention_bias": False,
        "patch_size": [14, 14],
    },
}

DECODERS = {
    "qwen2": {"model_type": "qwen2", "max_position_embeddings": 4096, "rope_theta": 1e6},
    # InternLM3 as the `-hf` layout has it. Prompts of the tests are longer than its trained length.
    "llama": {
        "model_type": "llama",
        "max_position_embeddings": 200,
        "rope_parameters": {"rope_type": "dynamic", "rope_theta": 5e7, "factor": 6.0},
        "attention_bias": False,
        "mlp_bias": False,
    },
}


@cache
def tiny(
    style: str = "300m", tied: bool = False, seed: int = 0, dtype: str = "float32", decoder: str = "qwen2"
) -> Path:
    """A checkpoint directory as transformers writes it, with tokenizer and processor files; made once a process.

    Tiles have 56 pixels a side; one is 16 visual tokens in style `300m` and 4 in style `6b`.

    Args:
        style: of the ViT, `300m` (LayerNorm, biases) or `6b` (RMSNorm, qk-norm, five heads).
        tied: whether the output projection is the embedding.
        seed: of all weights.
        dtype: of the weights in the file.
        decoder: a key of `DECODERS`.
    """
    import torch
    from transformers import InternVLConfig, InternVLForConditionalGeneration

    directory = Path(tempfile.mkdtemp(prefix=f"tiny-{style}-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    tokenizer = train_tokenizer(CORPUS * 4, 400)
    grid = 56 // STYLES[style]["patch_size"][0]
    config = InternVLConfig(
        vision_config={
            **STYLES[style],
            "num_hidden_layers": 3,
            "image_size": [56, 56],
            "layer_norm_eps": 1e-6,
        },
        text_config={
            **DECODERS[decoder],
            "hidden_size": 96,
            "num_hidden_layers": 3,
            "num_attention_heads": 6,
            "num_key_value_heads": 2,
            "head_dim": 16,
            "intermediate_size": 224,
            "vocab_size": 600,
            "rms_norm_eps": 1e-6,
            "tie_word_embeddings": tied,
        },
        image_token_id=tokenizer.token_to_id("<IMG_CONTEXT>"),
        image_seq_length=(grid // 2) ** 2,
        tie_word_embeddings=tied,
    )
    model = InternVLForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_random(name, parameter, generator))
    model.to(getattr(torch, dtype)).save_pretrained(directory)
    write_tokenizer_files(tokenizer, directory)
    for name, content in processor_files(read_config(directory), 1, 4).items():
        (directory / name).write_text(json.dumps(content))
    eos = [tokenizer.token_to_id("<|im_end|>")]
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    return directory


def _random(name, parameter, generator):
    """Values that keep activations near one, and are neither zero nor one anywhere."""
    import torch

    noise = torch.randn(parameter.shape, generator=generator)
    if "norm" in name and name.endswith("weight"):
        return 1 + 0.2 * noise
    if "lambda" in name:
        return 0.5 + 0.1 * noise
    if name.endswith("bias"):
        return 0.1 * noise
    if "embed_tokens" in name or "embeddings.cls" in name or "position" in name:
        return 0.3 * noise
    return noise * parameter[0].numel() ** -0.5
