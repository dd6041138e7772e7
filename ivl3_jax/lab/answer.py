"""A prediction as a file: everything that a comparison needs, in JSON."""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ivl3_jax.data.json_values import parse_json, shown
from ivl3_jax.lab.collectives import KINDS, SEND, Collective
from ivl3_jax.lab.places import COMPONENTS
from ivl3_jax.lab.prediction import Prediction, summary
from ivl3_jax.lab.reasons import changes
from ivl3_jax.sharding.axes import MESH_AXES

COUNTS = ("rows", "tokens", "tiles")
MEASURED = ("step_seconds", "mfu", "tokens_per_second_per_chip")  # null where there is no schedule
NAMES = ("model", "plan", "mesh", "topology")
FIELDS = ("case", "memory", "collectives", "versions", "parts", *NAMES, *COUNTS, *MEASURED)
APART = ("case", "versions", "constants", "collectives")
LARGEST = 1e100  # so that products of two are numbers still; the comparison with it refuses NaN too
WRITTEN_BY = "it must be a file that `ivl3 lab compile --json` writes"


@dataclass(frozen=True)
class Answer:
    """A saved prediction.

    Attributes:
        figures: as `prediction.summary` has them, with `memory`, bytes of a chip by kind, {} where the compiler gave
            up. case: as `Case.facts` has it. versions: of what compiled it. constants: of the `Calibration`, {} where
            the file does not state them. collectives: of a step.
    """

    figures: Mapping[str, Any]
    case: Mapping[str, Any]
    versions: Mapping[str, str]
    constants: Mapping[str, float]
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
            found = parse_json(Path(file).read_bytes())
        except ValueError as error:
            raise ValueError(f"{file} is not valid JSON ({error}); {WRITTEN_BY}") from None
        if not isinstance(found, dict) or (missing := [name for name in FIELDS if name not in found]):
            lacks = f"lacks {', '.join(missing)}" if isinstance(found, dict) else "holds no table"
            raise ValueError(f"{file} {lacks}; {WRITTEN_BY}")
        try:
            return cls._from(found)
        except ValueError as error:
            raise ValueError(f"{file}: {error}; {WRITTEN_BY}") from None
        except (TypeError, KeyError, AttributeError, RecursionError) as error:
            raise ValueError(f"{file}: {type(error).__name__}: {error}; {WRITTEN_BY}") from None

    @classmethod
    def _from(cls, found: Mapping[str, Any]) -> "Answer":
        collectives = tuple(Collective(**{**each, "axes": tuple(each["axes"])}) for each in found["collectives"])
        for each in collectives:
            if each.kind not in (*KINDS, SEND) or not each.axes or not set(each.axes) <= set(MESH_AXES):
                raise ValueError(f"a collective is {shown(each.kind)} over {shown(list(each.axes))}")
            where = f"a collective, {each.kind},"
            _numbers(where, {"count": each.count, "bytes": each.bytes, "seconds": each.seconds})
            if each.count <= 0:
                raise ValueError(f"{where} has count = {each.count}; it must be above 0")
            _texts(where, {"place": each.place})
        figures = {name: value for name, value in found.items() if name not in APART}
        constants = found.get("constants", {})
        for name in ("memory", "parts"):
            _numbers(name, figures[name])
        _numbers("constants", constants)
        _texts("versions", found["versions"])
        _texts("the file", {name: figures[name] for name in NAMES})
        _numbers("the file", {name: figures[name] for name in COUNTS})
        _numbers("the file", {name: figures[name] for name in MEASURED if figures[name] is not None})
        changes(found["case"], found["case"])  # reads all of it
        if unknown := [part for part in found["case"]["plan"]["remat"] if part not in COMPONENTS]:
            raise ValueError(f"case.plan.remat has {shown(unknown[0])}; known there: {', '.join(COMPONENTS)}")
        return cls(figures, found["case"], found["versions"], constants, collectives)


def _numbers(where: str, found: Any) -> None:
    for name, value in _table(where, found):
        if type(value) not in (int, float) or not abs(value) <= LARGEST:
            raise ValueError(f"{where} has {name} = {shown(value)}; it must be a number of at most {LARGEST:g}")


def _texts(where: str, found: Any) -> None:
    for name, value in _table(where, found):
        if not isinstance(value, str):
            raise ValueError(f"{where} has {name} = {shown(value)}; it must be text")


def _table(where: str, found: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(found, dict):
        raise ValueError(f"{where} is {shown(found)}; it must be a table")
    return found.items()


def as_json(found: Prediction) -> dict[str, Any]:
    """A prediction in JSON's types: its summary, memory by kind, the case, versions, and the collectives."""
    memory, timeline = found.memory, found.timeline
    return {
        **summary(found),
        "memory": {**memory, "total": sum(memory.values())} if memory else {},
        "case": found.case.facts(),
        "versions": {name: version(name) for name in ("jax", "libtpu")},
        "constants": dataclasses.asdict(found.calibration),
        "collectives": [] if timeline is None else [dataclasses.asdict(each) for each in timeline.collectives],
    }
