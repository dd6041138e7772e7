"""The loader: the same rows with any number of hosts and workers, from the start or gone on from any point."""

import dataclasses
import json
from itertools import islice

import numpy as np
import pytest

from ivl3_jax.batch import IGNORE, Batch
from ivl3_jax.data import Encoder, Message, Sample
from ivl3_jax.data.faults import Fault, FaultPolicy
from ivl3_jax.data.loader import Loader, share
from ivl3_jax.data.prefetch import prefetch
from tests.data.pictures import picture
from tests.data.toys import Listed, Toys, feed

SOURCES = Toys("a", 60), Toys("b", 25, pictures=2, pairs=4, number=1)
ROWS = 12


def take(loader, count):
    found = list(islice(loader, count))
    loader.close()
    return found


def same(first, second):
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        for name, x, y in zip(Batch._fields, a, b, strict=True):
            np.testing.assert_array_equal(x, y, err_msg=name)


def joined(parts):
    """Batches of several hosts as one."""
    return [Batch(*map(np.concatenate, zip(*batches, strict=True))) for batches in zip(*parts, strict=True)]


@pytest.fixture(scope="module")
def expected(processor):
    return take(Loader(feed(processor, *SOURCES, streams=ROWS)), 6)


@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_change_nothing(processor, expected, hosts):
    parts = [
        take(Loader(feed(processor, *SOURCES, streams=ROWS), streams=share(ROWS, h, hosts)), 6) for h in range(hosts)
    ]
    same(joined(parts), expected)


@pytest.mark.slow
@pytest.mark.parametrize(("hosts", "workers"), [(1, 1), (1, 3), (2, 4), (4, 2)])
def test_workers_change_nothing(processor, expected, hosts, workers):
    loaders = [
        Loader(feed(processor, *SOURCES, streams=ROWS), streams=share(ROWS, h, hosts), workers=workers)
        for h in range(hosts)
    ]
    same(joined([take(loader, 6) for loader in loaders]), expected)


@pytest.mark.parametrize("stop", [1, 2, 5])
def test_going_on_from_any_batch(processor, expected, stop):
    loader = Loader(feed(processor, *SOURCES, streams=ROWS))
    first = list(islice(loader, stop))
    state = json.loads(json.dumps(loader.state))
    loader.close()
    same(first + take(Loader(feed(processor, *SOURCES, streams=ROWS), state=state), 6 - stop), expected)


@pytest.mark.slow
def test_going_on_with_other_hosts_and_workers(processor, expected):
    states = {"streams": {}}
    for host in range(4):
        loader = Loader(feed(processor, *SOURCES, streams=ROWS), streams=share(ROWS, host, 4))
        next(loader), next(loader)
        states = {"of": loader.state["of"], "streams": states["streams"] | loader.state["streams"]}
        loader.close()
    whole = feed(processor, *SOURCES, streams=ROWS)
    parts = [take(Loader(whole, streams=share(ROWS, h, 3), workers=2, state=states), 4) for h in range(3)]
    same(joined(parts), expected[2:])


def test_a_state_is_small(processor):
    loader = Loader(feed(processor, *SOURCES, streams=2))
    next(loader)
    assert len(json.dumps(loader.state)) < 4000
    loader.close()


def test_a_state_of_something_else_is_refused(processor):
    ours = feed(processor, *SOURCES)
    loader = Loader(ours)
    state = loader.state
    loader.close()
    for other, words in (
        (feed(processor, *SOURCES, seed=1), "its seed is 0, here it is 1"),
        (feed(processor, *SOURCES, budget=(150, 8, 8)), r"its budget is \[200, 8, 8\], here it is \[150, 8, 8\]"),
        (feed(processor, SOURCES[0]), "its sources is"),
        (dataclasses.replace(ours, parts=ours.parts[::-1]), "its sources is"),
        (dataclasses.replace(ours, mixture=dataclasses.replace(ours.mixture, passes=(2, 1, 1))), "its passes is"),
    ):
        with pytest.raises(ValueError, match=f"the data's state is of another feed: {words}"):
            Loader(other, state=state)
    with pytest.raises(ValueError, match=r"has the keys \['of'\]; Loader.state has 'of' and 'streams'"):
        Loader(ours, state={"of": state["of"]})
    del state["streams"]["3"]
    with pytest.raises(ValueError, match=r"lacks the streams \[3\]; it must have those of all hosts"):
        Loader(feed(processor, *SOURCES), state=state)


