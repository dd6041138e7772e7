"""Chosen frames of a video file, decoded by PyAV (extra `video`).

The file is read through once without decoding, which says what frames there are and where decoding can begin. Then only
the stretches in which frames were chosen are decoded; where a file does not lead to where it says, all of it is, up to
the last chosen frame.
"""

import bisect
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

from PIL import Image

from ivl3_jax.data.images import most_pixels
from ivl3_jax.data.video_damage import Packet, describe, lost_at_the_end, lost_frames

T = TypeVar("T")

PLAYLISTS = {"concat", "dash", "hls", "imf", "rtsp", "sap", "sdp"}


@dataclass(frozen=True)
class Contents:
    """What a file says of itself.

    Attributes:
        count: of its frames. fps: their average rate, None if it is not known.
        times: of the frames in the order of display, in units of the file; empty where it does not say.
        starts: the indices of frames from which decoding can begin, ascending.
        lost: about how many frames it speaks of and does not hold.
    """

    count: int
    fps: float | None
    times: Sequence[int]
    starts: Sequence[int]
    lost: int

    def damage(self, undecoded: int = 0, faulty: int = 0) -> str:
        """What is wrong in words, "" for nothing; so many frames could not be decoded, or only in part."""
        return describe(self.lost + undecoded, self.count + self.lost, faulty)


@dataclass(frozen=True)
class Reading(Generic[T]):
    """Frames of a video.

    Attributes:
        frames: what is kept of each that was chosen. count: how many the video has.
        damage: what is wrong in words, "" for nothing.
    """

    frames: list[T]
    count: int
    damage: str = ""


def read_file(
    path: str | os.PathLike, choose: Callable[[int, float | None], Sequence[int]], keep: Callable[[Image.Image], T]
) -> Reading[T]:
    """What `keep` makes of the frames that `choose` chooses, see `data.video.sample_frames`.

    Where the last of them cannot be decoded, `choose` chooses again among those that can.

    Raises:
        ValueError: it is no video, or has no frames.
        ModuleNotFoundError: PyAV is not installed.
    """
    faulty = set()

    def kept(frame: Any) -> T:
        if frame.is_corrupt:
            faulty.add(frame.pts)
        return keep(_upright(frame))

    contents = look(path)
    with _reading():
        indices, undecoded = choose(contents.count, contents.fps), 0
        wanted = sorted(set(indices))
        found = _by_seeking(path, wanted, contents, kept) if contents.times else None
        if found is None:
            found, decoded = _from_the_beginning(path, wanted, kept)
            if not decoded:
                raise ValueError("no frame of the video can be decoded")
            if len(found) < len(wanted):  # a damaged end, of which the file itself does not know
                undecoded = lost_at_the_end(contents.count - decoded, contents.fps)
                indices = choose(decoded, contents.fps)
                found, _ = _from_the_beginning(path, sorted(set(indices)), kept)
    return Reading([found[index] for index in indices], contents.count, contents.damage(undecoded, len(faulty)))


def look(path: str | os.PathLike) -> Contents:
    """Reads through a file without decoding.

    Raises:
        ValueError: it is no video, or has no frames.
        ModuleNotFoundError: PyAV is not installed.
    """
    with _reading(), _open(path) as container:
        if not container.streams.video:
            raise ValueError("has no video in it")
        stream = container.streams.video[0]
        if container.format.name == "image2" or container.format.name.endswith("_pipe"):
            raise ValueError("a still picture, not a video; give it as an image")
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        fps = rate if rate > 0 else None
        packets = [
            Packet(packet.pts, packet.dts, packet.duration or 0, packet.is_keyframe)
            for packet in container.demux(stream)
            if packet.size and not packet.is_discard
        ]
        if not packets:
            raise ValueError("the video has no frames")
        if container.format.name == "gif" and len(packets) == 1:
            raise ValueError("a GIF that does not move, so no video; give it as an image")
        lost = lost_frames(container, stream, packets)
    times = {packet.shown for packet in packets if packet.shown is not None}
    if len(times) < len(packets):
        return Contents(len(packets), fps, (), (), lost)
    packets.sort()
    starts = [index for index, packet in enumerate(packets) if packet.begins]
    return Contents(len(packets), fps, sorted(times), starts, lost)


@contextmanager
def _reading() -> Iterator[None]:
    import av

    try:
        yield
    except av.FFmpegError as error:
        raise ValueError(f"cannot be read as a video ({type(error).__name__}: {error.strerror})") from error


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
            # Threads that decode frames side by side now and then lose the mark of one that is damaged.
            stream.thread_type = "SLICE"
        yield container


def _by_seeking(
    path: str | os.PathLike, wanted: Sequence[int], contents: Contents, kept: Callable[[Any], T]
) -> dict[int, T] | None:
    """What `kept` makes of the wanted frames by index, or None if the file does not lead there."""
    import av

    index_of = {time: index for index, time in enumerate(contents.times)}
    found: dict[int, T] = {}
    with _open(path) as container:
        stream = container.streams.video[0]
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
                found[target] = kept(frame)
        except av.FFmpegError:
            return None
    return found


def _from_the_beginning(
    path: str | os.PathLike, wanted: Sequence[int], kept: Callable[[Any], T]
) -> tuple[dict[int, T], int]:
    """What `kept` makes of the wanted frames by index, and how many were decoded: all up to the last wanted one."""
    found, decoded = {}, 0
    for index, frame in enumerate(islice(_frames(path), wanted[-1] + 1)):
        decoded = index + 1
        if index in wanted:
            found[index] = kept(frame)
    return found, decoded


def _frames(path: str | os.PathLike) -> Iterator[Any]:
    import av

    with _open(path) as container:
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
