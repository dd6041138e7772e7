"""InternLM decoders from original checkpoints against a decoder written out in float64 numpy from the facts alone."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import ivl3_jax
from ivl3_jax.batch import empty_batch
from ivl3_jax.config import RopeScaling
from ivl3_jax.conversion.convert import convert
from ivl3_jax.data import ChatTemplate, Message, Processor, Tokenizer
from ivl3_jax.data.records import Sample
from ivl3_jax.hf_config import from_hf, read_config, to_hf
from ivl3_jax.original_config import to_original
from tests.conversion.checkpoints import random_tensors, small_config, write_checkpoint
from tests.conversion.test_round_trip import assert_same
from tests.data.test_sentencepiece import train
from tests.models.small import relative

VARIANTS = [
    ("internlm2", {}),
    ("internlm2", {"qkv_bias": True, "out_bias": True}),
    ("internlm3", {}),
    ("internlm3", {"qkv_bias": True}),
    ("internlm3", {"qkv_bias": True, "out_bias": True, "mlp_bias": True}),
]
TRAINED = 24


def variant(family, biases):
    config = small_config(family=family)
    scaling = RopeScaling("dynamic", 6.0)
    decoder = dataclasses.replace(config.decoder, max_positions=TRAINED, rope_scaling=scaling, rope_theta=5e4, **biases)
    return dataclasses.replace(config, decoder=decoder)


def checkpoint(directory, config):
    tensors = {name: 0.2 * x for name, x in random_tensors(config, layout="original").items()}
    return tensors, write_checkpoint(directory, config, tensors, "original")


def logits(t, tokens, d):
    """[S, V] in float64, from the tensors of an original checkpoint."""
    t = {name.removeprefix("language_model."): x.astype(np.float64) for name, x in t.items()}
    fused, G, S = d.family == "internlm2", d.heads // d.kv_heads, len(tokens)
    theta = d.rope_theta
    if d.max_positions < S:
        stretch = d.rope_scaling.factor * S / d.max_positions - (d.rope_scaling.factor - 1)
        theta *= stretch ** (d.head_dim / (d.head_dim - 2))
    angles = np.arange(S)[:, None] * theta ** (-np.arange(0, d.head_dim, 2) / d.head_dim)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]

    def rotate(x):
        a, b = np.split(x, 2, axis=-1)
        return np.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1)

    def norm(x, name):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + d.norm_eps) * t[f"{name}.weight"]

    def linear(x, name):
        return x @ t[f"{name}.weight"].T + t.get(f"{name}.bias", 0)

    x = t["model.tok_embeddings.weight" if fused else "model.embed_tokens.weight"][tokens]
    for i in range(d.layers):
        layer = f"model.layers.{i}."
        h = norm(x, layer + ("attention_norm" if fused else "input_layernorm"))
        if fused:
            qkv = linear(h, layer + "attention.wqkv").reshape(S, d.kv_heads, G + 2, d.head_dim)
            q, k, v = qkv[:, :, :G].reshape(S, d.heads, d.head_dim), qkv[:, :, G], qkv[:, :, G + 1]
        else:
            q, k, v = (linear(h, f"{layer}self_attn.{n}_proj").reshape(S, -1, d.head_dim) for n in "qkv")
        q, k = rotate(q), rotate(k)
        out = np.empty_like(q)
        for head in range(d.heads):
            scores = q[:, head] @ k[:, head // G].T / np.sqrt(d.head_dim)
            scores = np.where(np.tri(S, dtype=bool), scores, -np.inf)
            p = np.exp(scores - scores.max(-1, keepdims=True))
            out[:, head] = p / p.sum(-1, keepdims=True) @ v[:, head // G]
        x = x + linear(out.reshape(S, -1), layer + ("attention.wo" if fused else "self_attn.o_proj"))
        h = norm(x, layer + ("ffn_norm" if fused else "post_attention_layernorm"))
        names = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
        gate, up, down = names if fused else ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        g = linear(h, layer + gate)
        x = x + linear(g / (1 + np.exp(-g)) * linear(h, layer + up), layer + down)
    return linear(norm(x, "model.norm"), "output" if fused else "lm_head")


@pytest.mark.parametrize("length", [TRAINED, 3 * TRAINED])
@pytest.mark.parametrize(("family", "biases"), VARIANTS)
def test_equal_in_float64(family, biases, length, tmp_path):
    config = variant(family, biases)
    tensors, directory = checkpoint(tmp_path, config)
    assert read_config(directory) == config
    batch = empty_batch(1, length, 0, 1, config.vision.image_size)
    tokens = np.random.default_rng(4).integers(0, config.decoder.vocab, length)
    batch.tokens[:], batch.segment_ids[:], batch.positions[:] = tokens, 1, np.arange(length)
    with jax.enable_x64(True):
        ours = np.asarray(ivl3_jax.load(directory, "float64")(batch))[0]
    assert relative(ours, logits(tensors, tokens, config.decoder)) < 1e-12


@pytest.mark.parametrize(("family", "biases"), VARIANTS)
def test_there_and_back(family, biases, tmp_path):
    config = variant(family, biases)
    _, source = checkpoint(tmp_path / "in", config)
    if config.decoder.qkv_bias != config.decoder.out_bias:
        with pytest.raises(ValueError, match="has no `-hf` form"):
            convert(source, tmp_path / "hf", layout="hf")
        return
    convert(source, tmp_path / "hf", layout="hf")
    convert(tmp_path / "hf", tmp_path / "back", layout="original")
    assert_same(*(load_file(tmp_path / name / "model.safetensors") for name in ("back", "in")))
    assert read_config(tmp_path / "back") == read_config(tmp_path / "hf") == config


def test_a_file_of_transformers_does_not_say_which_internlm():
    """InternLM2, whose names the published checkpoints have, but where only InternLM3 can have the biases."""
    for biases, family in (
        ({}, "internlm2"),
        ({"qkv_bias": True, "out_bias": True}, "internlm2"),
        ({"qkv_bias": True, "out_bias": True, "mlp_bias": True}, "internlm3"),
    ):
        config = variant("internlm3", biases)
        fields = to_hf(config)
        assert from_hf(fields) == config
        assert fields["text_config"].pop("internlm_family") == "internlm3"
        assert from_hf(fields).decoder.family == family
        assert to_original(from_hf(fields))["llm_config"]["model_type"] == family


def test_transformers_passes_over_the_family(transformers, tmp_path):
    config = variant("internlm3", {})
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    assert read_config(tmp_path / "theirs") == config


def test_biases_that_no_code_has():
    config = variant("internlm2", {"qkv_bias": True})
    with pytest.raises(ValueError, match="its own code has no such variant"):
        to_original(config)
    qwen = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, family="qwen2", mlp_bias=True))
    with pytest.raises(ValueError, match="has no `-hf` form"):
        to_hf(qwen)


def test_a_sentencepiece_tokenizer_opens_in_transformers(tmp_path):
    transformers = pytest.importorskip("transformers")
    source = train(tmp_path / "original")
    tokenizer = Tokenizer.from_directory(source)
    config = small_config(family="internlm2")
    decoder = dataclasses.replace(config.decoder, vocab=len(tokenizer) + 3)
    config = dataclasses.replace(config, decoder=decoder, image_token_id=tokenizer.id("<IMG_CONTEXT>"))
    write_checkpoint(source, config, random_tensors(config, layout="original"), "original")
    (source / "added_tokens.json").unlink()
    settings = json.loads((source / "tokenizer_config.json").read_text())
    settings |= {
        "tokenizer_class": "InternLM3Tokenizer",
        "auto_map": {"AutoTokenizer": ["remote.InternLM3Tokenizer", None]},
    }
    (source / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(source, tmp_path / "hf", layout="hf")
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    again = Processor.from_directory(tmp_path / "hf")
    assert again.tokenizer.where.endswith("tokenizer.json")
    assert again.tokenizer.bos_id == tokenizer.bos_id == 1
    text = ChatTemplate().prompt([Message("user", "How many digits?")])
    expected = Processor.from_directory(source).encode_prompt(Sample((Message("user", "How many digits?"),))).tokens
    assert theirs(text)["input_ids"] == expected.tolist() == [1, *tokenizer.encode(text)]
    assert theirs.eos_token == "<|im_end|>"
    assert theirs.context_image_token_id == config.image_token_id
