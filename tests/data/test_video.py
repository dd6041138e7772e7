"""Which frames of a video are read, from files, GIFs and directories, and what bad ones are told."""

import dataclasses
import itertools
import sys

import numpy as np
import pytest
from PIL import Image

from ivl3_jax.data import video_file
from ivl3_jax.data.images import tile_image
from ivl3_jax.data.records import Video
from ivl3_jax.data.video import is_video, sample_frames, spread, video_tiles
from tests.data.pictures import STEP, grey, write_video

FRAMES = 20


def index_of(frame):
    """The number of a `grey` frame."""
    return round(np.asarray(frame).mean() / STEP)


def index_of_decoded(frame):
    return index_of(frame.to_image())


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("videos") / "clip.mp4", FRAMES)


@pytest.fixture(scope="module")
def gif(tmp_path_factory):
    file = tmp_path_factory.mktemp("videos") / "moving.gif"
    first, *others = (Image.fromarray(grey(index)) for index in range(9))
    first.save(file, save_all=True, append_images=others, duration=[100, 300, 40] * 3)
    return file


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    directory = tmp_path_factory.mktemp("frames")
    for index in range(12):
        Image.fromarray(grey(index)).save(directory / f"shot{index}.png")
    (directory / "notes.txt").write_text("not a frame")
    return directory


def published_indices(last, fps, count, bound):
    """The sampling of the model cards, from its description: midpoints of equal segments."""
    start, end = bound or (-100000, 100000)
    first, last = max(0, round(start * fps)), min(round(end * fps), last)
    length = float(last - first) / count
    return np.array([int(first + length / 2 + np.round(length * k)) for k in range(count)]).tolist()


@pytest.mark.parametrize("bound", [None, (0, 1), (2.5, 4), (3, 900), (0.01, 0.02)])
def test_indices_are_the_published_ones(bound):
    for total, count, fps in itertools.product((1, 2, 7, 100, 1001), (1, 2, 8, 64), (1, 24, 29.97)):
        if bound and round(bound[0] * fps) >= total:
            continue
        found = spread(Video("x", count, bound))(total, fps)
        assert found == published_indices(total - 1, fps, count, bound)
        assert min(found) >= 0 and max(found) < total and found == sorted(found)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi"])
def test_frames_of_a_file(suffix, tmp_path):
    file = write_video(tmp_path / f"clip.{suffix}", FRAMES)
    wanted = [0, 1, 5, 6, 7, 7, 13, 19]
    assert sample_frames(file, lambda count, fps: wanted, index_of) == wanted
    told = []
    sample_frames(file, lambda *stated: told.append(stated) or [0], index_of)
    assert told == [(FRAMES, 10)]


def test_frames_are_counted_whatever_the_rate_does(tmp_path):
    times = [
        0,
        10,
        20,
        30,
        500,
        510,
        2000,
        2010,
        2020,
        2500,
        2510,
        2520,
        2900,
        3000,
        3100,
        3110,
        3120,
        3130,
        3140,
        3150,
    ]
    file = write_video(tmp_path / "uneven.mp4", FRAMES, times)
    assert sample_frames(file, lambda count, fps: range(count), index_of) == list(range(FRAMES))


def test_frames_of_a_gif(gif):
    assert sample_frames(gif, lambda count, fps: range(count), index_of) == list(range(9))


def test_frames_of_a_directory_in_the_order_of_their_numbers(folder):
    assert sample_frames(folder, lambda count, fps: range(count), index_of) == list(range(12))


def test_tiles(clip):
    found = video_tiles(Video(clip, 3, (0.5, 1.5)), 28)
    assert found.shape == (3, 28, 28, 3) and found.dtype == np.uint8
    assert [index_of(tile) for tile in found] == published_indices(FRAMES - 1, 10, 3, (0.5, 1.5))
    (frame,) = sample_frames(clip, lambda *_: [6], lambda frame: frame)
    np.testing.assert_array_equal(tile_image(frame, 28, 1, 1, False)[0], video_tiles(Video(clip, 1, (0.5, 0.7)), 28)[0])


