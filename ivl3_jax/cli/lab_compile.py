"""`ivl3 lab compile`: one plan on one slice."""

import json
from dataclasses import dataclass
from pathlib import Path

from ivl3_jax.cli.arguments import parse
from ivl3_jax.cli.lab_cases import Question
from ivl3_jax.cli.writable import check_file

HELP = """Compiles the train step for a slice, and predicts memory, collectives and time from what the compiler made.
ivl3 lab compile --model 8b --plan fsdp_tensor --mesh '{tensor: 4}' --topology v5p:4x4x4 --tokens 16384 --tiles 24
"""


@dataclass(frozen=True)
class CompileQuestion(Question):
    """A model's train step on a slice.

    Attributes:
        text: a file for the scheduled module, in HLO.
        json: a file for the figures and the collectives, which `ivl3 lab compare` reads.
    """

    text: Path | None = None
    json: Path | None = None


def run(argv: list[str]) -> int:
    """Prints what is found; 1 where the step does not fit."""
    summary, example = HELP.strip().splitlines()
    question = parse(CompileQuestion, argv, prog="ivl3 lab compile", description=summary, example=example)
    from ivl3_jax.lab.answer import as_json
    from ivl3_jax.lab.search import predicted
    from ivl3_jax.lab.telling import tell

    case, constants = question.asked(), question.constants()
    check_file("text", question.text)
    check_file("json", question.json)
    found = predicted(case, question.store(), constants)
    if question.text:
        question.text.write_text(found.compiled.text, encoding="utf-8")
    if question.json:
        question.json.write_text(json.dumps(as_json(found), indent=1) + "\n", encoding="utf-8")
    print(tell(found))  # last, as its reader may go away
    return 0 if found.fits else 1