def test_numbers_that_do_not_fit(processor):
    with pytest.raises(ValueError, match=r"4 rows in a batch and 3 hosts; the hosts must be one of \[1, 2, 4\]"):
        share(4, 0, 3)
    for name, value in (("workers", -1), ("ahead", 0)):
        with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least {value + 1}"):
            Loader(feed(processor, *SOURCES), **{name: value})
    with pytest.raises(ValueError, match="the host is number 2 of 2; it must lie in 0..1"):
        share(4, 2, 2)
    with pytest.raises(ValueError, match=r"the streams are \[0, 4\]; they must be ascending and lie in 0..3"):
        Loader(feed(processor, *SOURCES), streams=[0, 4])
    with pytest.raises(ValueError, match="hosts' data would end at different steps"):
        Loader(feed(processor, *SOURCES, exhausted="drop"), streams=[0, 1])


def answers(batch):
    """What is trained on in each segment: its source, and its labels without the end of the turn."""
    for row in range(len(batch.tokens)):
        for segment in range(1, batch.segment_ids[row].max() + 1):
            labels = batch.labels[row][batch.segment_ids[row] == segment]
            yield int(batch.source_id[row, segment - 1]), labels[labels != IGNORE][:-1]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_pass_has_every_sample_once(processor, workers):
    loader = Loader(feed(processor, Toys("a", 40), Toys("b", 17, number=1), exhausted="drop"), workers=workers)
    found = [
        (source, int(processor.tokenizer.decode(labels)[:5])) for batch in loader for source, labels in answers(batch)
    ]
    assert sorted(found) == [(0, i) for i in range(40)] + [(1, i) for i in range(17)]


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_closed_loader_has_no_more_batches(processor, workers):
    loader = Loader(feed(processor, *SOURCES), workers=workers)
    next(loader)
    loader.close()
    assert list(loader) == []


def test_budgets_hold_and_rows_are_full(processor):
    batches = take(Loader(feed(processor, *SOURCES, streams=2)), 20)
    assert all(batch.tokens.shape == (2, 200) and batch.tiles.shape == (2, 8, 56, 56, 3) for batch in batches)
    filled = np.mean([batch.segment_ids > 0 for batch in batches])
    assert filled > 0.9


def test_pairs_are_whole_and_share_their_tiles(processor):
    pairs = 0
    for batch in take(Loader(feed(processor, Toys("p", 30, pictures=1, pairs=1), streams=1)), 10):
        ids, chosen = batch.pair_id[0], batch.chosen[0]
        for pair in set(ids[ids >= 0]):
            first, second = np.flatnonzero(ids == pair)
            assert (chosen[first], chosen[second], second) == (True, False, first + 1)
            visual = [set(batch.visual_index[0][batch.segment_ids[0] == s + 1]) - {-1} for s in (first, second)]
            assert visual[0] == visual[1] != set()
            pairs += 1
    assert pairs > 10


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_bad_sample_ends_the_run(processor, workers):
    loader = Loader(feed(processor, Toys("a", 50, bad=10)), workers=workers)
    with pytest.raises(Fault, match=r"a:\d+: is bad") as caught:
        list(islice(loader, 10))
    assert caught.value.reason == "line"
    loader.close()


def test_bad_samples_are_skipped_and_counted(processor):
    settings = {"faults": FaultPolicy("skip", most=0.2), "exhausted": "drop"}
    loader = Loader(feed(processor, Toys("a", 50, bad=10), **settings))
    found = sum(len(list(answers(batch))) for batch in loader)
    assert found == 45
    assert loader.skipped == {"line": 5}
    assert sorted(skip.message for skip in loader.take_skips())[0] == "a:12: is bad"
    assert loader.take_skips() == []