def test_only_what_is_chosen_is_kept(clip, monkeypatch):
    """Frames that nobody wants are not even converted."""
    seen, upright = [], video_file._upright
    monkeypatch.setattr(video_file, "_upright", lambda frame: seen.append(frame.pts) or upright(frame))
    assert sample_frames(clip, lambda *_: [2, 2, 11], index_of) == [2, 2, 11]
    assert len(seen) == 2


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "mov", "ts"])
def test_seeking_finds_what_decoding_all_finds(suffix, tmp_path):
    file = write_video(tmp_path / f"clip.{suffix}", FRAMES)
    contents = video_file.look(file)
    assert (contents.count, list(contents.starts)) == (FRAMES, [0, 6, 12, 18])
    for wanted in ([0], [19], [5, 6], [1, 7, 8, 18], [11, 12, 13], range(FRAMES)):
        found = video_file._by_seeking(file, wanted, contents, index_of_decoded)
        assert found == {index: index for index in wanted} or (found is None and suffix == "ts")
        assert video_file._from_the_beginning(file, wanted, index_of_decoded)[0] == {index: index for index in wanted}


def test_a_file_that_leads_elsewhere_is_decoded_from_the_beginning(clip, monkeypatch):
    contents = video_file.look
    wrong = {"times": range(100, 100 + FRAMES)}
    monkeypatch.setattr(video_file, "look", lambda path: dataclasses.replace(contents(path), **wrong))
    assert sample_frames(clip, lambda *_: [2, 11], index_of) == [2, 11]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.bmp", "a.webp", "a.gif"])
def test_a_still_picture_is_no_video(name, tmp_path):
    Image.fromarray(grey(3)).save(tmp_path / name)
    with pytest.raises(ValueError, match=f"{name}: .*; give it as an image"):
        video_tiles(Video(tmp_path / name), 28)


def test_a_lying_video_is_turned_upright(clip):
    frame = next(video_file._frames(clip))

    class Lying:
        rotation = 90

        def to_image(self):
            return frame.to_image()

    assert video_file._upright(frame).size == (64, 48)
    assert video_file._upright(Lying()).size == (48, 64)


def test_what_is_a_video(clip, gif, folder, tmp_path):
    still = tmp_path / "still.gif"
    Image.fromarray(grey(0)).save(still)
    (tmp_path / "broken.gif").write_text("no")
    assert all(map(is_video, (clip, gif, folder, "a.MP4", "b.webm")))
    assert not any(map(is_video, (still, tmp_path / "broken.gif", tmp_path / "none.gif", "a.png", "nowhere")))


@pytest.mark.parametrize(
    ("name", "given", "told"),
    [
        ("none.mp4", {}, "none.mp4: no such video file or directory of frames"),
        ("text.mp4", {}, r"text.mp4: cannot be read as a video \(InvalidDataError"),
        ("empty.mp4", {}, "empty.mp4: cannot be read as a video"),
        ("sound.wav", {}, "sound.wav: has no video in it"),
        ("empty", {}, r"empty: the directory has no frames; valid are files that end in \.jpg"),
        ("clip.mp4", {"clip": (3, 4)}, "clip.mp4: the clip begins at 3 s, but the video ends after 2 s"),
        ("folder", {"clip": (0, 4)}, "the frames have no times, so a clip in seconds cannot be cut out"),
    ],
)
def test_faulty_videos_are_named(name, given, told, clip, folder, tmp_path):
    (tmp_path / "text.mp4").write_text("not a video " * 99)
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "empty").mkdir()
    header = b"RIFF\x24\x01\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\1\0\0"
    (tmp_path / "sound.wav").write_bytes(header + bytes(256))
    path = {"clip.mp4": clip, "folder": folder}.get(name, tmp_path / name)
    with pytest.raises(ValueError, match=told):
        video_tiles(Video(path, **given), 28)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"frames": 0}, "the number of frames is 0; it must be a whole number of at least 1"),
        ({"frames": True}, "the number of frames is True"),
        ({"frames": 2.5}, "the number of frames is 2.5"),
        ({"clip": (2, 1)}, "the clip is 2 to 1 s; it must begin at 0 or later and before its end"),
        ({"clip": (-1, 1)}, "the clip is -1 to 1 s"),
        ({"clip": (0, float("nan"))}, "the clip is 0 to nan s"),
    ],
)
def test_what_cannot_be_asked_of_a_video(given, told):
    with pytest.raises(ValueError, match=told):
        Video("clip.mp4", **given)


def test_without_pyav_the_missing_module_is_named(clip, folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ModuleNotFoundError, match="av"):
        video_tiles(Video(clip), 28)
    assert len(video_tiles(Video(folder), 28)) == 8  # which needs none
