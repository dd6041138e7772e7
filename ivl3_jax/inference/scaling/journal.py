"""What a long command has done so far, a line for each question, so that it can go on where it was interrupted."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SETTINGS = "settings.json"


class Journal:
    """The lines of a run in a folder, by number of the question.

    Attributes:
        done: what is there.
    """

    def __init__(self, folder: Path, name: str, settings: Mapping[str, Any]) -> None:
        """Opens the lines in the file `name`, or begins them.

        Raises:
            ValueError: they were written with other settings, or the folder holds something else.
            OSError: the folder cannot be made or written.
        """
        self.done: dict[int, dict[str, Any]] = {}
        self._file = folder / name
        folder.mkdir(parents=True, exist_ok=True)
        stated, wanted = folder / SETTINGS, json.loads(json.dumps(settings))
        if stated.exists():
            self._check(stated, wanted)
        elif any(folder.iterdir()):
            raise ValueError(f"{folder} has files and no {SETTINGS}; give a new folder, or one of an earlier run")
        else:
            stated.write_text(json.dumps(wanted, indent=1) + "\n", encoding="utf-8")
        self._read()

    def add(self, number: int, found: Mapping[str, Any]) -> None:
        """Writes the line of a question."""
        with self._file.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"number": number, **found}, ensure_ascii=False) + "\n")
        self.done[number] = dict(found)

    def _check(self, stated: Path, wanted: Mapping[str, Any]) -> None:
        try:
            found = json.loads(stated.read_text(encoding="utf-8"))
        except ValueError:
            raise ValueError(f"{stated} is no JSON; give a new folder, or one of an earlier run") from None
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
        for line in lines.splitlines():
            record = json.loads(line)
            self.done[record.pop("number")] = record
