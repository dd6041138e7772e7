"""What a search found, as a page and as a table for spreadsheets."""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivl3_jax.lab.prediction import Prediction, summary
from ivl3_jax.lab.ranking import Plan, ranked
from ivl3_jax.lab.report_page import page


def write_report(
    directory: str | Path,
    predictions: Sequence[Prediction],
    rejected: Sequence[tuple[str, str]],
    facts: Mapping[str, str],
) -> Path:
    """Writes `report.html`, one self-contained page, and `plans.csv`, a row for each compiled plan.

    Args:
        directory: is made where it is missing; older files of these names are replaced.
        predictions: what was compiled, in any order.
        rejected: names of plans that were not compiled, or failed, and why.
        facts: what was asked and how, name -> value, for the head of the page; `held-out error` is told with what the
            prediction is made of.

    Returns:
        The page.

    Raises:
        OSError: the files cannot be written.
    """
    directory = Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    plans = ranked(predictions)
    _write_csv(directory / "plans.csv", plans)
    file = directory / "report.html"
    file.write_text(page(plans, rejected, facts), encoding="utf-8")
    return file


def row(plan: Plan) -> dict[str, Any]:
    """All figures of a plan by the columns of the table."""
    found = plan.found
    told = summary(found)
    parts, busy = told.pop("parts"), told.pop("busy")
    memory = {**found.memory, "total": sum(found.memory.values())} if found.memory else {}
    return {
        "rank": plan.number if plan.fits else None,
        "name": plan.name,
        **told,
        **{f"memory: {kind}, bytes": size for kind, size in memory.items()},
        **{f"step: {part}, seconds": seconds for part, seconds in parts.items()},
        **{f"busy: {lane}, seconds": seconds for lane, seconds in busy.items()},
    }


def _write_csv(file: Path, plans: Sequence[Plan]) -> None:
    rows = [row(plan) for plan in plans]
    columns = list(dict.fromkeys(name for each in rows for name in each))
    columns.sort(key=lambda name: ":" in name)  # parts behind the rest, whichever plan has them first
    with file.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns or ["rank", "name"])
        writer.writeheader()
        writer.writerows(rows)
