"""What a long command has done so far, a line for each question, so that it can go on where it was interrupted."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ivl3_jax.data.files import replacing

SETTINGS = "settings.json"


class Journal:
    """The lines of a run in a folder, by number of the question.

    Attributes:
        done: what is there.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any], questions: Sequence[Any]) -> None:
        """Opens the lines in the file `name`, or begins them.

        questions: what can be written as JSON, and has to be the same for each that is done.

        Raises:
            ValueError: they were written with other settings or for other questions, are damaged, or the folder holds
                something else.
            OSError: the folder cannot be made or written.
        """
        self.done: dict[int, dict[str, Any]] = {}
        self._of = [hashlib.sha256(json.dumps(each, sort_keys=True).encode()).hexdigest()[:16] for each in questions]
        self._file = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        stated, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
        if stated.exists():
            self._check(stated, wanted)
        elif any(folder.iterdir()):
            raise ValueError(f"{folder} has files and no {SETTINGS}; give a new folder, or one of an earlier run")
        else:
            with replacing(stated) as stream:
                stream.write(json.dumps(wanted, indent=1).encode() + b"\n")
        self._read()

    @property
    def left(self) -> list[int]:
        """The numbers of the questions that are not done."""
        return [number for number in range(len(self._of)) if number not in self.done]

    def add(self, number: int, found: Mapping[str, Any]) -> None:
        """Writes the line of a question."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"number": number, "of": self._of[number], **found}, ensure_ascii=False) + "\n")
        self.done[number] = dict(found)

    def _check(self, stated: Path, wanted: Mapping[str, Any]) -> None:
        try:
            found = json.loads(stated.read_text(encoding="utf-8"))
            found.items()
        except (ValueError, AttributeError):
            raise ValueError(f"{stated} is no JSON object; give a new folder, or one of an earlier run") from None
        for name in dict.fromkeys([*wanted, *found]):
            if found.get(name) != wanted.get(name):
                raise ValueError(
                    f"{stated}: {name} was {found.get(name)!r} and is now {wanted.get(name)!r}; give the same settings "
                    "to go on, or a new folder"
                )

    def _read(self) -> None:
        """What an interruption left of a last line is dropped."""
        if not self._file.exists():
            return
        whole = self._file.read_bytes()
        lines = whole[: whole.rfind(b"\n") + 1]
        if len(lines) < len(whole):
            self._file.write_bytes(lines)
        for line_number, line in enumerate(lines.splitlines(), 1):
            where = f"{self._file}:{line_number}"
            try:
                record = json.loads(line)
                number, of = record.pop("number"), record.pop("of")
                same = self._of[number] == of
            except (ValueError, KeyError, TypeError, AttributeError, IndexError):
                raise ValueError(
                    f"{self._file}:{line_number}: damaged; remove the line, or give a new folder"
                ) from None
            if not same:
                told = f"question {number + 1} was another one then; remove the line, or give a new folder"
                raise ValueError(f"{where}: {told}")
            self.done[number] = record
