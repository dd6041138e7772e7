"""After warming up nothing compiles."""

import jax
import numpy as np
import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Limits, Request
from ivl3_jax.inference.warm_up import warm_up
from tests.inference.test_engine import PROMPTS, SMALL
from tests.models.small import model


def test_nothing_compiles_afterwards():
    engine = Engine(model(), SMALL)
    warm_up(engine, 110)
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, *_, **__: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    rng, tickets = np.random.default_rng(0), []
    try:
        while len(tickets) < 60 or not engine.idle:
            for _ in range(rng.integers(0, 3) if len(tickets) < 60 else 0):
                new, samples = (int(rng.integers(1, most)) for most in (30, 5))
                asked = Request(PROMPTS[rng.integers(3)], new, samples=samples)
                tickets.append(engine.submit(asked))
            engine.step()
    finally:
        jax.monitoring.clear_event_listeners()
    assert not compiled
    assert engine._pages.available == engine._pages.count - 1


def test_what_it_refuses():
    with pytest.raises(ValueError, match="a cache that grows compiles anew"):
        warm_up(Engine(model(), Limits(rows=4)), 100)
    for longest in (3, 1025):
        with pytest.raises(ValueError, match=f"{longest} positions are to warm up; a request has 4 to"):
            warm_up(Engine(model(), SMALL), longest)


def test_the_server_needs_a_cache_of_a_stated_size(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--warm-up", "512"]) == 2
    assert "option --warm-up needs --positions: a cache that grows compiles anew" in capsys.readouterr().err
