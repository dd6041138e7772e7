"""`ivl3 lab search`: the best plan for a model on a slice."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ivl3_jax.cli.arguments import parse
from ivl3_jax.cli.lab_cases import Setting, check_rows
from ivl3_jax.cli.writable import check_directory

if TYPE_CHECKING:
    from ivl3_jax.lab.case import Case
    from ivl3_jax.lab.search import Tried

HELP = """Finds the best plan for a slice: guesses all legal ones, compiles the promising, and writes a report.
ivl3 lab search --model 8b --topology v5e:16x16 --tokens 8192 --tiles 12 --output runs/search
"""


@dataclass(frozen=True)
class SearchQuestion(Setting):
    """A model's train step on a slice.

    Attributes:
        output: a directory that receives report.html, plans.csv and best.yaml.
        plans: those to try; null is all shipped ones.
        coupled: whether plans with the ViT sharded as the decoder are tried too.
        rows: rows for each chip to try; null is one row for each shard of rows, and two, and four.
        most_tokens: of a step, in millions; larger batches are not tried.
        compile: how many plans are compiled, the most promising by the roofline.
        jobs: compilers at a time; each takes a core and up to 4 GiB.
    """

    output: Path = Path("search")
    plans: tuple[str, ...] | None = None
    coupled: bool = False
    rows: tuple[float, ...] | None = None
    most_tokens: float = 64.0
    compile: int = 12
    jobs: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("compile", "jobs"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for rows in self.rows or ():
            check_rows("rows", rows)
        if not self.most_tokens > 0:
            raise ValueError(f"most_tokens is {self.most_tokens}; it must be above 0")


def run(argv: list[str]) -> int:
    """Prints a line for each plan, and where the report is; 1 where no plan fits."""
    summary, example = HELP.strip().splitlines()
    question = parse(SearchQuestion, argv, prog="ivl3 lab search", description=summary, example=example)
    from ivl3_jax.lab.calibration import HELD_OUT
    from ivl3_jax.lab.candidates import ranked
    from ivl3_jax.lab.labels import labels
    from ivl3_jax.lab.report import write_report
    from ivl3_jax.lab.search import search

    every, constants, store = cases(question), question.constants(), question.store()
    check_directory("output", question.output)
    chosen, rejected = ranked(every, most=question.compile, calibration=constants)
    print(f"{len(every):,} plans; {len(chosen)} are compiled, the others cannot be, or promise less", file=sys.stderr)
    promising = [case for case, _ in chosen]
    names = {id(case): name for case, name in zip(promising, labels(promising), strict=True)}

    def tell(tried: "Tried", number: int, count: int) -> None:
        print(f"{number:3}/{count}  {names[id(tried.case)]}: {_said(tried)}", file=sys.stderr, flush=True)

    tried = search(promising, store, calibration=constants, jobs=question.jobs, tell=tell)
    rejected += [(each.case.name, each.failure) for each in tried if each.failure is not None]
    predictions = [each.prediction for each in tried if each.prediction is not None]
    facts = {"model": question.model, "slice": question.topology, "plans": f"{len(every):,}"}
    if constants.changed:
        facts["constants"] = constants.changed
    else:
        facts["held-out error"] = HELD_OUT
    page = write_report(question.output, predictions, rejected, facts)
    best, file = next((each for each in predictions if each.fits), None), question.output / "best.yaml"
    if best is None:
        file.unlink(missing_ok=True)  # of an earlier search
        print(f"no plan fits; the report is {page}")
        return 1
    option, case = f"--rows-per-chip {best.case.rows:.12g}", best.case
    rows = f"{case.batch.tokens} tokens and {case.batch.tiles} tiles a row"
    told = f"# The best that ivl3 lab search found for {case.model} on {case.topology.name}, {rows}, with {option}\n"
    file.write_text(told + case.plan.yaml(), encoding="utf-8")
    print(f"best: {best.case.name}: {best.utilisation:.1%} MFU, {best.rate:,.0f} tokens a second and chip, predicted")
    print(f"{file} is its plan, for ivl3 lab compile with {option}; {page} the report")
    return 0


def cases(question: SearchQuestion) -> list["Case"]:
    """All that is to be looked at.

    Raises:
        ValueError: no plan has such a batch.
    """
    from ivl3_jax.lab.candidates import plans, shipped

    topology, found = question.slice(), []
    for plan in plans(question.plans or shipped(question.coupled), topology):
        shards = plan.size(plan.decoder.activations.get("batch", ()))
        shards *= question.train.accumulate
        for rows in question.rows or tuple(n * shards / topology.chips for n in (1, 2, 4)):
            if rows * topology.chips >= shards and not rows * topology.chips % shards:
                found.append(question.case(plan, rows))
    kept = [case for case in found if case.tokens <= question.most_tokens * 1e6]
    if not kept:
        raise ValueError(_nothing(question, min((case.tokens for case in found), default=None)))
    return kept


def _nothing(question: SearchQuestion, smallest: int | None) -> str:
    """Why no case is left to look at, of which the smallest step has so many tokens."""
    from ivl3_jax.lab.candidates import plans, shipped

    if smallest is not None:
        return f"most_tokens is {question.most_tokens:g}, in millions; the smallest step to try has {smallest:,} tokens"
    topology, parts = question.slice(), question.train.accumulate
    every = plans(question.plans or shipped(question.coupled), topology)
    needed = {parts * plan.size(plan.decoder.activations.get("batch", ())) / topology.chips for plan in every}
    if not needed or question.rows is None:
        return f"no plan of {', '.join(question.plans or ['all shipped'])} has a mesh of the chips of {topology.name}"
    given = ", ".join(f"{rows:g}" for rows in question.rows)
    return f"rows is {given} for each chip, which no plan can spread evenly; multiples of {min(needed):g} can be"


def _said(tried: "Tried") -> str:
    """What came of a case, in a few words."""
    found = tried.prediction
    if found is None:
        return f"failed: {tried.failure}"
    kept = "kept" if tried.known else f"{tried.seconds:.0f} s"
    if found.rate is None or not found.fits:
        return f"does not fit  [{kept}]"
    memory = found.compiled.memory
    used = 0.0 if memory is None else memory.total / 2**30
    return f"{found.utilisation:.1%} MFU  {found.rate:,.0f} tokens/s a chip  {used:.1f} GiB  [{kept}]"
