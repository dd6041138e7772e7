"""A checkpoint directory as a model and back."""

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

from ivl3_jax.batch import empty_batch
from ivl3_jax.conversion.checkpoint import load, save
from ivl3_jax.sharding.plan import ShardingPlan
from tests.conversion.checkpoints import random_tensors, small_config, write_checkpoint


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    config = small_config()
    tensors = {name: tensor * 0.05 for name, tensor in random_tensors(config).items()}
    return write_checkpoint(tmp_path_factory.mktemp("checkpoints") / "in", config, tensors)


@pytest.fixture(scope="module")
def model(directory):
    return load(directory)


def test_what_a_model_knows(model, directory):
    assert (model.source, model.config) == (directory, small_config())
    assert all(leaf.dtype == np.float32 for leaf in jax.tree.leaves(model.params))
    assert all(leaf.dtype == "bfloat16" for leaf in jax.tree.leaves(load(directory, "bfloat16").params))


def test_dynamic_ntk_is_a_choice_of_the_user(model, directory):
    assert model.config.decoder.rope_scaling.applied
    assert load(directory, dynamic_ntk=False).config.decoder == model.config.decoder.with_plain_rope()


def test_saved_and_loaded_again(model, directory, tmp_path):
    save(model, tmp_path / "out")
    first, second = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "out"))
    assert first.keys() == second.keys() and all(np.array_equal(first[name], second[name]) for name in first)


def test_a_plan_with_a_padded_vocabulary(model, directory, tmp_path):
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 2, "tensor": 2})
    sharded = load(directory, plan=plan)
    assert sharded.params["decoder"]["embed"]["table"].shape[0] == 102 > model.config.decoder.vocab
    batch = empty_batch(2, 12, 2, 1, 28)
    tokens, expected = sharded(batch), model(batch)
    np.testing.assert_allclose(tokens, expected, rtol=0, atol=1e-5 * np.abs(expected).max())
    save(sharded, tmp_path / "out")
    first, second = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "out"))
    assert all(np.array_equal(first[name], second[name]) for name in first)


def test_refusals(directory, tmp_path):
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of float32, bfloat16, float64"):
        load(directory, "int8")
    with pytest.raises(ValueError, match="JAX_ENABLE_X64"):
        load(directory, "float64")
    with pytest.raises(FileNotFoundError, match="config.json"):
        load(tmp_path)
