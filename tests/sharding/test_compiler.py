"""Which options a plan is compiled with."""

from ivl3_jax.sharding.compiler import OFFLOADING, OPTIONS, options_of
from ivl3_jax.sharding.plan import ShardingPlan


def plan(**fields) -> ShardingPlan:
    return ShardingPlan.from_dict({"remat": {"decoder": "full"}, **fields})


def test_those_of_the_chip():
    assert options_of("v5e", plan()) == OPTIONS["v5e"]


def test_those_of_offloading():
    offloading = plan(remat={"decoder": {"save": [], "offload": ["input"]}})
    assert options_of("v6e", offloading) == {**OPTIONS["v6e"], **OFFLOADING}
    assert options_of("v6e", plan(offload=["optimizer"])).keys() >= OFFLOADING.keys()


def test_the_plans_own_come_last():
    own = plan(compiler={"v5p": {"xla_enable_async_all_gather": False, "xla_tpu_other": 3}})
    found = options_of("v5p", own)
    assert (found["xla_enable_async_all_gather"], found["xla_tpu_other"]) == ("false", "3")


def test_an_option_is_taken_away():
    name = "xla_tpu_enable_async_collective_fusion"
    assert name in options_of("v5p", plan()) and name not in options_of("v5p", plan(compiler={"v5p": {name: None}}))
