"""`ivl3 lab compare`: two plans, or two saved answers, side by side."""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ivl3_jax.cli import UsageError
from ivl3_jax.cli.arguments import parse
from ivl3_jax.cli.lab_cases import Question, Setting

if TYPE_CHECKING:
    from ivl3_jax.lab.answer import Answer

HELP = """Shows what changes between two plans (names, YAML files, or what `ivl3 lab compile --json` wrote), and why.
ivl3 lab compare fsdp_tensor sequence --mesh '{tensor: 4}' --model 8b --topology v5e:16x16 --tokens 8192
"""


@dataclass(frozen=True)
class CompareQuestion(Setting):
    """A model's train step on a slice, under two plans.

    Attributes:
        mesh: sizes of the plans' axes; what is left of the chips goes to fsdp.
        mesh_b: of the second plan's; null is `mesh`.
        rows_per_chip: rows of a step for each chip, may be a fraction; null is a row for each shard of rows.
        rows_per_chip_b: of the second; null is `rows_per_chip`.
        topology_b: of the second; null is `topology`.
    """

    mesh: Mapping[str, int] = field(default_factory=dict)
    mesh_b: Mapping[str, int] | None = None
    rows_per_chip: float | None = None
    rows_per_chip_b: float | None = None
    topology_b: str | None = None

    def first(self, plan: str) -> Question:
        """The question about A."""
        shared = {each.name: getattr(self, each.name) for each in dataclasses.fields(Setting)}
        return Question(**shared, plan=plan, mesh=self.mesh, rows_per_chip=self.rows_per_chip)

    def second(self, plan: str) -> Question:
        """The question about B."""
        return dataclasses.replace(
            self.first(plan),
            mesh=self.mesh if self.mesh_b is None else self.mesh_b,
            rows_per_chip=self.rows_per_chip if self.rows_per_chip_b is None else self.rows_per_chip_b,
            topology=self.topology if self.topology_b is None else self.topology_b,
        )


def run(argv: list[str]) -> int:
    """Prints the comparison; 0 whatever it says."""
    summary, example = HELP.strip().splitlines()
    options = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    sides, rest = argv[:options], argv[options:]
    saved = [side.endswith(".json") for side in sides]
    asks = not sides or not all(saved)
    if asks and ("-h" in rest or "--help" in rest):
        parse(CompareQuestion, ["--help"], prog="ivl3 lab compare A B", description=summary, example=example)
    if len(sides) != 2:
        raise UsageError(f"ivl3 lab compare takes two plans or files before its options, A and B; {len(sides)} given")
    if not asks and rest:
        raise UsageError(f"{rest[0]}: options are for plans that are compiled; {sides[0]} and {sides[1]} are files")
    question = None
    if asks:
        question = parse(CompareQuestion, rest, prog="ivl3 lab compare", description=summary, example=example)
    from ivl3_jax.lab.comparison import compare

    # Mistakes of both are found before one is compiled.
    first, second = (
        _read(side) if known or question is None else _asked(of(question, side))
        for side, known, of in zip(sides, saved, (CompareQuestion.first, CompareQuestion.second), strict=True)
    )
    print(compare(first(), second(), (sides[0], sides[1])))
    return 0


def _read(file: str) -> Callable[[], "Answer"]:
    from ivl3_jax.lab.answer import Answer

    found = Answer.read(file)
    return lambda: found


def _asked(question: Question) -> Callable[[], "Answer"]:
    from ivl3_jax.lab.answer import Answer
    from ivl3_jax.lab.search import predicted

    case, store, constants = question.asked(), question.store(), question.constants()
    return lambda: Answer.of(predicted(case, store, constants))
