"""The engine: what it says is what full passes say, whatever comes and goes around a request."""

import dataclasses
import signal
import threading

import jax
import numpy as np
import pytest

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.positions import v2pe_positions
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Limits, Request, Said
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.kernels.family import preferring
from ivl3_jax.layers.linear import Linear
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from ivl3_jax.sharding.plan_file import PLAN_DIRECTORY
from tests.models.small import CONFIG, changed, model, random_batch

NEW = 10
SMALL = Limits(rows=4, page=16, piece=32, positions=1024)


def prompt(positions, tiles, seed):
    batch = random_batch(1, [(positions, tiles)], length=positions, tiles=tiles, seed=seed)
    return Encoded(
        batch.tokens[0], batch.labels[0], batch.labels[0] > 0, batch.tiles[0], batch.visual_index[0], batch.positions[0]
    )


PROMPTS = [prompt(70, 3, 0), prompt(12, 1, 1), prompt(31, 0, 2)]


@pytest.fixture(scope="module")
def engine():
    return Engine(model(), SMALL)


@pytest.fixture(scope="module")
def answers(engine):
    """Greedy ones of `PROMPTS`, each asked alone."""
    return [engine.generate([one], 3 * NEW, ())[0] for one in PROMPTS]


def answered(said, sample=0):
    return [one.token for one in said if one.sample == sample and one.token is not None]


def full_passes(prompts, answers):
    """The most likely tokens after each prompt, and each token of its answer, by whole rows through the model."""
    new = len(answers[0])
    batch = random_batch(len(prompts), [(80, 3)], length=80, tiles=3)
    for field in (batch.tokens, batch.visual_index, batch.segment_ids):
        field[...] = 0
    batch.visual_index[...] = -1
    for row, (one, answer) in enumerate(zip(prompts, answers, strict=True)):
        n = len(one)
        batch.positions[row, :n] = one.positions
        batch.positions[row, n:] = one.positions[-1] + 1 + np.arange(80 - n)
        batch.tokens[row, : n + new] = [*one.tokens, *answer]
        batch.visual_index[row, :n], batch.segment_ids[row, : n + new] = one.visual_index, 1
        batch.tiles[row, : len(one.tiles)] = one.tiles
    logits = np.asarray(model()(batch))
    return [logits[row, len(one) - 1 : len(one) + new - 1] for row, one in enumerate(prompts)]


def spaced(one, delta):
    """The same prompt with V2PE's positions."""
    return dataclasses.replace(one, positions=v2pe_positions(one.visual_index >= 0, delta))


@pytest.mark.parametrize("delta", [1, 1 / 4])
def test_greedy_tokens_are_those_of_full_passes(engine, delta):
    """Positions go on in steps of 1 from the last of the prompt, whatever it is."""
    prompts = [spaced(one, delta) for one in PROMPTS]
    found = engine.generate(prompts, NEW, stop=())
    assert (found == engine.generate(PROMPTS, NEW, stop=())) == (delta == 1)
    expected = full_passes(prompts, found)
    assert found == [logits.argmax(-1).tolist() for logits in expected]


def test_log_probabilities_are_those_of_full_passes(engine):
    one = PROMPTS[1]
    said = list(engine.stream(Request(one, NEW, logprobs=5)))
    (logits,) = full_passes([one], [answered(said)])
    expected = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    for step, wanted in zip(said[:-1], expected, strict=True):
        order = np.argsort(-wanted)[:5]
        assert [token for token, _ in step.likely] == order.tolist()
        np.testing.assert_allclose(
            [step.logprob, *(p for _, p in step.likely)], wanted[[step.token, *order]], atol=1e-4
        )
    assert said[-1] == Said(0, finish="length")
    assert engine.stream(Request(one, 1, logprobs=0)).__next__().likely == ()


