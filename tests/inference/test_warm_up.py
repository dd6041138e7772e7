"""After warming up nothing compiles."""

import jax
import numpy as np
import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.programs import programs_of
from ivl3_jax.inference.request import Limits, Request
from ivl3_jax.inference.warm_up import warm_up
from tests.inference.test_engine import prompt
from tests.models.small import model


def asked(rng, known, longest):
    """Requests as they come: prompts that share beginnings, some with tiles, of any length, and several answers."""
    new, samples = int(rng.integers(1, 6)), int(rng.integers(1, 5))
    length = int(rng.integers(1, longest - new + 1))
    one = prompt(length, int(rng.integers(0, 2)) if length > 8 else 0, int(rng.integers(1 << 30)))
    if rng.random() < 0.5:
        same = int(rng.integers(length))
        one.tokens[:same] = known[:same]
        one.visual_index[:same] = -1
    return Request(one, new, samples=samples)


@pytest.mark.parametrize(
    ("rows", "longest"),
    [(3, 24), *(pytest.param(*each, marks=pytest.mark.long) for each in [(4, 256), (6, 300), (1, 260)])],
)
def test_nothing_compiles_afterwards(rows, longest):
    programs_of.cache_clear()  # of other tests
    engine = Engine(model(), Limits(rows=rows, page=16, piece=64, positions=4096))
    warm_up(engine, longest)
    compiled = []

    def listen(event, *_, **__):
        if event.endswith("backend_compile_duration"):
            compiled.append(event)

    rng, tickets = np.random.default_rng(0), []
    known = rng.integers(3, 200, longest, dtype=np.int32)
    jax.monitoring.register_event_duration_secs_listener(listen)
    while len(tickets) < 80 or not engine.idle:
        for _ in range(rng.integers(0, 4) if len(tickets) < 80 else 0):
            tickets.append(engine.submit(asked(rng, known, longest)))
        engine.step()
    jax.monitoring.unregister_event_duration_listener(listen)
    assert not compiled
    assert engine._pages.available == engine._pages.count - 1


def test_what_it_refuses():
    with pytest.raises(ValueError, match="a cache that grows compiles anew"):
        warm_up(Engine(model(), Limits(rows=4)), 100)
    engine = Engine(model(), Limits(rows=4, page=16, piece=32, positions=1024))
    for longest in (3, 1025):
        with pytest.raises(ValueError, match=f"{longest} positions are to warm up; a request has 4 to"):
            warm_up(engine, longest)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["--warm-up", "512"], "option --warm-up needs --positions: a cache that grows compiles anew"),
        (["--warm-up", "512", "--positions", "256"], "option --warm-up is 512; it must be 0 to 256"),
        (["--warm-up", "-1", "--positions", "256"], "option --warm-up is -1; it must be 0 to 256"),
    ],
)
def test_what_the_server_refuses(tmp_path, capsys, given, told):
    assert main(["serve", str(tmp_path), *given]) == 2
    assert told in capsys.readouterr().err
