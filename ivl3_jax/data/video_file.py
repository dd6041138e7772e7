"""Chosen frames of a video file, decoded by PyAV (extra `video`).

The file is read through once without decoding, which says what frames there are and where decoding can begin. Then only
the stretches in which frames were chosen are decoded; where a file does not lead to where it says, all of it is, up to
the last chosen frame.
"""

import bisect
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, TypeVar

from PIL import Image

from ivl3_jax.data.images import most_pixels

T = TypeVar("T")

PLAYLISTS = {"concat", "dash", "hls", "imf", "rtsp", "sap", "sdp"}
CUT = 0.9  # a file with fewer of the frames that it should have is told of


@dataclass(frozen=True)
class Contents:
    """What a file says of itself.

    Attributes:
        count: of its frames. fps: their average rate, None if it is not known.
        times: of the frames in the order of display, in units of the file; empty where it does not say.
        starts: the indices of frames from which decoding can begin, ascending.
    """

    count: int
    fps: float | None
    times: Sequence[int]
    starts: Sequence[int]


def read_file(
    path: str | os.PathLike, choose: Callable[[int, float | None], Sequence[int]], keep: Callable[[Image.Image], T]
) -> list[T]:
    """What `keep` makes of the frames that `choose` chooses, see `data.video.sample_frames`.

    Raises:
        ValueError: it is no video, or has no frames.
        ModuleNotFoundError: PyAV is not installed.
    """
    with _damage():
        contents = _contents(path)
        indices = _chosen(choose, contents.count, contents.fps)
        wanted = sorted(set(indices))
        found = _by_seeking(path, wanted, contents, keep) if contents.times else None
        if found is None:
            found, decoded = _from_the_beginning(path, wanted, keep)
            if len(found) < len(wanted):  # a damaged end, of which the file itself does not know
                warnings.warn(f"{path}: is damaged behind frame {decoded} of {contents.count}", stacklevel=2)
                indices = _chosen(choose, decoded, contents.fps)
                found, _ = _from_the_beginning(path, sorted(set(indices)), keep)
        return [found[index] for index in indices]


def choose_in_file(path: str | os.PathLike, choose: Callable[[int, float | None], Sequence[int]]) -> Sequence[int]:
    """The indices that `choose` chooses by what the file says of itself; nothing is decoded.

    Raises:
        ValueError: it is no video, or has no frames.
        ModuleNotFoundError: PyAV is not installed.
    """
    with _damage():
        contents = _contents(path)
        return _chosen(choose, contents.count, contents.fps)


@contextmanager
def _damage() -> Iterator[None]:
    import av  # late: most uses have no video, and it is an extra

    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"cannot be read as a video ({type(error).__name__}: {error.strerror})") from error


def _chosen(choose: Callable[[int, float | None], Sequence[int]], count: int, fps: float | None) -> Sequence[int]:
    if not count:
        raise ValueError("the video has no frames")
    return choose(count, fps if fps and fps > 0 else None)


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[Any]:
    """The open file, which is no playlist (FFmpeg would read what that names) and has no frames that are too large."""
    import av

    try:
        opened = av.open(os.fspath(path), options={"format_whitelist": ",".join(av.formats_available - PLAYLISTS)})
    except av.ArgumentError as error:
        raise ValueError("cannot be read as a video; a playlist, which names other files, is none") from error
    with opened as container:
        for stream in container.streams.video[:1]:  # which is the one that is looked at
            if stream.codec_context is None:
                raise ValueError("it is of a codec that FFmpeg does not know")
            pixels = stream.width * stream.height
            if pixels > most_pixels():
                raise ValueError(f"its frames have {pixels} pixels; at most {most_pixels()} are decoded")
        yield container


def _contents(path: str | os.PathLike) -> Contents:
    import av

    with _open(path) as container:
        if not container.streams.video:
            raise ValueError("has no video in it")
        stream = container.streams.video[0]
        fps = float(stream.average_rate or stream.guessed_rate or 0) or None
        stated_length = (container.duration or 0) / av.time_base
        shown = [
            (packet.pts, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
    if fps and len(shown) + 2 < CUT * stated_length * fps:
        warnings.warn(f"{path}: ends early, with {len(shown)} frames of {stated_length * fps:.0f}", stacklevel=2)
    stated = {time for time, _ in shown if time is not None}
    if len(stated) < len(shown):
        return Contents(len(shown), fps, (), ())
    shown.sort()
    return Contents(len(shown), fps, sorted(stated), [index for index, (_, start) in enumerate(shown) if start])


def _by_seeking(
    path: str | os.PathLike, wanted: Sequence[int], contents: Contents, keep: Callable[[Image.Image], T]
) -> dict[int, T] | None:
    """What is kept of the wanted frames by index, or None if the file does not lead there."""
    import av

    index_of = {time: index for index, time in enumerate(contents.times)}
    found: dict[int, T] = {}
    with _open(path) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        frames, reached = container.decode(stream), -1
        try:
            for target in wanted:
                before = bisect.bisect_right(contents.starts, target)
                if before and (start := contents.starts[before - 1]) > reached + 1:
                    container.seek(contents.times[start], stream=stream)
                    frames = container.decode(stream)
                for frame in frames:
                    reached = index_of.get(frame.pts, len(index_of))
                    if reached >= target:
                        break
                if reached != target:
                    return None
                found[target] = keep(_sound(frame, path, target))
        except av.FFmpegError:
            return None
    return found


def _from_the_beginning(
    path: str | os.PathLike, wanted: Sequence[int], keep: Callable[[Image.Image], T]
) -> tuple[dict[int, T], int]:
    """What is kept of the wanted frames by index, and how many frames were decoded: all up to the last wanted one."""
    found, decoded = {}, 0
    for index, frame in enumerate(islice(_frames(path), wanted[-1] + 1)):
        decoded = index + 1
        if index in wanted:
            found[index] = keep(_sound(frame, path, index))
    return found, decoded


def _sound(frame: Any, path: str | os.PathLike, index: int) -> Image.Image:
    """The picture of a frame; a damaged one is used and told of."""
    if frame.is_corrupt:
        warnings.warn(f"{path}: frame {index} is damaged", stacklevel=2)
    return _upright(frame)


def _frames(path: str | os.PathLike) -> Iterator[Any]:
    import av

    with _open(path) as container:
        container.streams.video[0].thread_type = "AUTO"
        try:
            yield from container.decode(video=0)
        except av.InvalidDataError:
            return  # damaged from here on; what came before counts


def _upright(frame: Any) -> Image.Image:
    """The frame as players show it: phones store videos lying and say by how much to turn them."""
    image = frame.to_image()
    turn = {90: Image.Transpose.ROTATE_90, 180: Image.Transpose.ROTATE_180, 270: Image.Transpose.ROTATE_270}
    quarter = frame.rotation % 360
    return image.transpose(turn[quarter]) if quarter in turn else image
