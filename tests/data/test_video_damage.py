"""Damaged videos: a warning where questions are asked, a fault where a model is trained; whole ones are neither."""

import dataclasses
import itertools
import json
import re
from fractions import Fraction
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image

from ivl3_jax.data import Encoder, Fault, TrainingFrames, video_file
from ivl3_jax.data.faults import FaultPolicy
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.records import Video
from ivl3_jax.data.settings import DataRecipe, open_feed
from ivl3_jax.data.video import frames_at, sample_frames, spread, video_tiles
from ivl3_jax.data.video_damage import DamagedVideo, Packet, lost_frames
from tests.data.pictures import grey, picture, write_noise, write_video
from tests.data.talks import sample
from tests.data.test_video import index_of, published_indices

FAULTLESS = pytest.mark.filterwarnings("error::ivl3_jax.data.video_damage.DamagedVideo")
FASTSTART = {"movflags": "faststart"}


def everything(count, fps):
    return range(count)


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    return file


def blank(file, last):
    """Writes zeros over the last frames that are stored."""
    with av.open(str(file)) as container:
        places = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    content = bytearray(file.read_bytes())
    for place, size in places[-last:]:
        content[place : place + size] = bytes(size)
    file.write_bytes(content)
    return file


def test_a_damaged_end_leaves_what_came_before(tmp_path, monkeypatch):
    clip = write_video(tmp_path / "clip.mp4", 20)
    whole = video_file._frames
    monkeypatch.setattr(video_file, "_frames", lambda path: itertools.islice(whole(path), 8))
    monkeypatch.setattr(video_file, "_by_seeking", lambda *_: None)
    with pytest.warns(DamagedVideo, match="clip.mp4: the video is damaged: 12 of about 20 frames cannot be read"):
        found = sample_frames(clip, spread(Video(clip, 4)), index_of)
    assert found == published_indices(7, 10, 4, None)
    monkeypatch.setattr(video_file, "_frames", lambda path: itertools.islice(whole(path), 0))
    with pytest.raises(Fault, match="clip.mp4: no frame of the video can be decoded"):
        sample_frames(clip, spread(Video(clip, 4)), index_of)


def test_a_file_cut_off_in_the_middle(tmp_path):
    file = write_video(tmp_path / "clip.mkv", 20)
    file.write_bytes(file.read_bytes()[:-400])
    with pytest.warns(DamagedVideo, match="clip.mkv: the video is damaged: 10 of about 19 frames cannot be read"):
        found = sample_frames(file, everything, index_of)
    assert found == [*range(8), 9]  # the frame between is stored behind the one that it leans on, and is lost


@pytest.mark.parametrize("suffix", ["mkv", "avi", "ts", "mp4"])
def test_a_hole_in_the_middle(suffix, tmp_path):
    file = write_noise(tmp_path / f"clip.{suffix}")
    whole = file.read_bytes()
    half, fifth = len(whole) // 2, len(whole) // 5
    file.write_bytes(whole[:half] + bytes(fifth) + whole[half + fifth :])
    with pytest.warns(DamagedVideo, match=r"the video is damaged: (1[0-9]|3[0-9]) of about 60 frames cannot be read"):
        assert len(video_tiles(Video(file, 8), 28)) == 8


@pytest.mark.parametrize(("suffix", "options"), [("mkv", {}), ("avi", {}), ("mp4", FASTSTART)])
def test_half_a_file(suffix, options, tmp_path):
    file = halve(write_noise(tmp_path / f"clip.{suffix}", options))
    told = r"the video is damaged: (29|3[0-3]) of about 60 frames cannot be read.*; it is used as far as it goes"
    with pytest.warns(DamagedVideo, match=told):
        assert len(video_tiles(Video(file, 8), 28)) == 8


def test_one_frame_of_a_file(tmp_path):
    file = write_noise(tmp_path / "clip.mp4", FASTSTART)
    with av.open(str(file)) as container:
        second = [packet.pos for packet in container.demux(video=0)][1]
    file.write_bytes(file.read_bytes()[:second])
    with pytest.warns(DamagedVideo, match="59 of about 60 frames cannot be read"):
        assert len(video_tiles(Video(file, 8), 28)) == 8


