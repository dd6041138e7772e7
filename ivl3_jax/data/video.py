"""Which frames of a video are looked at, and reading them from files, GIFs and directories of frames.

A frame is named by its index in the order of display, as decord has it, whatever the rate does in between. Only the
chosen frames are kept, each only in the form that is wanted of it.
"""

import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.images import open_image, tile_image
from ivl3_jax.data.records import Video
from ivl3_jax.data.video_damage import DamagedVideo
from ivl3_jax.data.video_file import Reading, look, read_file

T = TypeVar("T")

# (frames of the video, frames a second or None) to the indices that are wanted, ascending.
Choose = Callable[[int, float | None], Sequence[int]]

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEO_SUFFIXES = (".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ts", ".webm", ".wmv")


def video_tiles(video: Video, size: int) -> np.ndarray:
    """The frames of a video that the model sees, as it does: uint8 [frames, size, size, 3], one tile a frame.

    Raises:
        Fault: there is no such file, it is no video, it has no frames, or the clip begins behind its end.
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
            rate = rate_for_clip(video.clip, count, fps)
            first, last = round(video.clip[0] * rate), min(round(video.clip[1] * rate), last)
        segment = (last - first) / video.frames
        return [int(first + segment / 2 + np.round(segment * k)) for k in range(video.frames)]

    return choose


def rate_for_clip(clip: tuple[float, float], count: int, fps: float | None) -> float:
    """The frames a second of a video with `count` frames that a clip in seconds is to be cut out of.

    Raises:
        Fault: the frames have no times, or the clip begins behind the last.
    """
    if not fps:
        raise Fault("video", "the frames have no times, so a clip in seconds cannot be cut out")
    if round(clip[0] * fps) >= count:
        raise Fault("video", f"the clip begins at {clip[0]:g} s, but the video ends after {count / fps:g} s")
    return fps


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
    """What `keep` makes of the chosen frames; a damaged video is used as far as it goes, with a `DamagedVideo` warning.

    Args:
        choose: which frames; a frame may be chosen more than once.
        keep: what is kept of a frame in RGB, such as its tiles.

    Raises:
        Fault: as `video_tiles`; the message names the file.
        ModuleNotFoundError: PyAV is not installed.
    """
    reading = _read(path, choose, keep)
    if reading.damage:
        told = f"{os.fspath(path)}: {reading.damage}; it is used as far as it goes"
        warnings.warn(told, DamagedVideo, stacklevel=2)
    return reading.frames


def choose_frames(path: str | os.PathLike, choose: Choose) -> Sequence[int]:
    """The indices that `choose` chooses; frames are counted, not decoded.

    Raises:
        Fault: as `sample_frames`, as far as can be told without decoding, or the video is damaged.
        ModuleNotFoundError: PyAV is not installed.
    """
    with _named(path):
        if os.path.isdir(path):
            return choose(len(_frame_files(path)), None)
        contents = look(_existing(path))
        _refuse(contents.damage())
        return choose(contents.count, contents.fps)


def frames_at(path: str | os.PathLike, indices: Sequence[int], keep: Callable[[Image.Image], T]) -> list[T]:
    """What `keep` makes of the frames that were chosen with `choose_frames`.

    Where the last frames cannot be decoded but are too short to count as damage, the one before is repeated.

    Raises:
        Fault: as `sample_frames`, or the video is damaged, or has lost frames since it was looked at.
        ModuleNotFoundError: PyAV is not installed.
    """
    reading = _read(path, lambda count, _: [min(index, count - 1) for index in indices], keep)
    with _named(path):
        _refuse(reading.damage)
        if max(indices) >= reading.count:
            raise ValueError(f"has {reading.count} frames, but had more when it was looked at before")
    return reading.frames


def _read(path: str | os.PathLike, choose: Choose, keep: Callable[[Image.Image], T]) -> Reading[T]:
    with _named(path):
        if os.path.isdir(path):
            return _from_directory(path, choose, keep)
        return read_file(_existing(path), choose, keep)


def _refuse(damage: str) -> None:
    if damage:
        raise ValueError(damage)


@contextmanager
def _named(path: str | os.PathLike) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError) as error:
        raise Fault("video", f"{os.fspath(path)}: {error}") from error


def _existing(path: str | os.PathLike) -> str | os.PathLike:
    if not os.path.isfile(path):
        if os.path.exists(path):
            raise ValueError("is a pipe or a device, not a video file or a directory of frames")
        raise ValueError("no such video file or directory of frames")
    return path


def _from_directory(path: str | os.PathLike, choose: Choose, keep: Callable[[Image.Image], T]) -> Reading[T]:
    files = _frame_files(path)
    indices = choose(len(files), None)
    found = {index: keep(open_image(files[index])) for index in set(indices)}
    return Reading([found[index] for index in indices], len(files))


def _frame_files(path: str | os.PathLike) -> list[Path]:
    """The frames of a directory in their order."""
    files = [file for file in Path(path).iterdir() if file.suffix.lower() in FRAME_SUFFIXES]
    if not files:
        raise ValueError(f"the directory has no frames; valid are files that end in {', '.join(FRAME_SUFFIXES)}")
    return sorted(files, key=_frame_number)


def _frame_number(file: Path) -> tuple[int, str]:
    number = re.search(r"(\d+)$", file.stem)
    return int(number[1]) if number else -1, file.name
