"""A prediction as a file: everything that a comparison needs, in JSON."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ivl3_jax.lab.collectives import KINDS, SEND, Collective
from ivl3_jax.lab.prediction import Prediction, summary
from ivl3_jax.lab.reasons import changes

MEASURED = ("rows", "tokens", "tiles", "step_seconds", "mfu", "tokens_per_second_per_chip")
FIELDS = ("case", "memory", "collectives", "versions", "parts", "model", "plan", "mesh", "topology", *MEASURED)
WRITTEN_BY = "it must be a file that `ivl3 lab compile --json` writes"


@dataclass(frozen=True)
class Answer:
    """A saved prediction.

    Attributes:
        figures: as `prediction.summary` has them, with `memory`, bytes of a chip by kind, {} where the compiler gave
            up. case: as `Case.facts` has it. versions: of what compiled it. collectives: of a step.
    """

    figures: Mapping[str, Any]
    case: Mapping[str, Any]
    versions: Mapping[str, str]
    collectives: tuple[Collective, ...]

    @property
    def memory(self) -> dict[str, float]:
        return self.figures["memory"]

    @property
    def parts(self) -> dict[str, float]:
        return self.figures["parts"]

    @classmethod
    def of(cls, found: Prediction) -> "Answer":
        """A prediction that was just made."""
        return cls._from(json.loads(json.dumps(as_json(found))))

    @classmethod
    def read(cls, file: str | Path) -> "Answer":
        """One from a file.

        Raises:
            OSError: it cannot be read. ValueError: it holds something else.
        """
        try:
            found = json.loads(Path(file).read_text(encoding="utf-8"))
        except (UnicodeDecodeError, json.JSONDecodeError) as error:
            raise ValueError(f"{file} is not valid JSON ({error}); {WRITTEN_BY}") from None
        if not isinstance(found, dict) or (missing := [name for name in FIELDS if name not in found]):
            lacks = f"lacks {', '.join(missing)}" if isinstance(found, dict) else "holds no table"
            raise ValueError(f"{file} {lacks}; {WRITTEN_BY}")
        try:
            return cls._from(found)
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{file}: {type(error).__name__}: {error}; {WRITTEN_BY}") from None

    @classmethod
    def _from(cls, found: Mapping[str, Any]) -> "Answer":
        collectives = tuple(Collective(**{**each, "axes": tuple(each["axes"])}) for each in found["collectives"])
        for each in collectives:
            if each.kind not in (*KINDS, SEND) or not each.axes:
                raise ValueError(f"a collective is {each.kind!r} over {list(each.axes)}")
            _numbers(each.kind, [each.count, each.bytes, each.seconds])
        figures = {name: value for name, value in found.items() if name not in ("case", "versions", "collectives")}
        for name in ("memory", "parts"):
            _numbers(name, figures[name].values())
        for name in MEASURED:
            _numbers(name, [figures[name] or 0])
        changes(found["case"], found["case"])  # reads all of it
        return cls(figures, found["case"], found["versions"], collectives)


def _numbers(name: str, values: Iterable[Any]) -> None:
    if any(not isinstance(value, int | float) for value in values):
        raise ValueError(f"{name} holds something else than numbers")


def as_json(found: Prediction) -> dict[str, Any]:
    """A prediction in JSON's types: its summary, memory by kind, the case, versions, and the collectives."""
    memory, timeline = found.compiled.memory, found.timeline
    return {
        **summary(found),
        "memory": {} if memory is None else dataclasses.asdict(memory),
        "case": found.case.facts(),
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "collectives": [] if timeline is None else [dataclasses.asdict(each) for each in timeline.collectives],
    }