def test_faulty_frames_are_counted(tmp_path):
    file = halve(write_noise(tmp_path / "clip.avi"))
    with pytest.warns(DamagedVideo, match="; 1 of the frames that are looked at could be decoded only in part"):
        sample_frames(file, everything, index_of)


@FAULTLESS
@pytest.mark.parametrize("suffix", ["mkv", "mp4", "ts", "avi", "mov"])
def test_whole_videos_are_not_called_damaged(suffix, tmp_path):
    video_tiles(Video(write_noise(tmp_path / f"clip.{suffix}"), 60), 28)
    if suffix in ("mkv", "mp4"):  # with pauses, which are nothing special where steps are unequal
        times = list(itertools.accumulate(range(60), lambda time, index: time + (100 if index % 7 else 900)))
        video_tiles(Video(write_video(tmp_path / f"uneven.{suffix}", 60, times), 60), 28)


@FAULTLESS
@pytest.mark.parametrize("suffix", ["mp4", "mov", "avi"])
def test_pauses_that_are_meant(suffix, tmp_path):
    """As screens are recorded: even but for the seconds in which nothing moves."""
    times = [100 * index + 1500 * (index > 20) + 2000 * (index > 40) for index in range(60)]
    video_tiles(Video(write_video(tmp_path / f"clip.{suffix}", 60, times), 60), 28)


@FAULTLESS
@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
@pytest.mark.parametrize("held", [(9,), (19,), (9, 14, 19)])
def test_frames_that_are_held(held, suffix, tmp_path):
    file = tmp_path / f"clip.{suffix}"
    with av.open(str(file), "w") as container:
        stream = container.add_stream("libx264", rate=10, options={"bf": "0"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        packets = []
        for number in range(20):
            packets += stream.encode(av.VideoFrame.from_ndarray(grey(number), format="rgb24"))
        waited = 0
        for number, packet in enumerate([*packets, *stream.encode()]):
            packet.pts, packet.dts = packet.pts + waited, packet.dts + waited
            packet.duration = 30 if number in held else 1
            waited += packet.duration - 1
            container.mux(packet)
    video_tiles(Video(file, 20), 28)


@FAULTLESS
def test_sound_that_lasts_longer(tmp_path):
    file = tmp_path / "clip.flv"  # which has one length for both
    with av.open(str(file), "w") as container:
        pictures, sound = container.add_stream("flv1", rate=10), container.add_stream("aac", rate=48000)
        pictures.width, pictures.height, pictures.pix_fmt = 64, 48, "yuv420p"
        for number in range(20):
            container.mux(pictures.encode(av.VideoFrame.from_ndarray(grey(number), format="rgb24")))
        container.mux(pictures.encode())
        for number in range(200):
            silence = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), format="fltp", layout="stereo")
            silence.sample_rate, silence.pts = 48000, 1024 * number
            container.mux(sound.encode(silence))
        container.mux(sound.encode())
    video_tiles(Video(file, 20), 28)


@pytest.mark.parametrize("tag", ["DURATION", "DURATION-eng"])
def test_the_length_that_matroska_states(tag):
    stream = SimpleNamespace(time_base=Fraction(1, 1000), duration=None, metadata={tag: "00:01:02.500000000"})
    container = SimpleNamespace(format=SimpleNamespace(name="matroska,webm"), streams=[stream, None], duration=None)
    packets = [Packet(100 * number, None, 100, True) for number in range(60)]
    assert lost_frames(container, stream, packets) == 625 - 60


def asked(file, frames=60):
    return sample(("u", "?"), ("a", "7"), videos=(Video(file, frames),), where="data.jsonl:9")


@pytest.fixture(scope="module")
def encoder(processor):
    return Encoder(processor, tokens=4000, tiles=60)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.mark.parametrize(("suffix", "options"), [("mkv", {}), ("avi", {}), ("mp4", FASTSTART)])
def test_training_refuses_half_a_file_before_it_is_packed(suffix, options, encoder, rng, tmp_path):
    file = halve(write_noise(tmp_path / f"clip.{suffix}", options))
    told = rf"^data.jsonl:9: .*clip.{suffix}: the video is damaged: 3[01] of about 60 frames cannot be read$"
    with pytest.raises(Fault, match=told) as raised:
        encoder.measure(asked(file), rng)
    assert raised.value.reason == "video"


