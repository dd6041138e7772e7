"""The recipes that lie in configs/: what they say is allowed, and their figures belong together."""

import pytest

from ivl3_jax.cli.arguments import CONFIGS, parse, shipped
from ivl3_jax.demo.recipe import RecipeConfig
from ivl3_jax.demo.run import DemoConfig
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.training.config import Recipe

SIZES = {file.stem for file in (CONFIGS / "sizes").glob("*.yaml")}
STAGES = sorted({file.stem for file in CONFIGS.glob("*.yaml")} - {"demo", "demo_best_of", "demo_recipe"})
# Pre-training has no files of its own: those of sft are for it too.
PARTS = [(name,) for name in STAGES] + [(name.partition("-")[0], name) for name in sorted(SIZES)]
PARTS += [("pretrain", "sft-8b"), ("pretrain", "sft-38b")]
WITHOUT_RATIO = ("mlp_warmup", "vit_warmup")  # a warm-up of 100 steps, whatever the length


def recipe(*names):
    return parse(Recipe, [*(f"--config={name}" for name in names), "--output=runs/x"], prog="ivl3 train")


def test_a_command_offers_what_fits_it():
    assert set(shipped(Recipe)) == {*STAGES, *SIZES}
    assert set(shipped(RecipeConfig)) == {"demo_recipe"}
    assert "demo" in shipped(DemoConfig)


@pytest.mark.parametrize("names", PARTS, ids="+".join)
def test_a_shipped_recipe(names):
    found = recipe(*names)
    train, data = found.train, found.data
    warmup = 100 if names[0] in WITHOUT_RATIO else round(0.03 * train.steps)
    assert train.warmup_steps == warmup
    plan = ShardingPlan.read(found.sharding.plan, found.sharding.mesh)
    assert data.rows % plan.mesh["fsdp"] == 0 and data.rows * data.tiles % plan.mesh["fsdp"] == 0
    assert data.max_tiles + 1 <= data.tiles
    (size,) = names[1:] or (None,)
    assert size is None or found != recipe(names[0])


@pytest.mark.parametrize(("names", "pairs"), [(("mpo",), 256), (("mpo", "mpo-38b"), 512)])
def test_batches_of_pairs(names, pairs):
    """The published batches at one density of pairs, and once over 300,000 of them."""
    found = recipe(*names)
    assert found.data.rows * found.data.tokens == pairs * 1536
    assert found.train.steps == round(300_000 / pairs)
