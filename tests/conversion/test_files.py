"""What is said about broken, incomplete and strange checkpoints."""

import dataclasses
import json

import numpy as np
import pytest
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ivl3_jax.conversion.reader import read_params, resolve_tying
from ivl3_jax.conversion.safetensors_file import SafetensorsDirectory
from ivl3_jax.hf_config import read_config
from tests.conversion.checkpoints import abstract, random_tensors, small_config, write_checkpoint

NAME = "model.language_model.layers.1.mlp.up_proj.weight"


@pytest.fixture
def config():
    return small_config()


@pytest.fixture
def tensors(config):
    return random_tensors(config)


@pytest.fixture
def sharded(config, tensors, tmp_path):
    """Two shards with an index, tensors dealt out in turn."""
    write_checkpoint(tmp_path, config, tensors)
    (tmp_path / "model.safetensors").unlink()
    weight_map = {}
    for i in range(2):
        shard = f"model-0000{i + 1}-of-00002.safetensors"
        part = dict(list(tensors.items())[i::2])
        save_file(part, tmp_path / shard)
        weight_map |= dict.fromkeys(part, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return tmp_path


def complaint(directory, config, error=ValueError):
    with pytest.raises(error) as caught:
        read_params(directory, abstract(config), config)
    return str(caught.value)


def test_missing_tensor(config, tensors, tmp_path):
    del tensors[NAME]
    message = complaint(write_checkpoint(tmp_path, config, tensors), config)
    assert NAME in message and "Missing tensors, 1: " in message and str(tmp_path) in message


@pytest.mark.parametrize(
    ("layout", "head", "field"),
    [
        ("hf", "lm_head.weight", "tie_word_embeddings"),
        ("original", "language_model.lm_head.weight", "llm_config.tie_word_embeddings"),
    ],
)
def test_a_missing_head_alone_hints_at_tying(config, layout, head, field, tmp_path):
    tensors = random_tensors(config, layout=layout)
    del tensors[head]
    message = complaint(write_checkpoint(tmp_path, config, tensors, layout), config)
    assert f"set {field} to true in config.json; else the weights are not whole: a shard was lost" in message
    del tensors["mlp1.0.bias" if layout == "original" else NAME]
    message = complaint(write_checkpoint(tmp_path, config, tensors, layout), config)
    assert "Missing tensors, 2: " in message and head in message and "tie_word" not in message


def test_surplus_tensor(config, tensors, tmp_path):
    tensors["model.vision_tower.layernorm.weight"] = np.ones(4, np.float32)
    message = complaint(write_checkpoint(tmp_path, config, tensors), config)
    assert "Tensors without a place in the model, 1: model.vision_tower.layernorm.weight" in message


def test_harmless_surplus_is_ignored(config, tensors, tmp_path):
    tensors["model.language_model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    tensors["model.vision_tower.embeddings.mask_token"] = np.ones((1, 1, 32), np.float32)
    tensors["model.vision_tower.embeddings.position_ids"] = np.ones((1, 17), np.int64)
    read_params(write_checkpoint(tmp_path, config, tensors), abstract(config), config)


def test_same_tensor_twice(config, tensors, tmp_path):
    tensors["language_model.lm_head.weight"] = tensors["lm_head.weight"]
    message = complaint(write_checkpoint(tmp_path, config, tensors), config)
    assert "two names: " in message and "language_model.lm_head.weight" in message


def test_misshapen_tensor(config, tensors, tmp_path):
    tensors[NAME] = np.ascontiguousarray(tensors[NAME].T)
    message = complaint(write_checkpoint(tmp_path, config, tensors), config)
    assert f"tensor {NAME} has shape [48, 80]; by config.json it is [80, 48]" in message
    assert "model.safetensors" in message


def test_unsupported_dtype(config, tensors, tmp_path):
    tensors[NAME] = tensors[NAME].astype(np.int8)
    message = complaint(write_checkpoint(tmp_path, config, tensors), config)
    assert f"tensor {NAME} has dtype I8; supported: F64, F32, F16, BF16" in message


@pytest.mark.parametrize("keep", [0, 5, 30, 100_000, -1])
def test_truncated_file(config, tensors, tmp_path, keep):
    file = write_checkpoint(tmp_path, config, tensors) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:keep])
    message = complaint(tmp_path, config)
    assert "truncated" in message and str(file) in message