def test_training_refuses_frames_that_cannot_be_decoded(encoder, rng, tmp_path):
    file = blank(write_noise(tmp_path / "clip.mp4"), 9)
    (unit,) = encoder.measure(asked(file), rng)  # the file knows nothing of it
    with pytest.raises(Fault, match=r"^data.jsonl:9: .*: the video is damaged: \d+ of about 60 frames") as raised:
        encoder.decode(unit, rng)
    assert raised.value.reason == "video"


def test_training_refuses_frames_that_are_faulty(tmp_path):
    file = write_noise(tmp_path / "clip.avi")
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) * 19 // 20])
    with pytest.raises(Fault, match="damaged: 1 of the frames that are looked at could be decoded only in part"):
        frames_at(file, range(58), index_of)
    assert len(frames_at(file, range(50), index_of)) == 50


def test_training_repeats_the_last_frame_where_no_half_second_is_missing(encoder, rng, tmp_path):
    file = write_noise(tmp_path / "clip.mp4")
    every = dataclasses.replace(encoder, frames=TrainingFrames("middle", 60, 60))
    (unit,) = every.measure(asked(file), rng)
    (whole,) = every.decode(unit, rng)
    blank(file, 1)  # two more wait in the decoder for it
    (found,) = every.decode(unit, rng)
    assert np.array_equal(found.tiles, whole.tiles[[*range(57), 56, 56, 56]])


@FAULTLESS
def test_training_looks_only_at_the_frames_that_were_chosen(encoder, rng, tmp_path):
    file = blank(write_noise(tmp_path / "clip.mp4"), 9)
    (unit,) = encoder.measure(sample(("u", "?"), ("a", "7"), videos=(Video(file, 4, (0, 3)),)), rng)
    assert len(encoder.decode(unit, rng)[0].tiles) == 4


def test_training_refuses_what_has_changed(encoder, rng, tmp_path):
    for number in range(4):
        picture(64, 48, number).save(tmp_path / f"{number}.png")
    (unit,) = encoder.measure(asked(tmp_path, 8), rng)
    (tmp_path / "0.png").unlink()
    (tmp_path / "1.png").unlink()
    with pytest.raises(Fault, match="has 2 frames, but had more when it was looked at before"):
        encoder.decode(unit, rng)
    (tmp_path / "3.png").write_bytes(b"")
    with pytest.raises(Fault, match=r"3.png: cannot be read as an image: the file is empty") as raised:
        encoder.decode(unit, rng)
    assert raised.value.reason == "video"


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.gif"])
def test_training_refuses_a_still_picture(name, encoder, rng, tmp_path):
    Image.fromarray(grey(3)).save(tmp_path / name)
    with pytest.raises(Fault, match=f"^data.jsonl:9: .*{name}: .*; give it as an image") as raised:
        encoder.measure(asked(tmp_path / name), rng)
    assert raised.value.reason == "video"


@pytest.mark.parametrize("damage", ["half a file", "frames that cannot be decoded"])
def test_a_policy_decides(damage, processor, tmp_path):
    file = write_noise(tmp_path / "bad.mp4", FASTSTART)
    halve(file) if damage == "half a file" else blank(file, 30)
    write_noise(tmp_path / "good.mp4")
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "Noise."}]
    names = ["good.mp4", "good.mp4", "bad.mp4", "good.mp4"]
    lines = [json.dumps({"video": name, "conversations": turns}) for name in names]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    room = {"rows": 1, "tokens": 4000, "tiles": 32, "segments": 4, "exhausted": "drop"}
    recipe = DataRecipe(annotation=str(tmp_path / "a.jsonl"), **room)
    told = r"a.jsonl:3: .*bad.mp4: the video is damaged: \d+ of about 60 frames cannot be read"
    with pytest.raises(Fault, match=told):
        list(Loader(open_feed(recipe, processor, seed=0)))
    skipping = dataclasses.replace(recipe, faults=FaultPolicy("skip", most=0.5))
    loader = Loader(open_feed(skipping, processor, seed=0))
    assert sum(int(batch.segment_ids.max()) for batch in loader) == 3
    assert loader.skipped == {"video": 1}
    (skip,) = loader.take_skips()
    assert re.search(f"{told}$", skip.message)
