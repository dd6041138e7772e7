"""The report of a search: what is on the page and in the table, for many plans, few and none."""

import csv
import dataclasses
import re
from html.parser import HTMLParser

import pytest

from ivl3_jax.lab.layer_picture import layer_loops, layer_picture
from ivl3_jax.lab.pictures import front, scatter, ticks
from ivl3_jax.lab.ranking import ranked
from ivl3_jax.lab.report import write_report
from tests.lab.predictions import BACKWARD, FACTS, FORWARD, case, collective, lacking, layer, prediction, timeline

VOID = {"meta", "br"}
FOUND = [
    prediction(case("sequence", tensor=2), timeline(collective("all-gather", "fsdp"), seconds=0.2), 2.5),
    prediction(case(), timeline(collective("all-reduce", "fsdp"), seconds=0.25), 4.0),
    prediction(case(remat="none"), None, shortage=lacking()),
    prediction(case(rows=4), timeline(seconds=0.9), 18.0, lacking(18.0)),
]
REJECTED = [("fsdp_tensor (tensor 4)", "heads = 14 <do> not divide"), *((f"plan {n}", f"{n} GiB") for n in range(300))]


class Page(HTMLParser):
    """Tags that are closed as they were opened, and what the page would fetch."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = [], [], ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert not {"src", "href", "onclick"} & {name for name, _ in attrs}, (tag, attrs)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data if self.open and self.open[-1] != "style" else ""


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    file = write_report(tmp_path_factory.mktemp("report") / "new", FOUND, REJECTED, FACTS)
    return file, Page(file.read_text(encoding="utf-8"))


def test_the_page_is_whole_and_fetches_nothing(report):
    file, page = report
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert "url(" not in file.read_text() and "http" not in file.read_text()


def test_what_the_page_says(report):
    _, page = report
    for words in (
        "InternVL3-1B on v5e:4x4",
        "fsdp (fsdp 16), 1 row a chip, remat full is the best plan: 8,192 tokens a second and chip",
        "No TPU took part",
        "Error on published runs that no constant was fitted on: mean 11%",
        "Ran out of memory <on> HBM",
        "29.96 GiB wanted, 14.21 more than there is",
        "heads = 14 <do> not divide",
        "300: … GiB",
        "and 100 more",
        "all-gather fsdp 8.0 MiB",
        "4 plans compiled, 2 fit, 301 left out before",
    ):
        assert words in page.text, words


def test_order(report):
    assert [(plan.number, plan.fits) for plan in ranked(FOUND)] == [(1, True), (2, True), (3, False), (4, False)]
    assert [plan.found for plan in ranked(FOUND)][:2] == [FOUND[1], FOUND[0]]  # by tokens, not by steps


def test_the_table(report):
    file, _ = report
    with (file.parent / "plans.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == len(FOUND)
    assert (rows[0]["rank"], rows[0]["plan"], rows[0]["mesh"]) == ("1", "fsdp", "fsdp 16")
    assert float(rows[0]["step: products, seconds"]) == pytest.approx(0.15)
    assert int(rows[0]["memory: total, bytes"]) == 4 * 2**30
    assert {row["rank"] for row in rows[2:]} == {""}
    assert any(row["shortage"].startswith("RESOURCE_EXHAUSTED") for row in rows)


def test_nothing_fits(tmp_path):
    page = Page(write_report(tmp_path, [FOUND[2]], [], {}).read_text())
    assert "No plan fits." in page.text


def test_nothing_was_compiled(tmp_path):
    page = Page(write_report(tmp_path, [], REJECTED[:1], {}).read_text())
    assert "No plan was compiled" in page.text
    assert (tmp_path / "plans.csv").read_text().strip() == "rank,name"


def test_many_plans(tmp_path):
    many = [
        prediction(case(rows=1 + n % 4), timeline(collective("all-gather", "fsdp"), seconds=0.2 + n / 100), 2 + n / 4)
        for n in range(40)
    ]
    page = Page(write_report(tmp_path, many, [], {}).read_text())
    assert page.text.count("28 more") == 2
    assert page.tags.count("circle") == 40


def test_the_front():
    assert front([(4, 10), (2, 8), (3, 7), (5, 10), (1, 5)]) == [4, 1, 0]
    assert front([]) == []


def test_points_that_lie_together_keep_their_circles():
    drawn = scatter([(4, 100)] * 30, ["plan"] * 30, [str(n) for n in range(30)], 16)
    assert drawn.count("<circle") == 30
    assert 1 <= drawn.count('class="point"') < 30


@pytest.mark.parametrize(("low", "high"), [(0, 15.75), (5965, 7778), (3, 3), (0, 0), (0.0001, 0.0009)])
def test_ticks_reach_around(low, high):
    found = ticks(low, high)
    assert found[0] <= low and found[-1] >= high
    assert 2 <= len(found) <= 14


def test_a_layer():
    found = layer_loops(timeline(loops=(layer("jit(step)/jvp(vision)/layers/while"), layer(BACKWARD), layer(FORWARD))))
    assert [loop.scope for loop in found] == [FORWARD, BACKWARD]
    drawn = layer_picture(found[0])
    assert re.findall(r'class="lane-name"[^>]*>([^<]*)', drawn) == ["compute", "links (ICI)", "HBM moves (DMA)"]
    assert re.findall(r'class="told"[^>]*>([^<]*)', drawn) == ["all-reduce tensor 4.0 MiB", "all-gather fsdp 8.0 MiB"]
    assert layer_loops(timeline(loops=())) == []


def test_the_layer_within_a_pipeline_and_around_a_ring():
    around = dataclasses.replace(layer(), seconds=0.1, trips=99)
    ring = dataclasses.replace(
        layer(), seconds=1e-5, events=(dataclasses.replace(layer().events[0], place="attention"),)
    )
    assert layer_loops(timeline(loops=(ring, layer(), around))) == [layer()]
