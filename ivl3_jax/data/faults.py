"""What can be wrong with one sample, by the reasons that skipped samples are counted under."""

from dataclasses import dataclass
from typing import Literal, NamedTuple

REASONS = {
    "line": "the record is not what its format says",
    "image": "an image is missing, damaged, or no image",
    "bomb": "an image has so many pixels that it may be a decompression bomb",
    "video": "a video is missing, damaged, or too short for its clip",
    "path": "a path leaves its root, or is of a kind that cannot be read",
    "placeholder": "placeholders and images or videos do not match, or a special token is in a text",
    "empty": "there is no answer to train on",
    "tokens": "the sample has more tokens than a row",
    "tiles": "the sample has more tiles than a row",
}


LONGEST = 1000  # characters of a message; a line may have a path of megabytes


class Fault(ValueError):
    """Something wrong with one sample, for which a policy decides whether it is skipped or ends the run.

    Its message is one line of printable characters, whatever the sample holds.

    Attributes:
        reason: a key of `REASONS`.
    """

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(_one_line(message))
        self.reason = reason

    def __reduce__(self) -> tuple:
        return Fault, (self.reason, str(self))  # so that it passes from one process to another


def _one_line(message: str) -> str:
    if len(message) > LONGEST:
        message = f"{message[: LONGEST // 2]} ... {message[5 - LONGEST // 2 :]}"
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in message)


def at(where: str, error: ValueError) -> ValueError:
    """The same error about the sample at `where`: a `Fault` keeps its reason, others stay ValueErrors."""
    message = f"{where}: {error}" if where else str(error)
    return Fault(error.reason, message) if isinstance(error, Fault) else ValueError(message)


class Skip(NamedTuple):
    """A sample that was left out: why, and the whole message, which begins with its file and line."""

    reason: str
    message: str


@dataclass(frozen=True)
class FaultPolicy:
    """What becomes of a faulty sample.

    Attributes:
        action: `raise` ends the run with the fault's message; `skip` leaves the sample out and counts it.
        most: the fraction of samples that may be skipped; more end the run.
        grace: samples that are drawn before that fraction is looked at.
    """

    action: Literal["raise", "skip"] = "raise"
    most: float = 0.01
    grace: int = 200

    def __post_init__(self) -> None:
        if self.action not in ("raise", "skip"):
            raise ValueError(f"the policy for faults is {self.action!r}; it must be raise or skip")
        if not 0 <= self.most <= 1:
            raise ValueError(f"the fraction of samples that may be skipped is {self.most}; it must lie in 0..1")

    def check(self, drawn: int, skipped: int, last: str) -> None:
        """Raises a ValueError if too many of the samples drawn so far were skipped, or all of them."""
        if skipped > self.most * max(drawn, self.grace) or self.grace < skipped == drawn:
            raise ValueError(
                f"{skipped} of {drawn} samples were skipped, more than the fraction of {self.most} that is allowed; "
                f"the last: {last}"
            )
