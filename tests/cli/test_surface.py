import importlib

import pytest

import ivl3_jax

NAMES = ["Batch", "Chat", "InternVLConfig", "Lora", "Model", "ShardingPlan", "adapted", "load", "load_adapter"]
NAMES += ["merged", "save", "save_adapter", "save_unmerged", "without_adapters"]


@pytest.mark.parametrize("name", NAMES)
def test_public_names_are_found_where_they_live(name):
    value = getattr(ivl3_jax, name)
    assert value is getattr(importlib.import_module(ivl3_jax._HOMES[name]), name)
    assert name in dir(ivl3_jax)
    assert name in ivl3_jax.__all__


def test_unknown_names_say_what_there_is():
    with pytest.raises(AttributeError, match=r"has no attribute 'laod'; it has .*load"):
        _ = ivl3_jax.laod
