"""Small checkpoints made without PyTorch: configs, random weights, and abstract trees to read them into."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
from flax.traverse_util import unflatten_dict
from jax.sharding import SingleDeviceSharding
from safetensors.numpy import save_file

from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.conversion.names import parameters
from ivl3_jax.hf_config import to_hf
from ivl3_jax.original_config import to_original

VISION = {
    "300m": VisionConfig(layers=2, width=32, heads=4, mlp=64, image_size=28, patch_size=7),
    "6b": VisionConfig(
        layers=2, width=40, heads=5, mlp=64, image_size=28, patch_size=7, norm="rms_norm", qk_norm=True, qkv_bias=False
    ),
}
DECODER = DecoderConfig(layers=3, width=48, heads=6, kv_heads=2, head_dim=8, mlp=80, vocab=101)


def small_config(style="300m", tied=False, family="qwen2"):
    decoder = dataclasses.replace(DECODER, tie_embeddings=tied, family=family, qkv_bias=family == "qwen2")
    return InternVLConfig(VISION[style], ProjectorConfig(), decoder, image_token_id=100)


def random_tensors(config, dtype=np.float32, seed=0, layout="hf"):
    """Every tensor of a layout by its name."""
    rng = np.random.default_rng(seed)
    return {
        name: rng.standard_normal(parameter.layout.their_shape, np.float32).astype(dtype)
        for parameter in parameters(config, layout)
        for name in parameter.tensors
    }


def write_checkpoint(directory, config, tensors, layout="hf"):
    """Writes a single-file checkpoint with the safetensors library."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(to_hf(config) if layout == "hf" else to_original(config)))
    if layout == "original":  # whose config.json does not name the image token
        (directory / "added_tokens.json").write_text(json.dumps({"<IMG_CONTEXT>": config.image_token_id}))
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    return directory


def abstract(config, dtype=np.float32):
    """The whole of every parameter on one device."""
    place = SingleDeviceSharding(jax.devices()[0])
    shapes = {p.path: jax.ShapeDtypeStruct(p.shape, dtype, sharding=place) for p in parameters(config)}
    return unflatten_dict(shapes, sep="/")


BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def modules(torch, tensors):
    """Modules whose state has these names; matrices are linear layers'."""
    root = torch.nn.Module()
    for name, x in tensors.items():
        *parents, parent, leaf = name.split(".")
        module = root
        for part in parents:
            if part not in module._modules:
                module.register_module(part, torch.nn.Module())
            module = module._modules[part]
        if parent not in module._modules:
            linear = leaf == "weight" and x.ndim == 2
            bias = f"{name.removesuffix('weight')}bias" in tensors
            module.register_module(parent, torch.nn.Linear(*x.shape[::-1], bias) if linear else torch.nn.Module())
        module._modules[parent].register_parameter(leaf, torch.nn.Parameter(torch.from_numpy(x)))
    return root
