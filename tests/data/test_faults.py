"""Every bad sample of docs/faults.md through a loader: refused with its place and reason, or left out and counted."""

import os
import re
from pathlib import Path

import pytest

from ivl3_jax.batch import IGNORE
from ivl3_jax.cli.mistakes import explain
from ivl3_jax.data import Fault, Loader, open_source
from ivl3_jax.data.faults import REASONS, FaultPolicy
from ivl3_jax.data.settings import DataRecipe, open_feed
from ivl3_jax.data.shards import ShardSource
from ivl3_jax.data.sources import Conversations
from tests.data.bad_files import CASES
from tests.data.bad_meta import REFUSED, prepare
from tests.data.bad_samples import BAD_LINE, GOOD
from tests.data.odd_samples import ODD
from tests.data.toys import feed

PAGE = (Path(__file__).parents[2] / "docs/faults.md").read_text()


def rows(title):
    """The cells of each row of a section's table, without the quotes of messages."""
    section = PAGE.partition(f"\n## {title}\n")[2].partition("\n## ")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in lines[1:]]
    return [tuple(cell.strip().strip("`").strip().replace("\\|", "|") for cell in row) for row in cells]


def test_the_page_lists_every_case():
    assert rows("Bad samples") == [(name, case.reason, case.told) for name, case in CASES.items()]
    assert rows("Taken as they are") == [(name, case.becomes) for name, case in ODD.items()]
    assert rows("Refused at the start") == [(name, case.told) for name, case in REFUSED.items()]
    reasons = re.findall(r"^\| `(\w+)` \| (.+) \|$", PAGE, re.MULTILINE)
    assert dict(reasons) == REASONS
    assert set(REASONS) == {case.reason for case in CASES.values()}


def pattern(told):
    return re.escape(told).replace("…", ".*")


def expected(case, spec, source):
    """What a message about the bad sample of a source matches."""
    place = f"{spec.annotation}/00000.array_record" if isinstance(source, ShardSource) else spec.annotation
    return rf"{re.escape(place)}:{BAD_LINE}( \(.*?\))?: ({re.escape(spec.root)}/)?{pattern(case.told)}"


def answers(processor, loader):
    """What each sample that the loader gives is trained to say."""
    found = []
    for batch in loader:
        for row in range(len(batch.tokens)):
            for segment in range(1, batch.segment_ids[row].max() + 1):
                labels = batch.labels[row][batch.segment_ids[row] == segment]
                found.append(processor.tokenizer.decode(labels[labels != IGNORE]))
    return sorted(found)


def test_a_message_is_one_short_line():
    fault = Fault("image", "a.jsonl:1: a\n\x1b[31m\ud800\u2028é.png" + "x" * 10**6 + ": no such image file")
    assert str(fault).startswith(r"a.jsonl:1: a\n\x1b[31m\ud800\u2028é.png")
    assert str(fault).endswith("xx: no such image file") and len(str(fault)) < 1100 and str(fault).isprintable()


@pytest.fixture(params=CASES)
def case(request, tmp_path):
    case = CASES[request.param]
    spec = case.write(tmp_path)
    if request.param == "a file that may not be read" and os.access(tmp_path / "a.png", os.R_OK):
        pytest.skip("this user may read everything")
    return case, spec


def test_a_bad_sample(case, processor):
    case, spec = case
    source = open_source(spec)
    given = Conversations(source) if case.supervised else source

    def loader(action):
        return Loader(feed(processor, given, exhausted="drop", faults=FaultPolicy(action, most=1)))

    with pytest.raises(Fault) as raised:
        list(loader("raise"))
    assert raised.value.reason == case.reason, raised.value
    assert re.fullmatch(expected(case, spec, source), str(raised.value)), raised.value
    assert str(raised.value).isprintable()
    skipping = loader("skip")
    assert answers(processor, skipping) == [f"good {number}" for number in range(GOOD)]
    assert skipping.skipped == {case.reason: 1}
    assert [tuple(skip) for skip in skipping.take_skips()] == [(case.reason, str(raised.value))]


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("name", ODD)
def test_what_only_looks_bad_is_taken(name, tmp_path, processor):
    source = open_source(ODD[name].write(tmp_path))
    loader = Loader(feed(processor, source, exhausted="drop"))
    assert answers(processor, loader) == sorted([*(f"good {number}" for number in range(GOOD)), *ODD[name].answers])


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_at_the_start(name, tmp_path, processor, monkeypatch):
    case = REFUSED[name]
    prepare(tmp_path)
    (tmp_path / "meta.json").write_bytes(case.content)
    case.spoil(tmp_path)
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)) as raised:
        open_feed(DataRecipe(meta=["meta.json"], **case.settings), processor, seed=0)
    assert re.fullmatch(pattern(case.told), explain(raised.value)), raised.value
