"""A tiny checkpoint directory without weights: a trained tokenizer, config.json, generation_config.json."""

import dataclasses
import json

import numpy as np
import pytest

from ivl3_jax.config import DecoderConfig, InternVLConfig, ProjectorConfig, VisionConfig
from ivl3_jax.data import Encoder, Processor, Tokenizer
from ivl3_jax.data.tokenizer_training import train_tokenizer, write_tokenizer_files
from ivl3_jax.hf_config import to_hf
from tests.data.buckets import bucket
from tests.data.corpus import CORPUS

__all__ = ["bucket"]


@pytest.fixture(scope="session")
def trained():
    return train_tokenizer(CORPUS, 420)


@pytest.fixture(scope="session")
def directory(trained, tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    write_tokenizer_files(trained, path)
    vision = VisionConfig(layers=1, width=16, heads=2, mlp=32, image_size=56, patch_size=14)
    decoder = DecoderConfig(layers=1, width=16, heads=2, kv_heads=1, head_dim=8, mlp=32, vocab=trained.get_vocab_size())
    config = InternVLConfig(vision, ProjectorConfig(), decoder, trained.token_to_id("<IMG_CONTEXT>"))
    (path / "config.json").write_text(json.dumps(to_hf(config)))
    (path / "generation_config.json").write_text(json.dumps({"eos_token_id": [trained.token_to_id("<|endoftext|>")]}))
    (path / "preprocessor_config.json").write_text(
        json.dumps({"size": {"height": 56, "width": 56}, "min_patches": 1, "max_patches": 6})
    )
    return path


@pytest.fixture(scope="session")
def tokenizer(directory):
    return Tokenizer.from_directory(directory)


@pytest.fixture(scope="session")
def processor(directory):
    return Processor.from_directory(directory)


@pytest.fixture(scope="session")
def plain(processor):
    """The same without thumbnails and with one tile an image, where counts should be easy to follow."""
    return dataclasses.replace(processor, max_tiles=1)


@pytest.fixture(scope="session")
def encoder(processor):
    return Encoder(processor, tokens=400, tiles=20)


@pytest.fixture
def rng():
    return np.random.default_rng(7)