def test_too_many_bad_samples_end_the_run(processor):
    faults = FaultPolicy("skip", most=0.05, grace=20)
    loader = Loader(feed(processor, Toys("a", 50, bad=3), faults=faults, streams=1))
    with pytest.raises(ValueError, match=r"\d of \d+ samples were skipped, more than the fraction of 0.05 .* is bad"):
        list(islice(loader, 30))
    faults = FaultPolicy("skip", most=1.0, grace=20)  # never ready, and must not go on for ever
    with pytest.raises(ValueError, match="21 of 21 samples were skipped"):
        next(Loader(feed(processor, Toys("a", 50, bad=1), faults=faults, streams=1)))
    with pytest.raises(ValueError, match="the policy for faults is 'ignore'; it must be raise or skip"):
        FaultPolicy("ignore")
    with pytest.raises(ValueError, match=r"is 2; it must lie in 0..1"):
        FaultPolicy("skip", most=2)


def test_pieces_count_for_themselves(processor, tmp_path):
    """Of a sample in pieces some may be good, and each of the others is told."""
    whole, cut = tmp_path / "whole.jpg", tmp_path / "cut.jpg"
    picture(40, 40).save(whole)
    cut.write_bytes(whole.read_bytes()[:-300])
    turns = (Message("user", f"<image>{'x' * 50}" * 3), Message("assistant", "7"))
    sample = Sample(turns, tuple(map(str, (whole, cut, cut))), where="a:1")
    encoder = Encoder(processor, 40, 8, too_long="split")
    units = encoder.measure(sample, np.random.default_rng(0))
    assert sum(any(visual.source == str(cut) for visual in unit.visuals) for unit in units) == 2
    settings = {"encoder": encoder, "budget": (40, 8, 8), "faults": FaultPolicy("skip", most=1), "exhausted": "drop"}
    loader = Loader(feed(processor, Listed((sample,)), streams=1, **settings))
    given = sum(int(batch.segment_ids.max()) for batch in loader)
    assert (given, loader.skipped) == (len(units) - 2, {"image": 2})
    assert loader.state["streams"]["0"]["drawn"] == len(units)


@pytest.mark.long
def test_too_many_pieces_are_a_fault(processor):
    turns = (Message("user", "x" * 600_000), Message("assistant", "7"))
    encoder = Encoder(processor, 100, 8, too_long="split")
    source = Listed((Sample(turns, where="a:1"),))
    with pytest.raises(Fault, match=r"^a:1: makes \d+ pieces; a sample may make 4096") as raised:
        next(Loader(feed(processor, source, streams=1, encoder=encoder, budget=(100, 8, 8))))
    assert raised.value.reason == "tokens"


def test_a_sample_that_changed_is_told(processor):
    loader = Loader(feed(processor, Toys("a", 60)))
    next(loader)
    state = loader.state
    loader.close()
    other = Loader(feed(processor, Toys("a", 60, pictures=1)), state=state)
    with pytest.raises(ValueError, match=r"a:\d+ has changed since the state was saved"):
        list(islice(other, 5))


def test_a_late_start_draws_nothing_before(processor, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        Toys, "__getitem__", lambda self, index, get=Toys.__getitem__: drawn.append(index) or get(self, index)
    )
    state = Loader(feed(processor, Toys("a", 10**9), streams=1)).state
    drawn.clear()
    state["streams"]["0"]["next"] = 10**9
    loader = Loader(feed(processor, Toys("a", 10**9), streams=1), state=state, ahead=1)
    next(loader)
    loader.close()
    assert len(drawn) < 200


def test_prefetch_keeps_the_order_and_passes_errors():
    assert list(prefetch(iter(range(10)), 3)) == list(range(10))
    items = prefetch((1 // (3 - i) for i in range(5)), 2)
    assert [next(items), next(items), next(items)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(items)
