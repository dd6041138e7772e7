"""Tokens of an answer to text, while they come."""

from collections.abc import Sequence

from ivl3_jax.data.tokenizer import Tokenizer

UNFINISHED = "\ufffd"  # stands for a character of which bytes are missing
LONGEST = 8  # tokens of a character; more of them are no character


class Wording:
    """The text of one answer, piece by piece; it ends before a stop string.

    Attributes:
        stopped: whether a stop string has come; nothing is told after it.
    """

    def __init__(self, tokenizer: Tokenizer, stop: Sequence[str] = ()) -> None:
        self._tokenizer, self._stop = tokenizer, [text for text in stop if text]
        # Only the last piece and the tokens behind it are decoded: it is what a leading space depends on.
        self._ids: list[int] = []
        self._known, self._decoded = 0, ""
        self._held = ""  # text that may be the beginning of a stop string
        self.stopped = False

    def add(self, token: int) -> str:
        """The text that is certain with this token, maybe none."""
        self._ids.append(token)
        text = self._tokenizer.decode(self._ids)
        waits = text.endswith(UNFINISHED) and len(self._ids) - self._known <= LONGEST
        if len(text) <= len(self._decoded) or waits:
            return ""
        new = text[len(self._decoded) :]
        self._ids = self._ids[self._known :]
        self._known, self._decoded = len(self._ids), self._tokenizer.decode(self._ids)
        return self._told(new)

    def end(self) -> str:
        """The text that was held back, when there is no token any more."""
        rest = self._told(self._tokenizer.decode(self._ids)[len(self._decoded) :])
        self._ids, self._known, self._decoded = [], 0, ""
        if self.stopped:
            return rest
        rest, self._held = rest + self._held, ""
        return rest

    def _told(self, new: str) -> str:
        if self.stopped:
            return ""
        text = self._held + new
        found = [place for stop in self._stop if (place := text.find(stop)) >= 0]
        if found:
            self.stopped, self._held = True, ""
            return text[: min(found)]
        held = max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[len(text) - held :]
        return text[: len(text) - held]


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of the stop string."""
    return max((n for n in range(1, min(len(text), len(stop) - 1) + 1) if text.endswith(stop[:n])), default=0)
