"""What can be wrong with one sample, by the reasons that skipped samples are counted under."""

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


class Fault(ValueError):
    """Something wrong with one sample, for which a policy decides whether it is skipped or ends the run.

    Attributes:
        reason: a key of `REASONS`.
    """

    def __init__(self, reason: str, message: str) -> None:
        assert reason in REASONS, reason
        super().__init__(message)
        self.reason = reason


def at(where: str, error: ValueError) -> ValueError:
    """The same error about the sample at `where`: a `Fault` keeps its reason, others stay ValueErrors."""
    message = f"{where}: {error}" if where else str(error)
    return Fault(error.reason, message) if isinstance(error, Fault) else ValueError(message)