def test_arrivals_lengths_and_cancellations_change_no_token(engine, answers):
    """200 requests that come and go at random, with little room: each says a beginning of what it says alone."""
    rng = np.random.default_rng(0)
    tight = Engine(model(), dataclasses.replace(SMALL, positions=256))
    tickets = []
    while len(tickets) < 200 or not tight.idle:
        for _ in range(rng.integers(0, 3)):
            if len(tickets) < 200:
                which, new = int(rng.integers(3)), int(rng.integers(1, 3 * NEW + 1))
                tickets.append((which, new, tight.submit(Request(PROMPTS[which], new))))
        if tickets and rng.random() < 0.05:
            tickets[rng.integers(len(tickets))][2].cancel()
        tight.step()
    cancelled = 0
    for which, new, ticket in tickets:
        *said, end = ticket.all_said()
        assert answered(said) == answers[which][: len(said)]
        assert end.finish == ("length" if len(said) == new else "cancelled")
        cancelled += end.finish == "cancelled"
    assert 5 < cancelled < 100
    assert tight._pages.available == tight._pages.count - 1, "every page came back"


def test_a_batch_is_its_rows_one_by_one(engine, answers):
    assert engine.generate(PROMPTS, 3 * NEW, stop=()) == answers


def test_a_stop_token_ends_its_row_only(engine, answers):
    stop = answers[0][4]
    cut = [row[: row.index(stop)] if stop in row else row for row in answers]
    assert engine.generate(PROMPTS, 3 * NEW, {stop}) == cut
    *_, end = engine.stream(Request(PROMPTS[0], NEW, stop=frozenset({stop})))
    assert end.finish == "stop"


def test_draws_follow_from_the_seed_and_the_sample_alone(engine):
    way = Sampling(2.0, top_p=0.95, seed=7)
    together = list(engine.stream(Request(PROMPTS[0], NEW, way, samples=6)))  # more than there are rows
    found = [answered(together, sample) for sample in range(6)]
    assert len({tuple(answer) for answer in found}) == 6
    assert found == [answered(list(engine.stream(Request(PROMPTS[0], NEW, way, first_sample=i)))) for i in range(6)]
    other = list(engine.stream(Request(PROMPTS[0], NEW, dataclasses.replace(way, seed=8))))
    assert answered(other) != found[0]
    equal = engine.generate([PROMPTS[1]] * 4, NEW, (), way)
    assert len({tuple(answer) for answer in equal}) == 4


def test_penalties_reach_what_was_said(engine, answers):
    assert len(set(answers[0])) < len(answers[0])
    strict = engine.generate(PROMPTS[:1], 3 * NEW, (), Sampling(frequency_penalty=1e4))
    assert len(set(strict[0])) == 3 * NEW
    strict = engine.generate(PROMPTS[:1], 3 * NEW, (), Sampling(repetition_penalty=1e4))
    assert not set(strict[0]) & set(PROMPTS[0].tokens.tolist())


class Counting:
    """Counts the tiles and the positions that reach the device."""

    def __init__(self, engine, monkeypatch):
        self.tiles, self.positions = 0, 0
        encode, prefill = engine._device.encode, engine._device.prefill

        def counting_encode(tiles, places):
            self.tiles += len(tiles)
            encode(tiles, places)

        def counting_prefill(parts, *rest):
            self.positions += sum(len(part.tokens) for part in parts)
            return prefill(parts, *rest)

        monkeypatch.setattr(engine._device, "encode", counting_encode)
        monkeypatch.setattr(engine._device, "prefill", counting_prefill)


@pytest.fixture
def counted(monkeypatch):
    fresh = Engine(model(), SMALL)
    return fresh, Counting(fresh, monkeypatch)


def test_a_beginning_is_computed_once(counted, answers):
    engine, count = counted
    ticket = engine.submit(Request(PROMPTS[0], NEW, samples=4))
    while not engine.idle:
        engine.step()
    assert (count.tiles, count.positions, ticket.reused) == (3, 70, 0), "several samples need one prefill"
    again = engine.submit(Request(PROMPTS[0], NEW))
    while not engine.idle:
        engine.step()
    assert again.reused == 64 and (count.tiles, count.positions) == (3, 76)
    assert answered(again.all_said()) == answers[0][:NEW]


