"""`ivl3 data inspect`: what training would see of a data set, as a page, as figures, and in the terminal."""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse
from ivl3_jax.training.config import Recipe

if TYPE_CHECKING:
    from ivl3_jax.data.inspection_report import Report

HELP = """Shows what training would see: counts, packing, bad samples, pictures of packed rows.
ivl3 data inspect meta.json --model InternVL3-1B-hf --tokens 16384 --tiles 48
"""

FIGURES = ".figures.json"  # in place of .html; a plain .json might be the meta file
SHOWN = 3  # messages of each reason in the terminal


@dataclass(frozen=True, kw_only=True)
class Inspection(Recipe):
    """A recipe as for `ivl3 train`, of which the model's processor, the data and the seed count, and what is looked at.

    Attributes:
        output: of a training run; nothing is written there.
        samples: how many are drawn, in training's order, to be measured and packed into rows.
        all: look at every other sample too, source after source, so that all bad ones are found.
        decode: decode the pixels of each sample, not of the rows shown alone: damage behind headers is found.
        pictures: how many packed rows, the first of training, the page shows.
        page: the HTML file to write; the figures go beside it, into a file that ends in .figures.json instead.
    """

    output: str = ""
    samples: int = 10_000
    all: bool = False
    decode: bool = False
    pictures: int = 4
    page: str = "inspection.html"

    def __post_init__(self) -> None:
        for name, least in (("samples", 1), ("pictures", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if Path(self.page).suffix.lower() not in (".html", ".htm"):
            raise ValueError(f"page is {self.page!r}; it must be a file name that ends in .html")


def run(argv: list[str]) -> int:
    """Looks, writes the page and the figures, prints a summary; returns 0."""
    if not any(token.startswith(("--model", "--config", "--help", "-h")) for token in argv):
        raise UsageError(
            "--model is missing: a checkpoint directory, whose tokenizer and limits of tiles count; or --config with a "
            "recipe of ivl3 train"
        )
    chosen = parse(
        Inspection,
        as_recipe(argv),
        prog="ivl3 data inspect",
        description="Draws samples and packs them as `ivl3 train` would, with the same options and recipes. META ... "
        "stands for --data.meta, --model DIR for --model.checkpoint, and --data. may be left out of its options.",
        example="ivl3 data inspect meta.json --model InternVL3-1B-hf --tokens 16384 --tiles 48",
    )
    page = Path(chosen.page)
    if not page.parent.is_dir():
        raise UsageError(f"page is {chosen.page!r}, but there is no directory {str(page.parent)!r}")
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TimeRemainingColumn

    from ivl3_jax.data.files import replacing
    from ivl3_jax.data.inspection import inspect, open_with_pairs
    from ivl3_jax.data.inspection_page import page as drawn
    from ivl3_jax.training.processor import check_room, open_config, open_processor

    processor = open_processor(chosen.model)
    check_room(chosen.data, open_config(chosen.model))
    feed, unopened = open_with_pairs(chosen.data, processor, chosen.train.seed)
    columns = BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress("{task.description}", *columns, console=Console(stderr=True)) as progress:
        tasks: dict[str, TaskID] = {}

        def show(what: str, done: int, there_are: int) -> None:
            if what not in tasks:
                tasks[what] = progress.add_task(what, total=there_are)
            progress.update(tasks[what], completed=done)

        report = inspect(
            feed,
            draws=chosen.samples,
            everything=chosen.all,
            decode=chosen.decode,
            pictures=chosen.pictures,
            say=show,
        )
        for task in progress.tasks:
            progress.update(task.id, total=task.completed)
    report.unopened, report.about = unopened, about(chosen)
    figures = page.with_suffix(FIGURES)
    for file, content in (
        (page, drawn(report, processor)),
        (figures, json.dumps(report.to_json(), indent=2, ensure_ascii=False) + "\n"),
    ):
        with replacing(file) as stream:
            stream.write(content.encode(errors="backslashreplace"))
    tell(report)
    print(f"written: {page}, {figures}")
    return 0


def as_recipe(argv: Sequence[str]) -> list[str]:
    """The command line as `ivl3 train` takes it: META ... becomes --data.meta, and --NAME of the data --data.NAME."""
    from ivl3_jax.data.settings import DataRecipe

    files = 0
    while files < len(argv) and not argv[files].startswith("-"):
        files += 1
    spelled = [f"--data.meta={json.dumps(list(argv[:files]))}"] if files else []
    ours = {field.name for field in dataclasses.fields(DataRecipe)}
    for token in argv[files:]:
        name, equals, text = token.partition("=")
        first = name.removeprefix("--").replace("-", "_").partition(".")[0]
        if token.startswith("--") and first in ours:
            token = f"--data.{name[2:]}{equals}{text}"
        spelled.append(token)
    return _with_checkpoint(spelled)


def _with_checkpoint(argv: list[str]) -> list[str]:
    """`--model DIR` as --model.checkpoint; a file that stands there holds the settings of the model, as for train."""
    spelled = list(argv)
    for place, token in enumerate(argv):
        name, equals, text = token.partition("=")
        following = text if equals else argv[place + 1] if place + 1 < len(argv) else ""
        if name == "--model" and not Path(following).is_file() and not following.startswith("{"):
            spelled[place] = f"--model.checkpoint{equals}{text}"
    return spelled


def about(chosen: Inspection) -> dict[str, str]:
    """What was looked at, for the reader of a report."""
    data, model = chosen.data, chosen.model
    return {
        "data": ", ".join(data.meta) if data.meta else str(data.annotation),
        "model": str(model.checkpoint or model.size),
        "row": f"{data.tokens:,} tokens, {data.tiles:,} tiles, {data.segments:,} segments",
        "rows in a batch": f"{data.rows:,}",
        "seed": str(chosen.train.seed),
        "weighting": data.weighting,
        "too long": data.too_long,
        "too many tiles": data.too_many_tiles,
        "faults": data.faults.action,
    }


def tell(report: "Report") -> None:
    """Prints a report: its sources, its rows, the bad samples, what stands out."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ivl3_jax.data.markup import visible

    console = Console()

    def say(text: str, style: str = "") -> None:
        console.print(Text(visible(text)), style=style, soft_wrap=True)

    say(
        f"{report.about['data']}: {report.samples:,} samples, {report.looked_at:,} looked at, {report.skipped:,} bad",
        "bold",
    )
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in ("source", "samples", "draws", "looked at", "bad", "tokens", "learned", "tiles"):
        table.add_column(column, justify="left" if column == "source" else "right", overflow="fold")
    for source in report.sources:
        measured = max(1, source.measured)
        cells = [f"{source.samples:,}", f"{source.share:.1%}", f"{source.looked_at:,}", f"{source.skipped:,}"]
        cells += [f"{total / measured:,.1f}" for total in (source.tokens, source.learned, source.tiles)]
        table.add_row(Text(visible(source.name)), *cells, style="" if source.measured else "red")
    console.print(table)
    if kinds := ", ".join(f"{kind} {count:,}" for kind, count in report.kinds.items() if count):
        say(f"kinds: {kinds}")
    for name in ("tokens", "tiles"):
        if (drawn := report.histograms[name]).values:
            median, high, most = drawn.quantile(0.5), drawn.quantile(0.95), max(drawn.values)
            say(f"{name} of a sample: median {median:,}, 95% up to {high:,}, most {most:,}")
    if report.split:
        say(f"split into pieces: {report.split:,} samples")
    if report.rows:
        fills, limits = report.fills, report.limited_by
        limited = ", ".join(f"{name} {count:,}" for name, count in limits.items() if count)
        samples = sum(row.samples for row in report.rows) / len(report.rows)
        say(
            f"{len(report.rows):,} rows of {samples:.1f} samples: {fills['tokens']:.1%} of the tokens filled, "
            f"{fills['tiles']:.1%} of the tiles; limited by {limited}"
        )
    for reason, skips in report.by_reason.items():
        say(f"bad, {reason}: {skips.count:,}", "bold")
        for message in skips.first[:SHOWN]:
            say(f"  {' '.join(message.split())}")
        if skips.count > SHOWN:
            say(f"  and {skips.count - SHOWN:,} more")
    for finding in report.findings:
        say(finding, "yellow")
