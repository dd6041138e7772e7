"""What the compiler complains of, in plain words."""

import re

_TOO_MUCH = re.compile(r"Can't reduce memory use below ([\d.]+ ?\w+) .*?only reduced to ([\d.]+ ?\w+)")
_GATHERED = re.compile(r"Involuntary full rematerialization.*?from sharding (\{.*?\}) to (\{.*?\}) ", re.IGNORECASE)
_OPERATION = re.compile(r"HLO operation:? (%\S+)(?: = ([a-z]\w*\[[\d,]*\]))?")
_PLACE = re.compile(r'op_name="([^"]*)"')


def in_plain_words(complaint: str) -> str:
    """One line; a complaint that is not known stands as it is, shortened."""
    words = " ".join(complaint.split())
    if found := _TOO_MUCH.search(words):
        return (
            f"to save memory it computes values again, but comes to {found[2]}, not to the {found[1]} that it aims at: "
            "the step is near or over what a chip has; a `remat` that keeps less, or fewer rows a chip, would help"
        )
    if found := _GATHERED.search(words):
        operation, place = _OPERATION.search(words), _PLACE.search(words)
        what = " ".join(filter(None, operation.groups())) if operation else "an array"
        return (
            f"{what}{f', in {place[1]},' if place else ''} lies by {found[1]} and is wanted by {found[2]}: every "
            "device gathers the whole of it and takes its part; rules that shard it alike on both sides avoid that"
        )
    return words if len(words) <= 300 else f"{words[:297]}..."
