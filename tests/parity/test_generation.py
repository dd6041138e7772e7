"""Greedy answers are those of transformers, in a batch of prompts of unequal length with several images."""

import numpy as np
import pytest

from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.hf_config import read_config
from ivl3_jax.inference.engine import Engine
from tests.parity.reference import tiny

parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)

NEW = 32
PROMPTS = [(520, (2, 1)), (90, (1, 1, 1)), (33, ())]  # text tokens, tiles of each image


def random_prompt(config, rng, text, images):
    tokens = rng.integers(0, 300, text)
    for count in images:
        at = rng.integers(1, text)
        tokens = np.insert(tokens, at, [config.image_token_id] * (count * config.tile_tokens))
    visual = tokens == config.image_token_id
    n, size = len(tokens), config.vision.image_size
    return Encoded(
        tokens=tokens.astype(np.int32),
        labels=np.full(n, -100, np.int32),
        supervised=np.zeros(n, bool),
        tiles=rng.integers(0, 256, (sum(images), size, size, 3)).astype(np.uint8),
        visual_index=np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32),
        positions=np.arange(n, dtype=np.float32),
    )


def their_answers(directory, prompts, torch):
    model = parity_reference.load_reference(directory)
    width = max(len(prompt) for prompt in prompts)
    tokens, mask = np.zeros((len(prompts), width), np.int64), np.zeros((len(prompts), width), np.int64)
    for row, prompt in enumerate(prompts):
        tokens[row, width - len(prompt) :], mask[row, width - len(prompt) :] = prompt.tokens, 1
    pixels = np.concatenate([prompt.tiles for prompt in prompts]).astype(np.float32) / 255
    pixels = (pixels - np.float32(parity_reference.MEAN)) / np.float32(parity_reference.STD)
    model.generation_config.eos_token_id = None
    answers = model.generate(
        input_ids=torch.from_numpy(tokens),
        attention_mask=torch.from_numpy(mask),
        pixel_values=torch.from_numpy(pixels.transpose(0, 3, 1, 2).copy()),
        max_new_tokens=NEW,
        do_sample=False,
        pad_token_id=0,
    )
    return answers[:, width:].tolist()


@pytest.mark.parametrize("style", ["300m", pytest.param("6b", marks=pytest.mark.long)])
def test_greedy_answers(style, torch):
    directory = tiny(style)
    rng = np.random.default_rng(3)
    prompts = [random_prompt(read_config(directory), rng, *sizes) for sizes in PROMPTS]
    ours = Engine(load(directory)).generate(prompts, NEW, stop=())
    assert [len(answer) for answer in ours] == [NEW] * len(prompts)
    assert len({token for answer in ours for token in answer}) > 10  # not one token over and over
    assert ours == their_answers(directory, prompts, torch)


def test_greedy_answers_beyond_the_trained_length(torch):
    """Dynamic NTK while the answer grows: keys keep the frequencies of the length at which they were computed."""
    directory = tiny("300m", decoder="llama")
    prompt = random_prompt(read_config(directory), np.random.default_rng(5), 150, (1, 1))
    assert len(prompt) < 200 < len(prompt) + NEW
    longer = random_prompt(read_config(directory), np.random.default_rng(6), 300, (2,))
    for one in (prompt, longer):
        assert Engine(load(directory)).generate([one], NEW, stop=()) == their_answers(directory, [one], torch)
