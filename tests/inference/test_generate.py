"""Decoding against a cache, alone and in batches of unequal length."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.positions import v2pe_positions
from ivl3_jax.inference.generate import Generator, bucket
from ivl3_jax.inference.programs import programs_of
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.kernels import decoding
from ivl3_jax.layers.stack import unstack
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from tests.models.small import CONFIG, changed, model, random_batch, relative
from tests.tolerances import STACK

NEW = 10


def prompt(positions, tiles, seed):
    batch = random_batch(1, [(positions, tiles)], length=positions, tiles=tiles, seed=seed)
    return Encoded(
        batch.tokens[0], batch.labels[0], batch.labels[0] > 0, batch.tiles[0], batch.visual_index[0], batch.positions[0]
    )


PROMPTS = [prompt(70, 3, 0), prompt(12, 1, 1), prompt(31, 0, 2)]


@pytest.fixture(scope="module")
def generator():
    return Generator(model())


def test_buckets():
    assert [bucket(n) for n in (1, 64, 65, 256, 257, 1000, 1025, 32768)] == [64, 64, 128, 256, 320, 1024, 1280, 32768]
    for n in range(1, 5000):
        assert n <= bucket(n) == bucket(bucket(n)) < max(n + 64, 1.25 * n + 1)
    assert len({bucket(n) for n in range(1025, 2049)}) == 4


def test_the_tpu_kernel_gives_the_same_answers(monkeypatch):
    wide = Model.init(changed(decoder={"head_dim": 64}), seed=1)
    expected = Generator(wide).generate(PROMPTS, 4, ())
    programs_of.cache_clear()
    monkeypatch.setattr(decoding, "preferred", lambda k, capacity: "tpu")
    assert Generator(wide).generate(PROMPTS, 4, ()) == expected
    programs_of.cache_clear()


def test_float64():
    with jax.enable_x64(True):
        wide = Model.init(CONFIG, param_dtype="float64", dtype="float64")
        alone = [Generator(wide).generate([one], 3, ())[0] for one in PROMPTS]
        assert Generator(wide).generate(PROMPTS, 3, ()) == alone


def test_another_model_of_the_same_configuration_compiles_nothing(generator):
    generator.generate(PROMPTS[1:2], 3, ())
    compiled = generator._programs.next._cache_size()
    other = Generator(model().replace(jax.tree.map(lambda leaf: leaf * 1.5, model().params)))
    other.generate(PROMPTS[1:2], 3, ())
    assert other._programs is generator._programs and other._programs.next._cache_size() == compiled


def test_a_cache_gives_what_a_full_pass_gives():
    """Prefill of a part, then step by step: the logits of every position."""
    batch = random_batch(2, [(20, 1)], length=20, tiles=1)
    full, start = np.asarray(model()(batch)), 14
    with jax.set_mesh(model().mesh):
        module = nnx.merge(model().graphdef, model().params)
        module.decoder.layers = unstack(module.decoder.layers)
        graphdef, params = nnx.split(module)

        def tail(hidden):
            decoder = nnx.merge(graphdef, params).decoder
            return decoder.logits(decoder.norm(hidden))

        def embed(tokens):
            decoder = nnx.merge(graphdef, params).decoder
            return decoder.embed(tokens, jnp.float32)

        @jax.jit
        def prefill(batch):
            module = nnx.merge(graphdef, params)
            x = module.merge(embed(batch.tokens), module.visual_tokens(batch.tiles), batch.visual_index)
            x, cache = module.decoder.prefill(
                x[:, :start], batch.positions[:, :start], batch.segment_ids[:, :start], 24
            )
            return tail(x), cache

        @jax.jit
        def step(tokens, at, cache):
            lengths = jnp.full(2, at)
            x, cache = nnx.merge(graphdef, params).decoder.step(
                embed(tokens), lengths[:, None].astype(jnp.float32), cache, lengths
            )
            return tail(x), cache

        logits, cache = prefill(jax.tree.map(jnp.asarray, batch))
        assert relative(logits, full[:, :start]) < STACK["float32"]
        for at in range(start, 20):
            logits, cache = step(batch.tokens[:, at : at + 1], at, cache)
            assert relative(logits[:, 0], full[:, at]) < STACK["float32"]


def spaced(one, delta):
    """The same prompt with V2PE's positions."""
    return dataclasses.replace(one, positions=v2pe_positions(one.visual_index >= 0, delta))


