"""A ViT and a language model as they are published alone, small, their values random."""

import dataclasses
import json

import ml_dtypes
import numpy as np
from safetensors.numpy import save_file
from tokenizers import AddedToken, models, pre_tokenizers, trainers

from ivl3_jax.config import RopeScaling
from ivl3_jax.conversion.names import parameters_alone
from ivl3_jax.data.tokenizer_files import byte_level_bpe
from ivl3_jax.original_config import to_original
from tests.conversion.checkpoints import small_config
from tests.data.test_sentencepiece import train

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
OWN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


def random_alone(config, component, dtype=BFLOAT16, seed=0):
    """Every tensor of a component by its name where it is published alone."""
    rng = np.random.default_rng(seed)
    return {
        name: (0.2 * rng.standard_normal(parameter.layout.their_shape)).astype(dtype)
        for parameter in parameters_alone(config, component)
        for name in parameter.tensors
    }


def write(directory, fields, tensors, shards=1):
    """config.json, and the tensors in one file or in several with an index."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(fields))
    if shards == 1:
        save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        return directory
    names = sorted(tensors)
    weight_map = {}
    for number in range(shards):
        file = f"model-{number + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[number::shards]}
        save_file(part, directory / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, file)
    (directory / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return directory


def write_vit(directory, style="300m", layers=2, shards=1):
    """Its tensors, and the directory."""
    config = small_config(style)
    config = dataclasses.replace(config, vision=dataclasses.replace(config.vision, layers=layers))
    tensors = random_alone(config, "vision", seed=1)
    return tensors, write(
        directory, to_original(config)["vision_config"] | {"torch_dtype": "bfloat16"}, tensors, shards
    )


def write_qwen_tokenizer(directory):
    """A byte-level BPE with Qwen's own special tokens alone; the number of its ids."""
    tokenizer = byte_level_bpe(models.BPE())
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(["How many digits are there? There are 3 digits in the image."] * 4, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in OWN])
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "add_bos_token": False,
        "bos_token": None,
        "eos_token": OWN[0],
        "pad_token": OWN[0],
        "chat_template": "{{ a template of Qwen's }}",
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(settings))
    end = tokenizer.token_to_id(OWN[0])
    (directory / "generation_config.json").write_text(json.dumps({"bos_token_id": end, "eos_token_id": end}))
    return tokenizer.get_vocab_size()


def write_internlm3(directory):
    """Its tensors, and the directory, with a sentencepiece tokenizer; the table is longer than that."""
    config = small_config(family="internlm3")
    scaling = RopeScaling("dynamic", 6.0)
    decoder = dataclasses.replace(config.decoder, vocab=500, rope_scaling=scaling, rope_theta=5e7)
    config = dataclasses.replace(config, decoder=decoder)
    tensors = random_alone(config, "decoder", np.float32, seed=2)
    write(train(directory, user_defined_symbols=["[UNUSED_1]", "[UNUSED_2]"]), {}, tensors)
    settings = json.loads((directory / "tokenizer_config.json").read_text())
    own = {n: token for n, token in settings["added_tokens_decoder"].items() if token["content"] in OWN}
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": own}))
    (directory / "config.json").write_text(json.dumps(to_original(config)["llm_config"] | {"eos_token_id": 2}))
    return tensors, directory
