"""How much of a video file is missing, from what the file says of itself and what can be read of it."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

PAUSE = 0.5
"""Seconds that have to be missing for a video to be damaged; what is shorter is common in files that are whole."""
REGULAR = 0.9
"""The share of steps that must be equal for a pause to be a loss; in other videos pauses are nothing special."""
COUNTED = ("avi", "mov,mp4,m4a,3gp,3g2,mj2")
"""Formats that say of every frame when it is shown, or count those left out: a pause in them is meant."""


class DamagedVideo(UserWarning):
    """A video of which parts cannot be read; the rest is used."""


class Packet(NamedTuple):
    """A frame as the file has it, times in units of the stream, None where it does not say.

    Attributes:
        shown, decoded: when. lasts: how long, 0 if unknown. begins: whether decoding can begin there.
    """

    shown: int | None
    decoded: int | None
    lasts: int
    begins: bool


def lost_frames(container: Any, stream: Any, packets: Sequence[Packet]) -> int:
    """An estimate of the frames that a file speaks of and does not hold, 0 where nothing is conspicuous.

    Args:
        container, stream: of PyAV. packets: all that could be read.
    """
    if container.format.name == "gif":  # whose frames may stand for seconds
        return 0
    # AVI counts frames in the order in which they are decoded.
    times = [packet.decoded if container.format.name == "avi" else packet.shown for packet in packets]
    known = [time for time in times if time is not None]
    if len(known) < len(times):
        return 0
    tick = float(stream.time_base)
    places, order = np.unique(known, return_index=True)
    seconds, lasts = places * tick, np.array([packet.lasts for packet in packets])[order] * tick
    gaps = np.diff(seconds)
    step = float(np.median(gaps)) if len(gaps) else float(lasts[0])
    if not step:
        return 0
    following = np.append(seconds[1:], _end(container, stream, seconds[0]))
    pauses = following - seconds - np.maximum(step, lasts)
    irregular = len(gaps) and np.mean(np.abs(gaps - step) <= 1.01 * tick) < REGULAR
    if container.format.name in COUNTED or irregular:
        pauses = pauses[-1:]
    return sum(round(pause / step) for pause in pauses if pause > PAUSE)


def lost_at_the_end(frames: int, fps: float | None) -> int:
    """`frames` that are there and cannot be decoded, or 0 where they are too short to count as a loss."""
    return frames if frames > PAUSE * (fps or 0) else 0


def describe(missing: int, stated: int, faulty: int = 0) -> str:
    """In words what is wrong with a video, "" if nothing is.

    Args:
        missing: how many of about `stated` frames cannot be read.
        faulty: how many of those that were looked at could be decoded only in part.
    """
    troubles = []
    if missing:
        troubles.append(f"{missing} of about {stated} frames cannot be read")
    if faulty:
        troubles.append(f"{faulty} of the frames that are looked at could be decoded only in part")
    return f"the video is damaged: {'; '.join(troubles)}" if troubles else ""


def _end(container: Any, stream: Any, start: float) -> float:
    """The second at which the video ends by what is stated; `start` where nothing is."""
    if container.format.name == "avi":  # whose stated duration follows what is there
        return start + float(stream.frames * stream.time_base)
    if stream.duration is not None:
        return start + float(stream.duration * stream.time_base)
    if tag := next((text for name, text in stream.metadata.items() if name.startswith("DURATION")), None):
        try:  # as Matroska has it, "00:01:02.5"
            hours, minutes, seconds = map(float, tag.split(":"))
            return hours * 3600 + minutes * 60 + seconds
        except ValueError:
            pass
    alone = len(container.streams) == 1  # else it may be another stream that lasts so long
    return start + (container.duration or 0) / 1_000_000 if alone else start