@pytest.mark.parametrize("delta", [1, 1 / 4])
def test_greedy_tokens_are_those_of_full_passes(generator, delta):
    """Positions go on in steps of 1 from the last of the prompt, whatever it is."""
    prompts = [spaced(one, delta) for one in PROMPTS]
    answers = generator.generate(prompts, NEW, stop=())
    assert (answers == generator.generate(PROMPTS, NEW, stop=())) == (delta == 1)
    batch = random_batch(3, [(80, 3)], length=80, tiles=3)
    for field in (batch.tokens, batch.visual_index, batch.segment_ids):
        field[...] = 0
    batch.visual_index[...] = -1
    for row, (one, answer) in enumerate(zip(prompts, answers, strict=True)):
        n = len(one)
        batch.positions[row, :n] = one.positions
        batch.positions[row, n:] = one.positions[-1] + 1 + np.arange(80 - n)
        batch.tokens[row, : n + NEW] = [*one.tokens, *answer]
        batch.visual_index[row, :n], batch.segment_ids[row, : n + NEW] = one.visual_index, 1
        batch.tiles[row, : len(one.tiles)] = one.tiles
    best = np.asarray(model()(batch)).argmax(-1)
    for row, (one, answer) in enumerate(zip(prompts, answers, strict=True)):
        assert answer == best[row, len(one) - 1 : len(one) + NEW - 1].tolist()


def test_a_batch_is_its_rows_one_by_one(generator):
    together = generator.generate(PROMPTS, NEW, stop=())
    assert together == [generator.generate([one], NEW, stop=())[0] for one in PROMPTS]


def test_a_stop_token_ends_its_row_only(generator):
    free = generator.generate(PROMPTS, NEW, stop=())
    stop = free[0][4]
    cut = [row[: row.index(stop)] if stop in row else row for row in free]
    assert generator.generate(PROMPTS, NEW, {stop}) == cut


def test_the_seed_decides(generator):
    first, again, other = (generator.generate(PROMPTS, NEW, (), Sampling(5.0, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


@pytest.mark.parametrize("count", [1, 3, 5])
def test_tiles_encoded_in_groups_are_the_same_tiles(generator, count):
    tiles = np.random.default_rng(0).integers(0, 256, (count, 28, 28, 3)).astype(np.uint8)
    with jax.set_mesh(model().mesh):
        found = generator.visual_tokens(tiles, 32)
        expected = jax.jit(lambda p, t: nnx.merge(model().graphdef, p).visual_tokens(t[None])[0])(model().params, tiles)
    assert found.shape == (32, CONFIG.decoder.width)
    assert relative(found[: 4 * count], expected) < STACK["float32"]
    assert not np.asarray(found[4 * count :]).any()


def test_what_cannot_be_generated(generator):
    with pytest.raises(ValueError, match="there is no prompt"):
        generator.generate([], NEW, ())
    with pytest.raises(ValueError, match="max_new_tokens is 0; it must be a whole number of at least 1"):
        generator.generate(PROMPTS, 0, ())
    with pytest.raises(
        ValueError, match="the prompt takes 70 positions and the answer may take 32700; .* the 32768 that"
    ):
        generator.generate(PROMPTS, 32_700, ())
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 2})
    with pytest.raises(ValueError, match="generation runs on one device, and plan 'fsdp_tensor' has 2; .* 'single'"):
        Generator(Model.init(CONFIG, plan))
