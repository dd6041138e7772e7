"""Which frames of a video are trained on (InternVL's training code, `get_frame_indices`)."""

import math
import re
from dataclasses import dataclass

import numpy as np

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.records import Video
from ivl3_jax.data.video import Choose, rate_for_clip

METHODS = "rand, middle, or fps and a number such as fps0.5"


@dataclass(frozen=True)
class TrainingFrames:
    """A random number of frames, spread over a video or its clip.

    Attributes:
        method: "rand" splits the frames into as many equal intervals as frames are wanted and draws one of each;
            "middle" takes the middle of each; "fps0.5" takes a frame every 2 seconds, from the first second on.
        fewest, most: bounds of the number that is wanted, each equally likely. With "fps..." `most` alone counts: what
            would follow is left out.

    With "rand" and "middle" a video that has fewer frames gives all of them, and its last one again and again.

    Raises:
        ValueError: a value cannot be.
    """

    method: str = "rand"
    fewest: int = 8
    most: int = 32

    def __post_init__(self) -> None:
        if self.method not in ("rand", "middle") and not self._rate():
            raise ValueError(f"TrainingFrames.method is {self.method!r}; valid: {METHODS}")
        if not 1 <= self.fewest <= self.most:
            raise ValueError(f"TrainingFrames.fewest is {self.fewest} and most {self.most}; valid: 1 <= fewest <= most")

    def choose(self, video: Video, rng: np.random.Generator) -> Choose:
        """The choice for one video, whose own number of frames does not count."""

        def chosen(count: int, fps: float | None) -> list[int]:
            first = 0
            if video.clip is not None:
                rate = rate_for_clip(video.clip, count, fps)
                first = int(video.clip[0] * rate)
                count = min(max(1, int((video.clip[1] - video.clip[0]) * rate)), count - first)
            if every := self._rate():
                return [first + index for index in self._every(count, fps, every)]
            wanted = int(rng.integers(self.fewest, self.most, endpoint=True))
            intervals = min(wanted, count)
            bounds = np.arange(intervals + 1) * count // intervals
            starts, ends = bounds[:-1], bounds[1:]
            found = rng.integers(starts, ends) if self.method == "rand" else (starts + ends - 1) // 2
            return [first + int(index) for index in (*found, *[found[-1]] * (wanted - len(found)))]

        return chosen

    def _every(self, count: int, fps: float | None, rate: float) -> list[int]:
        """The frame in the middle of each stretch of 1 / rate seconds."""
        if not fps:
            raise Fault("video", f"the frames have no times, so {self.method} cannot choose among them")
        stretches = max(1, math.ceil(count / fps * rate))
        found = np.around((np.arange(min(stretches, self.most)) + 0.5) / rate * fps).astype(int)
        return [int(index) for index in found if index < count] or [count // 2]

    def _rate(self) -> float | None:
        """Of "fps...", in frames a second; None for the other methods, and for what is none."""
        match = re.fullmatch(r"fps(\d+\.?\d*|\.\d+)", self.method)
        return float(match[1]) or None if match else None
