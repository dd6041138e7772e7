"""JSON as it is read here, and what of a value is shown in a message."""

import json
import reprlib
from typing import Any

SHOWN = 80  # characters

_REPR = reprlib.Repr()
_REPR.maxlevel, _REPR.maxlist, _REPR.maxdict = 3, 6, 6
_REPR.maxstring = _REPR.maxother = _REPR.maxlong = SHOWN


def parse_json(text: bytes | str) -> Any:
    """The value of a JSON text, which is UTF-8 and has no key twice in one object.

    NaN and infinities are numbers, as Python writes them.

    Raises:
        ValueError: it is something else, or nested too deep.
    """
    try:
        return json.loads(text if isinstance(text, str) else str(text, "utf-8-sig"), object_pairs_hook=_without_repeats)
    except RecursionError:
        raise ValueError("nested too deep") from None


def shown(value: Any) -> str:
    """A value as it stands in messages, in 80 characters at most, however large and deep it is."""
    text = _REPR.repr(value)
    return text if len(text) <= SHOWN else f"{text[: SHOWN - 3]}..."


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"{shown(twice)} stands in it twice")
    return found