def test_what_was_answered_is_a_beginning_too(counted, answers):
    """A second turn finds the first one's pages, its answer included."""
    engine, count = counted
    (first,) = engine.generate(PROMPTS[:1], 3 * NEW, ())
    one = PROMPTS[0]
    longer = np.concatenate([one.tokens, first[:-1], [5, 6, 7]]).astype(np.int32)
    more = len(longer) - len(one)
    second = dataclasses.replace(
        one,
        tokens=longer,
        visual_index=np.concatenate([one.visual_index, np.full(more, -1)]).astype(np.int32),
        positions=np.arange(len(longer), dtype=np.float32),
    )
    ticket = engine.submit(Request(second, 5))
    while not engine.idle:
        engine.step()
    assert ticket.reused == 96  # of 70 + 29 that are in the cache, whole pages
    assert answered(ticket.all_said()) == Engine(model(), SMALL).generate([second], 5, ())[0]
    assert count.tiles == 3


def test_other_pictures_are_another_beginning(counted):
    engine, count = counted
    engine.generate(PROMPTS[:1], 2, ())
    tiles = PROMPTS[0].tiles.copy()
    tiles[2, 0, 0, 0] ^= 1
    other = engine.submit(Request(dataclasses.replace(PROMPTS[0], tiles=tiles), 2))
    while not engine.idle:
        engine.step()
    visual = np.flatnonzero(PROMPTS[0].visual_index == 2 * CONFIG.tile_tokens)[0]
    assert other.reused == visual // 16 * 16 and count.tiles == 4, "the two tiles that are the same are known"


def test_pictures_are_encoded_once_whatever_stands_before_them(counted):
    engine, count = counted
    engine.generate(PROMPTS[:1], 2, ())
    tokens = PROMPTS[0].tokens.copy()
    tokens[0] += 1
    engine.generate([dataclasses.replace(PROMPTS[0], tokens=tokens)], 2, ())
    assert (count.tiles, count.positions) == (3, 140)


def test_every_shape_compiles_once(answers):
    """Programs are shared by all engines of one configuration, and by models with other weights."""
    engine = Engine(model(), SMALL)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    try:
        for _ in range(2):  # the second time beginnings are known, and pieces are shorter
            assert engine.generate(PROMPTS, 3 * NEW, ()) == answers
        compiled.clear()
        assert engine.generate(PROMPTS, 3 * NEW, ()) == answers
        assert not compiled
        other = Engine(model().replace(jax.tree.map(lambda leaf: leaf * 1.5, model().params)), SMALL)
        compiled.clear()  # what scaled the weights and took the layers apart
        other.generate(PROMPTS, 3 * NEW, ())
        assert not compiled
        assert engine._device.programs is other._device.programs
    finally:
        jax.monitoring.clear_event_listeners()


def test_the_cache_grows_for_a_request_that_needs_more(monkeypatch, answers):
    monkeypatch.setattr("ivl3_jax.inference.engine.FIRST_POSITIONS", 64)
    growing = Engine(model(), dataclasses.replace(SMALL, positions=None))
    assert growing.generate(PROMPTS[1:2], NEW, ()) == [answers[1][:NEW]]
    assert growing.generate(PROMPTS, 3 * NEW, ()) == answers


def test_several_threads_may_wait_at_once(engine, answers):
    found = {}

    def ask(number):
        found[number] = answered(list(engine.stream(Request(PROMPTS[number % 3], 3 * NEW))))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(6)] == answers * 2


