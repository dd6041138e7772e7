"""Sizes that contradict themselves are refused where they are written."""

import dataclasses

import pytest

from ivl3_jax.config import PRESETS, DecoderConfig, InternVLConfig, ProjectorConfig, RopeScaling, VisionConfig

VISION = VisionConfig(layers=2, width=32, heads=4, mlp=64, image_size=56, patch_size=14)
DECODER = DecoderConfig(layers=2, width=32, heads=4, kv_heads=2, head_dim=8, mlp=64, vocab=100)
CONFIG = InternVLConfig(VISION, ProjectorConfig(), DECODER, image_token_id=99)


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        (VISION, {"layers": 0}, "VisionConfig.layers is 0; it must be a positive number"),
        (VISION, {"width": "wide"}, "VisionConfig.width is 'wide'; it must be a positive number"),
        (VISION, {"heads": True}, "VisionConfig.heads is True; it must be a positive number"),
        (VISION, {"heads": 5}, "VisionConfig.width is 32; it must be a multiple of heads, which is 5"),
        (VISION, {"image_size": 60}, "VisionConfig.image_size is 60; it must be a multiple of patch_size, which is 14"),
        (VISION, {"norm": "batch"}, "VisionConfig.norm is 'batch'; it must be one of layer_norm, rms_norm"),
        (VISION, {"drop_path": 1}, "VisionConfig.drop_path is 1; it must be at least 0 and below 1"),
        (VISION, {"norm_eps": 0}, "VisionConfig.norm_eps is 0; it must be a positive number"),
        (DECODER, {"kv_heads": 3}, "DecoderConfig.heads is 4; it must be a multiple of kv_heads, which is 3"),
        (DECODER, {"head_dim": 7}, "DecoderConfig.head_dim is 7; rotary embeddings need an even number"),
        (DECODER, {"vocab": -1}, "DecoderConfig.vocab is -1; it must be a positive number"),
        (RopeScaling(), {"type": "yarn"}, "RopeScaling.type is 'yarn'; it must be one of default, dynamic"),
        (RopeScaling(), {"factor": 0}, "RopeScaling.factor is 0"),
        (ProjectorConfig(), {"downsample": 0}, "ProjectorConfig.downsample is 0"),
        (CONFIG, {"projector": ProjectorConfig(3)}, "a tile has 4 patches a side .* ProjectorConfig.downsample 3 must"),
        (CONFIG, {"select_layer": 3}, r"select_layer is 3; with 2 ViT layers it must lie in -3\.\.2"),
    ],
)
def test_refused(part, fields, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(part, **fields)


def test_derived_sizes():
    assert (VISION.head_dim, VISION.grid, VISION.patches, VISION.positions) == (8, 4, 16, 17)
    assert CONFIG.tile_tokens == 4


def test_configs_are_values():
    assert len({InternVLConfig.preset(size) for size in PRESETS}) == len(PRESETS) == 7
    assert InternVLConfig.preset("InternVL3-1B") == InternVLConfig.preset("InternVL3-1B")
    with pytest.raises(dataclasses.FrozenInstanceError):
        CONFIG.select_layer = 0
