"""Which frames of a video are looked at, and reading them from files, GIFs and directories of frames.

A frame is named by its index in the order of display, as decord has it, whatever the rate does in between. Only the
chosen frames are kept, each only in the form that is wanted of it.
"""

import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ivl3_jax.data.images import open_image, tile_image
from ivl3_jax.data.records import Video
from ivl3_jax.data.video_file import read_file

T = TypeVar("T")

# (frames of the video, frames a second or None) to the indices that are wanted, ascending.
Choose = Callable[[int, float | None], Sequence[int]]

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


def video_tiles(video: Video, size: int) -> np.ndarray:
    """The frames of a video that the model sees, as it does: uint8 [frames, size, size, 3], one tile a frame.

    Raises:
        ValueError: there is no such file, it is no video, it has no frames, or the clip begins behind its end.
        ModuleNotFoundError: PyAV is not installed.
    """
    return np.concatenate(sample_frames(video.path, spread(video), lambda frame: tile_image(frame, size, 1, 1, False)))


def spread(video: Video) -> Choose:
    """The inference sampling of the model cards: the midpoints of equal segments.

    With the segment length s = (last - first) / n, index k is int(first + s / 2 + round(s · k)). A short video repeats
    frames. `clip` moves first and last to its seconds.
    """

    def choose(count: int, fps: float | None) -> list[int]:
        first, last = 0, count - 1
        if video.clip is not None:
            if not fps:
                raise ValueError("the frames have no times, so a clip in seconds cannot be cut out")
            if round(video.clip[0] * fps) > last:
                raise ValueError(f"the clip begins at {video.clip[0]:g} s, but the video ends after {count / fps:g} s")
            first, last = round(video.clip[0] * fps), min(round(video.clip[1] * fps), last)
        segment = (last - first) / video.frames
        return [int(first + segment / 2 + np.round(segment * k)) for k in range(video.frames)]

    return choose


def is_video(path: str | os.PathLike) -> bool:
    """Whether a path is to be read as a video: by its suffix, as a directory, or as a GIF that moves."""
    path = Path(path)
    if path.suffix.lower() == ".gif":
        try:
            with Image.open(path) as image:
                return getattr(image, "is_animated", False)
        except (OSError, ValueError):
            return False
    return path.suffix.lower() in VIDEO_SUFFIXES or os.path.isdir(path)


def sample_frames(path: str | os.PathLike, choose: Choose, keep: Callable[[Image.Image], T]) -> list[T]:
    """What `keep` makes of the chosen frames.

    Args:
        choose: which frames; a frame may be chosen more than once.
        keep: what is kept of a frame in RGB, such as its tiles.

    Raises:
        ValueError: as `video_tiles`; the message names the file.
        ModuleNotFoundError: PyAV is not installed.
    """
    try:
        if os.path.isdir(path):
            return _from_directory(path, choose, keep)
        if not os.path.isfile(path):
            raise ValueError("no such video file or directory of frames")
        return read_file(path, choose, keep)
    except ValueError as error:
        raise ValueError(f"{os.fspath(path)}: {error}") from error


def _from_directory(path: str | os.PathLike, choose: Choose, keep: Callable[[Image.Image], T]) -> list[T]:
    files = [file for file in Path(path).iterdir() if file.suffix.lower() in FRAME_SUFFIXES]
    if not files:
        raise ValueError(f"the directory has no frames; valid are files that end in {', '.join(FRAME_SUFFIXES)}")
    files.sort(key=_frame_number)
    indices = choose(len(files), None)
    found = {index: keep(open_image(files[index])) for index in set(indices)}
    return [found[index] for index in indices]


def _frame_number(file: Path) -> tuple[int, str]:
    number = re.search(r"(\d+)$", file.stem)
    return int(number[1]) if number else -1, file.name