def test_an_interruption_waits_for_the_end_of_a_step(engine, answers, monkeypatch):
    """Ctrl-C behind a program that has written over the cache, and before the engine has the new one."""
    programs, step = engine._device.programs, engine._device.programs.next

    def interrupted(*args, **kwargs):
        found = step(*args, **kwargs)
        signal.raise_signal(signal.SIGINT)
        return found

    monkeypatch.setattr(programs, "next", interrupted)
    with pytest.raises(KeyboardInterrupt):
        engine.generate(PROMPTS[:1], NEW, ())
    monkeypatch.undo()
    assert engine.generate(PROMPTS, 3 * NEW, ()) == answers
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_prompt_of_many_more_pages_than_its_first_piece():
    """The table of a piece has room for the pages up to its end, and the prompt has others behind."""
    long = prompt(330, 4, 5)
    found = [
        Engine(model(), Limits(rows=2, page=16, piece=piece, positions=1024)).generate([long], 6, ())
        for piece in (16, 512)
    ]
    assert found[0] == found[1]


def test_leaving_a_stream_cancels_it(engine):
    stream = engine.stream(Request(PROMPTS[0], 3 * NEW))
    next(stream)
    stream.close()
    while not engine.idle:
        engine.step()
    assert engine._pages.available == engine._pages.count - 1


@pytest.mark.long
@pytest.mark.parametrize("family", ["tpu", "oracle"])
def test_every_family_of_kernels_gives_the_same_answers(family):
    wide = Model.init(changed(decoder={"head_dim": 64}), seed=1)
    expected = Engine(wide, SMALL).generate(PROMPTS[:2], 4, ())
    with preferring(family):
        assert Engine(wide, SMALL).generate(PROMPTS[:2], 4, ()) == expected


PLANS = {
    "single": {},
    "fsdp": {"fsdp": 8},
    "fsdp_tensor": {"fsdp": 2, "tensor": 4},
    "fsdp_wide": {"data": 2, "fsdp": 4},
    "sequence": {"fsdp": 2, "tensor": 4},
    "context": {"fsdp": 2, "context": 4},
    "hybrid": {"data": 2, "fsdp": 4},
    "pipeline": {"stage": 2, "fsdp": 2, "tensor": 2},
}


def test_every_shipped_plan_is_here():
    shipped = {file.stem for file in PLAN_DIRECTORY.glob("*.yaml")}
    assert PLANS.keys() | {f"{name}_coupled" for name in PLANS} == shipped | {"single_coupled"}


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        pytest.param(f"{name}{vision}", sizes, marks=() if f"{name}{vision}" == "fsdp_tensor" else pytest.mark.long)
        for name, sizes in PLANS.items()
        for vision in ("", "_coupled")
        if f"{name}{vision}" != "single_coupled"
    ],
)
def test_every_plan_gives_the_same_answers(name, sizes, answers):
    sharded = Model.init(CONFIG, ShardingPlan.read(name, sizes), seed=1)
    assert Engine(sharded, SMALL).generate(PROMPTS, NEW, ()) == [one[:NEW] for one in answers]


@pytest.mark.parametrize("int8", [(), ("weights",)])
def test_weights_with_inputs_first_as_accelerators_have_them(int8, answers, monkeypatch):
    sharded = Model.init(CONFIG, ShardingPlan.read("fsdp_tensor", PLANS["fsdp_tensor"]), seed=1)
    expected = Engine(sharded, SMALL, int8).generate(PROMPTS, NEW, ()) if int8 else [one[:NEW] for one in answers]
    monkeypatch.setattr(Linear, "put_outputs_first", lambda self: None)
    assert Engine(sharded, SMALL, int8).generate(PROMPTS, NEW, ()) == expected


def rounded(kernel, inputs, first):
    """A kernel as int8 has it: each output in 127 steps of its largest weight."""
    scale = np.abs(kernel).max(axis=tuple(range(first, first + inputs)), keepdims=True) / 127
    return np.round(kernel / scale) * scale


