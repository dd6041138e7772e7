"""Where in the sources the instructions of a compiled module come from: the tables at its head."""

import re

_FIELD = re.compile(r"(\w+)=(\d+)")


def frames(text: str) -> dict[int, tuple[str, ...]]:
    """The functions that were being run, the innermost first and each once, by the number of the stack frame.

    Names are qualified as Python has them, without the functions inside functions: `Attention.project`. Empty where the
    text has no such tables.
    """
    names, places, stack = _table(text, "FunctionNames"), _table(text, "FileLocations"), _table(text, "StackFrames")
    function = {number: line.strip('"').partition(".<locals>")[0] for number, line in names.items()}
    at = {number: _fields(line).get("function_name_id", 0) for number, line in places.items()}
    calls = {number: _fields(line) for number, line in stack.items()}
    # The number of a frame's caller is one too high where the first frame, which has none, says 1.
    beyond = 1 if calls.get(1, {}).get("parent_frame_id") == 1 else 0
    found: dict[int, tuple[str, ...]] = {}
    for number in sorted(calls):  # callers come first
        own = function.get(at.get(calls[number].get("file_location_id", 0), 0), "")
        callers = found.get(calls[number].get("parent_frame_id", 0) - beyond, ())
        found[number] = (own, *(name for name in callers if name != own))
    return found


def _table(text: str, title: str) -> dict[int, str]:
    """The numbered lines under a title that stands alone on its line."""
    found = re.search(rf"^{title}\n((?:\d+ .*\n)*)", text, re.MULTILINE)
    lines = (line.partition(" ") for line in (found[1] if found else "").splitlines())
    return {int(number): rest for number, _, rest in lines}


def _fields(line: str) -> dict[str, int]:
    return {name: int(value) for name, value in _FIELD.findall(line)}
