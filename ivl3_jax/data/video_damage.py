"""How much of a video file is missing, from what the file says of itself and what can be read of it."""

from collections.abc import Sequence
from typing import Any

import numpy as np

PAUSE = 0.5
"""Seconds without a frame, beyond the usual step, that count as a loss: shorter ones are frames that were dropped."""
REGULAR = 0.9
"""The share of steps that must be equal for a pause to be a loss; in other videos pauses are nothing special."""


class DamagedVideo(UserWarning):
    """A video of which parts cannot be read; the rest is used."""


def lost_frames(container: Any, stream: Any, found: int, times: Sequence[int]) -> int:
    """An estimate of the frames that a file speaks of and does not hold, 0 where nothing is conspicuous.

    Args:
        container, stream: of PyAV, after all packets were read.
        found: the frames that were found. times: theirs, ascending, in units of the stream; empty if unknown.
    """
    if container.format.name == "avi":  # states a count, and a duration that follows what is there
        lost = max(0, stream.frames - found)
        return lost if lost > PAUSE * float(stream.average_rate or 0) else 0
    if len(times) < 2 or container.format.name == "gif":  # whose frames may stand for seconds
        return 0
    tick = float(stream.time_base)
    seconds = np.array(times) * tick
    gaps = np.diff(seconds)
    step = float(np.median(gaps))
    after = _end(container, stream, seconds[0]) - seconds[-1]
    regular = np.mean(np.abs(gaps - step) <= 1.01 * tick) >= REGULAR
    pauses = [*(gaps if regular else ()), after]
    return sum(round(pause / step) - 1 for pause in pauses if pause - step > PAUSE)


def _end(container: Any, stream: Any, start: float) -> float:
    """The second at which the video ends by what is stated; `start` where nothing is."""
    if stream.duration is not None:
        return start + float(stream.duration * stream.time_base)
    if tag := stream.metadata.get("DURATION"):  # as Matroska has it, "00:01:02.5"
        try:
            hours, minutes, seconds = map(float, tag.split(":"))
            return hours * 3600 + minutes * 60 + seconds
        except ValueError:
            pass
    return start + (container.duration or 0) / 1_000_000