def test_weights_in_eight_bits_are_those_that_rounding_gives():
    params = jax.tree.map(np.asarray, model().params)
    layers = params["decoder"]["layers"]
    for name, inputs in (("q", 1), ("k", 1), ("v", 1), ("out", 2)):
        layers["attention"][name]["kernel"] = rounded(layers["attention"][name]["kernel"], inputs, 1)
    for name in ("gate", "up", "down"):
        layers["mlp"][name]["kernel"] = rounded(layers["mlp"][name]["kernel"], 1, 1)
    params["decoder"]["head"]["kernel"] = rounded(params["decoder"]["head"]["kernel"], 1, 0)
    plain = Engine(model().replace(jax.tree.map(jax.numpy.asarray, params)), SMALL)
    eight = Engine(model(), SMALL, ("weights",))
    for one in PROMPTS[:2]:
        theirs, ours = (list(each.stream(Request(one, 1, logprobs=20)))[0] for each in (plain, eight))
        assert [token for token, _ in ours.likely] == [token for token, _ in theirs.likely]
        np.testing.assert_allclose([p for _, p in ours.likely], [p for _, p in theirs.likely], atol=1e-4)


def test_a_cache_in_eight_bits_loses_little():
    exact, eight = Engine(model(), SMALL), Engine(model(), SMALL, ("cache",))
    for one in PROMPTS:
        theirs, ours = (list(each.stream(Request(one, 1, logprobs=20)))[0] for each in (exact, eight))
        known = dict(ours.likely)
        gaps = [abs(logprob - known[token]) for token, logprob in theirs.likely if token in known]
        assert len(gaps) > 15 and 0 < max(gaps) < 0.1


def test_an_unknown_part_in_eight_bits():
    with pytest.raises(ValueError, match="int8 has biases; it may have weights and cache"):
        Engine(model(), SMALL, ("biases",))


@pytest.mark.long
def test_float64():
    with jax.enable_x64(True):
        wide = Model.init(CONFIG, param_dtype="float64", dtype="float64")
        alone = [Engine(wide, SMALL).generate([one], 3, ())[0] for one in PROMPTS]
        assert Engine(wide, SMALL).generate(PROMPTS, 3, ()) == alone


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        (Request(PROMPTS[0], 0), "max_new_tokens is 0; it must be a whole number of at least 1"),
        (Request(PROMPTS[0], 1, samples=0), "samples is 0; it must be a whole number of at least 1"),
        (Request(PROMPTS[0], 1, logprobs=21), "logprobs is 21; it must be 0 to 20"),
        (Request(PROMPTS[0], 32_700), "the prompt takes 70 positions and the answer may take 32700; .* the 32768 that"),
        (
            Request(PROMPTS[0], 1000),
            "the prompt has 70 tokens and the answer may have 1000; the cache has room for 1024",
        ),
    ],
    ids=str,
)
def test_what_cannot_be_generated(engine, request_, message):
    with pytest.raises(ValueError, match=message):
        engine.submit(request_)


def test_what_is_left_for_an_answer_counts_tokens_and_positions():
    engine = Engine(model(), Limits(rows=1, page=16, positions=64))
    plain = PROMPTS[1]
    shared = dataclasses.replace(plain, positions=plain.positions / 4)  # as V2PE's steps are
    assert engine.left(plain) == engine.left(shared) == 64 - len(plain)
    engine.submit(Request(shared, engine.left(shared)))
    with pytest.raises(ValueError, match="the cache has room for 64"):
        engine.submit(Request(shared, engine.left(shared) + 17))


def test_no_prompt(engine):
    with pytest.raises(ValueError, match="there is no prompt"):
        engine.generate([], NEW, ())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "rows is 0; it must be a whole number of at least 1"),
        ({"page": 40}, "page is 40; it must be a multiple of 16"),
        ({"piece": 96}, "piece is 96; it must be 64, the page, times a power of two"),
    ],
)
def test_limits_that_cannot_be(fields, message):
    with pytest.raises(ValueError, match=message):
        Limits(**fields)
