"""InternVL's JSONL conversations, one JSON object a line:

    {"image": "a.jpg" or ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                               {"from": "gpt", "value": "A cat."}]}

"image" is absent, null or empty for text-only lines; the first turn may be from "system"; other keys are ignored.
"""

import json
import os
from pathlib import Path
from typing import Any

from ivl3_jax.data.records import Message, Sample

ROLE_OF = {"system": "system", "human": "user", "gpt": "assistant"}


def read_jsonl(file: str | Path, root: str | Path | None = None, source: int = 0) -> list[Sample]:
    """Reads a whole annotation file into memory; images stay paths.

    Args:
        file: the JSONL file. Blank lines are passed over.
        root: directory of the image paths, by default that of the file.
        source: number of the data source, given to every sample.

    Returns:
        One `Sample` a line, with `where` = "file:line".

    Raises:
        ValueError: a line is not what it should be; the message says file:line, what was found and what would be valid.
        OSError: the file cannot be opened.
    """
    file = Path(file)
    root = file.parent if root is None else Path(root)
    samples = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}:{number}"
                try:
                    samples.append(_sample(line, root, source, where))
                except ValueError as error:
                    raise ValueError(f"{where}: {error}") from error
    return samples


def _sample(line: bytes, root: Path, source: int, where: str) -> Sample:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not a JSON object ({error})") from error
    if not isinstance(record, dict):
        raise ValueError(f"found a JSON {type(record).__name__}; a line must be an object with the key 'conversations'")
    if record.get("video"):
        raise ValueError("has the key 'video'; only 'image' and text-only lines can be read")
    return Sample(_messages(record.get("conversations")), _images(record.get("image"), root), source, where)


def _messages(turns: Any) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"'conversations' is {_short(turns)}; it must be a list of at least one turn")
    messages = []
    for index, turn in enumerate(turns):
        place = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise ValueError(f"{place} is {_short(turn)}; it must be an object with 'from' and 'value'")
        speaker, text = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in ROLE_OF:
            raise ValueError(f"{place}.from is {_short(speaker)}; valid: {', '.join(ROLE_OF)}")
        if speaker == "system" and index > 0:
            raise ValueError(f"{place}.from is 'system'; only the first turn may be")
        if not isinstance(text, str):
            raise ValueError(f"{place}.value is {_short(text)}; it must be a string")
        messages.append(Message(ROLE_OF[speaker], text))
    return tuple(messages)


def _images(found: Any, root: Path) -> tuple[str, ...]:
    paths = [found] if isinstance(found, str) and found else found or []
    if not isinstance(paths, list) or not all(isinstance(path, str) and path for path in paths):
        raise ValueError(f"'image' is {_short(found)}; it must be a path or a list of paths")
    return tuple(_inside(root, path) for path in paths)


def _inside(root: Path, path: str) -> str:
    # By name only: data sets are often trees of links that lead elsewhere on purpose.
    joined = os.path.normpath(root / path)
    if os.path.isabs(path) or not Path(joined).is_relative_to(os.path.normpath(root)):
        raise ValueError(f"image path {path!r} leaves the root {str(root)!r}; it must be relative and stay within")
    return joined


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."
