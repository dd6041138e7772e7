"""Reading and writing are exact inverses, however the arrays are laid out."""

import dataclasses
import json
import re

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from ivl3_jax.conversion.reader import read_params
from ivl3_jax.conversion.writer import write_params
from ivl3_jax.data.tokenizer_training import train_tokenizer, write_tokenizer_files
from ivl3_jax.hf_config import read_config
from tests.conversion.checkpoints import BFLOAT16, abstract, random_tensors, small_config, write_checkpoint

ALL = [(style, tied) for style in ("300m", "6b") for tied in (False, True)]


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype, name
        assert found[name].shape == value.shape, name
        assert found[name].tobytes() == value.tobytes(), name


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("style", "tied"), ALL)
def test_bit_equal(style, tied, dtype, tmp_path):
    config = small_config(style, tied)
    tensors = random_tensors(config, dtype)
    write_checkpoint(tmp_path / "in", config, tensors)
    params = read_params(tmp_path / "in", abstract(config, dtype), config)
    write_params(params, config, tmp_path / "out")
    assert read_config(tmp_path / "out") == config
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), tensors)


@pytest.mark.parametrize("style", ["300m", "6b"])
def test_other_spellings(style, tmp_path):
    config = small_config(style)
    tensors = random_tensors(config)

    def old(name):
        name = re.sub(r"^lm_head", "language_model.lm_head", name)
        name = re.sub(r"^model\.language_model", "language_model.model", name)
        return re.sub(r"^model\.", "", name).replace("attention.q_norm", "attn.q_norm")

    write_checkpoint(tmp_path / "new", config, tensors)
    write_checkpoint(tmp_path / "old", config, {old(name): tensor for name, tensor in tensors.items()})
    new, other = (read_params(tmp_path / name, abstract(config), config) for name in ("new", "old"))
    jax.tree.map(np.testing.assert_array_equal, new, other)


def test_dtype_is_cast_on_the_way(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    write_checkpoint(tmp_path / "in", config, tensors)
    params = read_params(tmp_path / "in", abstract(config, BFLOAT16), config)
    assert all(leaf.dtype == BFLOAT16 for leaf in jax.tree.leaves(params))
    table = tensors["model.language_model.embed_tokens.weight"]
    np.testing.assert_array_equal(np.asarray(params["decoder"]["embed"]["table"]), table.astype(BFLOAT16))
    write_params(params, config, tmp_path / "out", dtype="float32")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert_same(found, {name: tensor.astype(BFLOAT16).astype(np.float32) for name, tensor in tensors.items()})
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == "float32"


def sharded(config, rng, vocab_rows):
    """Every parameter split over eight devices in some way that divides, the vocabulary padded."""
    mesh = jax.make_mesh((2, 4), ("fsdp", "tensor"), axis_types=(AxisType.Explicit,) * 2, devices=jax.devices()[:8])
    leaves = flatten_dict(abstract(config), sep="/")

    def place(path, leaf):
        shape = list(leaf.shape)
        if path in ("decoder/embed/table", "decoder/head/kernel"):
            shape[shape.index(config.decoder.vocab)] = vocab_rows
        spec = [None] * len(shape)
        for axis, size in (("fsdp", 2), ("tensor", 4)):
            free = [i for i, n in enumerate(shape) if spec[i] is None and n % size == 0]
            if free and rng.random() < 0.9:
                spec[rng.choice(free)] = axis
        return jax.ShapeDtypeStruct(tuple(shape), leaf.dtype, sharding=NamedSharding(mesh, PartitionSpec(*spec)))

    tree = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = place(path, leaf)
    return tree


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("style", ["300m", "6b"])
def test_slices_equal_the_whole(style, seed, tmp_path):
    config = small_config(style)
    tensors = random_tensors(config)
    write_checkpoint(tmp_path / "in", config, tensors)
    whole = flatten_dict(read_params(tmp_path / "in", abstract(config), config), sep="/")
    tree = sharded(config, np.random.default_rng(seed), vocab_rows=104)
    params = read_params(tmp_path / "in", tree, config)
    for path, leaf in flatten_dict(params, sep="/").items():
        assert leaf.sharding == flatten_dict(tree, sep="/")[path].sharding
        expected = np.zeros(leaf.shape, np.float32)
        expected[tuple(slice(size) for size in whole[path].shape)] = whole[path]
        np.testing.assert_array_equal(np.asarray(leaf), expected, err_msg=path)
    # Written from the shards, without the padding.
    write_params(params, config, tmp_path / "out")
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), tensors)


def test_shards_with_an_index(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    params = read_params(write_checkpoint(tmp_path / "in", config, tensors), abstract(config), config)
    write_params(params, config, tmp_path / "out", max_shard_bytes=100_000)
    shards = sorted(tmp_path.glob("out/*.safetensors"))
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and {file.name for file in shards} == set(index["weight_map"].values())
    assert all(sum(tensor.nbytes for tensor in load_file(file).values()) <= 100_000 for file in shards)
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in tensors.values())
    assert_same({name: tensor for file in shards for name, tensor in load_file(file).items()}, tensors)
    again = read_params(tmp_path / "out", abstract(config), config)
    jax.tree.map(np.testing.assert_array_equal, again, params)


def test_companion_files(tmp_path):
    config = small_config()
    source = write_checkpoint(tmp_path / "in", config, random_tensors(config))
    write_tokenizer_files(train_tokenizer(["What is written here?"], 300), source)
    for name in ("preprocessor_config.json", "generation_config.json", "notes.txt"):
        (source / name).write_text(f'{{"name": "{name}"}}')
    params = read_params(source, abstract(config), config)
    write_params(params, config, tmp_path / "copied", copy_from=source)
    found = {file.name for file in (tmp_path / "copied").iterdir()}
    assert found == {file.name for file in source.iterdir()} - {"notes.txt"} | {"README.md", "SHA256SUMS"}
    assert json.loads((tmp_path / "copied" / "generation_config.json").read_text())["name"] == "generation_config.json"


def test_complete_or_not_there(tmp_path, monkeypatch):
    config = small_config()
    params = read_params(write_checkpoint(tmp_path / "in", config, random_tensors(config)), abstract(config), config)
    monkeypatch.setattr("ivl3_jax.conversion.writer.to_hf", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_params(params, config, tmp_path / "out")
    assert [file.name for file in tmp_path.iterdir()] == ["in"]


def test_refusals(tmp_path):
    config = small_config()
    source = write_checkpoint(tmp_path / "in", config, random_tensors(config))
    params = read_params(source, abstract(config), config)
    with pytest.raises(FileExistsError, match="not empty"):
        write_params(params, config, source)
    with pytest.raises(ValueError, match="cannot be written; supported"):
        write_params(params, config, tmp_path / "out", dtype="int8")
    tied = dataclasses.replace(config, decoder=dataclasses.replace(config.decoder, tie_embeddings=True))
    with pytest.raises(ValueError, match="decoder/head/kernel"):
        write_params(params, tied, tmp_path / "out")
