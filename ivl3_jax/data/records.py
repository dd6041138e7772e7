"""What a conversation is before anything is tokenised: messages, and the images and videos they speak of."""

import numbers
import os
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
from PIL import Image

from ivl3_jax.data.faults import Fault

IMAGE_PLACEHOLDER = "<image>"
VIDEO_PLACEHOLDER = "<video>"
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Stored:
    """An image whose file is at hand.

    Attributes:
        name: what messages call it.
        data: the bytes of the file, such as a JPEG.
    """

    name: str
    data: bytes = field(repr=False)


# A str may be a gs:// path, read through etils. An array is an image already cut into tiles: uint8 [t, size, size, 3].
ImageSource: TypeAlias = str | os.PathLike | Stored | Image.Image | np.ndarray

CHAT_LABEL = "Frame{}: "
"""What stands in front of each frame in the prompts of the model cards and of the `-hf` processor."""
TRAINING_LABEL = "Frame-{}: "
"""What the original code trains with, and VLMEvalKit asks with."""

SECONDS = 1e9
"""No clip ends later; so its frames can be counted, whatever the rate."""


@dataclass(frozen=True)
class Video:
    """A video and what of it is looked at.

    Attributes:
        path: a video file, an animated GIF, or a directory of frames.
        frames: how many, spread evenly as `data.video.spread` says.
        clip: (start, end) in seconds, None for all of it.
        label: in front of each frame, with its number from 1 in place of "{}".

    Raises:
        Fault: `frames` or `clip` cannot be.
    """

    path: str | os.PathLike
    frames: int = 8
    clip: tuple[float, float] | None = None
    label: str = CHAT_LABEL

    def __post_init__(self):
        if not isinstance(self.frames, numbers.Integral) or isinstance(self.frames, bool) or self.frames < 1:
            raise Fault("line", f"the number of frames is {self.frames!r}; it must be a whole number of at least 1")
        if self.clip is not None and not 0 <= self.clip[0] < self.clip[1] < SECONDS:
            start, end = self.clip
            raise Fault(
                "line",
                f"the clip is {start:g} to {end:g} s; it must begin at 0 or later and before its end, which is "
                f"below {SECONDS:g} s",
            )


VideoSource = str | os.PathLike | Video


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: "system", "user" or "assistant".
        text: what is said. In user turns each "<image>" stands for one image of the sample, and each "<video>" for one
            of its videos, in order; in system and assistant turns they are ordinary text, as in InternVL.

    Raises:
        Fault: the role is not one of the three, or the text is no string or has lone surrogates.
    """

    role: str
    text: str

    def __post_init__(self):
        if self.role not in ROLES:
            raise Fault("line", f"message role is {self.role!r}; valid roles: {', '.join(ROLES)}")
        if not isinstance(self.text, str):
            raise Fault("line", f"text of the {self.role} message is {self.text!r}; it must be a string")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise Fault(
                "line",
                f"text of the {self.role} message has the lone surrogate {self.text[error.start]!a} at character "
                f"{error.start}; it must be Unicode text (a shell that is not set to UTF-8 makes such marks)",
            ) from None


@dataclass(frozen=True)
class Sample:
    """A conversation with its images and videos, still as the user has it.

    Attributes:
        messages: the turns in order; a system turn only in front.
        images: PIL images, paths, or tiles, in the order of their placeholders.
        videos: in the order of theirs. All paths are opened when the sample is encoded.
        source: the number of the data source, for loss by data set.
        where: where the sample came from ("train.jsonl:17"), quoted by every error about it.
    """

    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...] = ()
    source: int = 0
    where: str = ""
    videos: tuple[VideoSource, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A prompt with a better and a worse answer to it, as preference data has them (MMPR).

    Attributes:
        messages: the prompt, which ends with a user turn.
        chosen, rejected: the two answers.
        images, videos, source, where: as of a `Sample`.
    """

    messages: tuple[Message, ...]
    chosen: str
    rejected: str
    images: tuple[ImageSource, ...] = ()
    videos: tuple[VideoSource, ...] = ()
    source: int = 0
    where: str = ""