def test_header_that_is_not_json(config, tensors, tmp_path):
    file = write_checkpoint(tmp_path, config, tensors) / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[8:12] = b"\xff}{\x00"
    file.write_bytes(content)
    message = complaint(tmp_path, config)
    assert f"{file}: corrupt" in message and "JSON" in message


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"dtype": "F32", "shape": [2]}, "expected dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": [-2], "data_offsets": [0, 8]}, "expected dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": 2, "data_offsets": [0, 8]}, "expected dtype, shape and data_offsets"),
        ("F32", "expected dtype, shape and data_offsets"),
        ({"dtype": "F32", "shape": [3], "data_offsets": [0, 8]}, "has 8 bytes instead of 12"),
        ({"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}, "truncated, tensor x ends at byte"),
    ],
)
def test_corrupt_entry(config, tmp_path, fields, said):
    header = json.dumps({"x": fields}).encode()
    (tmp_path / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    message = complaint(tmp_path, config)
    assert "tensor x" in message and said in message


@pytest.mark.parametrize(
    ("offsets", "size", "said"),
    [
        ({"x": [0, 8], "y": [4, 12]}, 12, "tensor y shares bytes with x: its bytes begin at 4 instead of 8"),
        ({"x": [0, 8], "y": [0, 8]}, 8, "tensor y shares bytes with x"),
        ({"x": [0, 8], "y": [12, 20]}, 20, "tensor y leaves a gap behind x: its bytes begin at 12 instead of 8"),
        ({"y": [4, 12]}, 12, "tensor y leaves a gap behind the header"),
        ({"y": [8, 16], "x": [0, 8]}, 20, "4 bytes follow the last tensor, y"),
    ],
)
def test_bytes_that_belong_to_no_tensor_or_to_two(config, tmp_path, offsets, size, said):
    """The library refuses them too."""
    fields = {name: {"dtype": "F32", "shape": [2], "data_offsets": at} for name, at in offsets.items()}
    header = json.dumps(fields).encode()
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(size))
    with pytest.raises(SafetensorError):
        load_file(file)
    message = complaint(tmp_path, config)
    assert said in message and str(file) in message


def test_empty_tensors_share_nothing(tmp_path):
    save_file({"a": np.zeros((0, 3)), "b": np.zeros(2), "c": np.zeros(0)}, tmp_path / "model.safetensors")
    assert len(SafetensorsDirectory(tmp_path).tensors) == 3


def test_git_lfs_pointer(config, tmp_path):
    (tmp_path / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    assert "git lfs pull" in complaint(tmp_path, config)


def test_shards_are_read(config, tensors, sharded):
    params = read_params(sharded, abstract(config), config)
    np.testing.assert_array_equal(params["decoder"]["layers"]["mlp"]["up"]["kernel"][1], tensors[NAME].T)


def test_missing_shard(config, sharded):
    (sharded / "model-00002-of-00002.safetensors").unlink()
    message = complaint(sharded, config, FileNotFoundError)
    assert "names 2 files; missing: model-00002-of-00002.safetensors" in message


def test_shard_that_lacks_a_tensor(config, sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    other = {"1": "2", "2": "1"}[content["weight_map"][NAME][10]]
    content["weight_map"][NAME] = f"model-0000{other}-of-00002.safetensors"
    index.write_text(json.dumps(content))
    message = complaint(sharded, config)
    assert (
        str(index) in message and f"model-0000{other}-of-00002.safetensors holds {NAME}, but that file does" in message
    )


def test_shard_with_a_tensor_that_the_index_lacks(config, sharded):
    index = sharded / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    shard = content["weight_map"].pop(NAME)
    index.write_text(json.dumps(content))
    assert f"{index}: weight_map lacks {NAME}, which {shard} holds" in complaint(sharded, config)


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"weight_map": {"x": 3}}', '{"weight_map": {"x": "../y"}}'])
def test_corrupt_index(config, sharded, content):
    index = sharded / "model.safetensors.index.json"
    index.write_text(content)
    assert str(index) in complaint(sharded, config)


def test_shards_without_an_index(config, sharded):
    (sharded / "model.safetensors.index.json").unlink()
    assert "they need the index" in complaint(sharded, config, FileNotFoundError)


def test_pickles_are_refused(config, tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    message = complaint(tmp_path, config, FileNotFoundError)
    assert "pytorch_model.bin" in message and "Convert them to safetensors" in message


def test_no_weights(config, tmp_path):
    assert "holds no weights" in complaint(tmp_path, config, FileNotFoundError)
    assert "is not a directory" in complaint(tmp_path / "nowhere", config, FileNotFoundError)


def test_no_config(tmp_path):
    with pytest.raises(FileNotFoundError, match="config.json"):
        read_config(tmp_path)


def test_tying_follows_the_weights(tmp_path):
    tied, untied = small_config(tied=True), small_config(tied=False)
    tensors = random_tensors(untied)
    write_checkpoint(tmp_path / "unequal", tied, tensors)
    assert resolve_tying(tmp_path / "unequal", tied) == untied
    tensors["lm_head.weight"] = tensors["model.language_model.embed_tokens.weight"].copy()
    write_checkpoint(tmp_path / "equal", tied, tensors)
    assert resolve_tying(tmp_path / "equal", tied) == tied
    assert "head" not in read_params(tmp_path / "equal", abstract(tied), tied)["decoder"]
    del tensors["lm_head.weight"]
    write_checkpoint(tmp_path / "absent", tied, tensors)
    assert resolve_tying(tmp_path / "absent", tied) == tied
    assert resolve_tying(tmp_path / "unequal", untied) == untied


def test_parameters_of_another_config(config, tensors, tmp_path):
    write_checkpoint(tmp_path, config, tensors)
    other = small_config("6b")
    with pytest.raises(ValueError, match="parameters do not fit the config"):
        read_params(tmp_path, abstract(other), config)
    larger = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, mlp=96))
    with pytest.raises(ValueError, match=r"decoder/layers/mlp/gate/kernel has shape .* but the config makes it"):
        read_params(tmp_path, abstract(larger), config)
