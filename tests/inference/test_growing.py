"""A cache of no stated size, and what does not fit into it."""

import threading

import jax
import pytest

from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Limits, NoRoom, Request
from tests.inference.test_engine import NEW, PROMPTS, SMALL, answered
from tests.models.small import model


@pytest.fixture(scope="module")
def answers():
    """Greedy ones of `PROMPTS`, each asked alone."""
    engine = Engine(model(), SMALL)
    return [engine.generate([one], 3 * NEW, ())[0] for one in PROMPTS]


def test_a_cache_of_no_stated_size_grows_instead_of_taking_turns(answers, monkeypatch):
    """No row gives way while there could be room; with a stated size they do, and say the same."""
    monkeypatch.setattr("ivl3_jax.inference.engine.FIRST_POSITIONS", 64)
    for positions, turns in ((None, False), (160, True)):
        small = Engine(model(), Limits(rows=4, page=16, piece=32, positions=positions))
        ways, give_way = [], small._give_way
        small._give_way = lambda row, ways=ways, give_way=give_way: (ways.append(row), give_way(row))
        assert small.generate(PROMPTS, 3 * NEW, ()) == answers
        assert bool(ways) == turns


def test_rows_take_turns_where_memory_is_out(answers, monkeypatch, caplog):
    monkeypatch.setattr("ivl3_jax.inference.engine.FIRST_POSITIONS", 160)
    full = Engine(model(), Limits(rows=4, page=16, piece=32))

    def refuse(pages):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(full._device, "grow", refuse)
    assert full.generate(PROMPTS, 3 * NEW, ()) == answers
    assert [record.message for record in caplog.records if "no memory" in record.message] == [
        "no memory for a larger cache: it stays at 160 positions, and rows take turns"
    ]


def test_a_request_for_which_there_is_no_memory_is_refused_alone(answers, monkeypatch, caplog):
    """And what was given with it; the cache then grows no further than to what others need."""
    monkeypatch.setattr("ivl3_jax.inference.engine.FIRST_POSITIONS", 96)
    full = Engine(model(), Limits(rows=4, page=16, piece=32))
    grow, asked = full._device.grow, []

    def refuse(pages):
        asked.append(pages)
        if pages > 10:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")
        grow(pages)

    monkeypatch.setattr(full._device, "grow", refuse)
    with pytest.raises(NoRoom, match="12 tokens and the answer may have 200; there is no memory for a cache"):
        full.run([Request(PROMPTS[2], NEW), Request(PROMPTS[1], 200)])
    assert asked == [15] and full._pages.count == 7 and not caplog.records
    assert full.generate(PROMPTS, 3 * NEW, ()) == answers
    assert asked == [15, 13, 8, 15] and full._pages.count == 8


def test_a_listener_may_submit_what_the_cache_grows_for(answers, monkeypatch):
    monkeypatch.setattr("ivl3_jax.inference.engine.FIRST_POSITIONS", 64)
    small = Engine(model(), Limits(rows=4, page=16, piece=32))
    heard, later = [], []

    def listen(said):
        heard.append(said)
        if len(heard) == 3:
            later.append(small.submit(Request(PROMPTS[0], 3 * NEW)))
        if len(heard) == 4:
            with pytest.raises(RuntimeError, match="a listener calls the engine's step"):
                small.step()

    small.submit(Request(PROMPTS[1], 3 * NEW), listen)
    assert small._pages.count == 5
    while not small.idle:
        small.step()
    assert answered(heard) == answers[1] and answered(later[0].all_said()) == answers[0]
    assert small._pages.count >= 9


def test_submitting_waits_for_no_step(monkeypatch):
    """In whatever thread a step goes on."""
    engine = Engine(model(), SMALL)
    within, go_on = threading.Event(), threading.Event()

    def stay():
        within.set()
        assert go_on.wait(60)

    monkeypatch.setattr(engine, "_fill", stay)
    stepping = threading.Thread(target=engine.step)
    stepping.start()
    assert within.wait(60)
    submitting = threading.Thread(target=engine.submit, args=(Request(PROMPTS[1], NEW),))
    submitting.start()
    submitting.join(30)
    assert not submitting.is_alive()
    go_on.set()
    stepping.join()
