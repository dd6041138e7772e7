"""Training samplers against their rules written out; numbers, clips, short videos, and what cannot be."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ivl3_jax.data import Fault, TrainingFrames, Video
from ivl3_jax.data.video import choose_frames
from tests.data.pictures import picture, write_video


def indices(method, count, fps=10.0, clip=None, seed=0, **bounds):
    frames = TrainingFrames(method, **bounds)
    return frames.choose(Video("x", clip=clip), np.random.default_rng(seed))(count, fps)


@given(st.integers(1, 5000), st.integers(0, 99))
def test_rand_takes_one_of_each_interval(count, seed):
    found = indices("rand", count, seed=seed)
    wanted = int(np.random.default_rng(seed).integers(8, 33))
    assert len(found) == wanted and found == sorted(found)
    if count < wanted:
        assert found == [*range(count), *[count - 1] * (wanted - count)]
        return
    for number, index in enumerate(found):
        assert number * count // wanted <= index < (number + 1) * count // wanted


def test_rand_reaches_every_frame_and_every_number():
    drawn = [indices("rand", 64, seed=seed) for seed in range(600)]
    assert {index for found in drawn for index in found} == set(range(64))
    assert {len(found) for found in drawn} == set(range(8, 33))


@given(st.integers(1, 5000), st.integers(1, 40))
def test_middle(count, wanted):
    found = indices("middle", count, fewest=wanted, most=wanted)
    intervals = min(wanted, count)
    bounds = [number * count // intervals for number in range(intervals + 1)]
    expected = [(first + after - 1) // 2 for first, after in zip(bounds, bounds[1:], strict=False)]
    assert found == expected + [expected[-1]] * (wanted - len(expected))


@given(st.integers(1, 3000), st.sampled_from([1, 24, 29.97]), st.sampled_from(["0.5", "1", "2", ".25"]))
def test_frames_a_second(count, fps, rate):
    found = indices(f"fps{rate}", count, fps, most=10_000)
    step = 1 / float(rate)
    moments = [step / 2 + step * n for n in range(math.ceil(count / fps / step))]
    expected = [int(np.around(moment * fps)) for moment in moments]
    assert found == ([index for index in expected if index < count] or [count // 2])
    assert indices(f"fps{rate}", count, fps, most=9) == found[:9]


@pytest.mark.parametrize("method", ["rand", "middle", "fps2"])
def test_clips(method):
    for seed in range(20):
        found = indices(method, 200, 10.0, (3, 7.5), seed)
        assert min(found) >= 30 and max(found) < 75
        assert max(indices(method, 200, 10.0, (18, 99), seed)) < 200
        assert set(indices(method, 200, 10.0, (3, 3.01), seed)) == {30}
    with pytest.raises(Fault, match="the clip begins at 30 s, but the video ends after 20 s") as raised:
        indices(method, 200, 10.0, (30, 40))
    assert raised.value.reason == "video"


def test_without_times():
    with pytest.raises(Fault, match="the frames have no times, so fps2 cannot choose among them") as raised:
        indices("fps2", 20, None)
    assert raised.value.reason == "video" and len(indices("rand", 20, None)) >= 8


def test_the_same_of_files_and_directories(tmp_path):
    file = write_video(tmp_path / "a.mp4", 20)
    (tmp_path / "frames").mkdir()
    for number in range(20):
        picture(8, 8).save(tmp_path / "frames" / f"{number}.png")
    for path in (file, tmp_path / "frames"):
        chosen = choose_frames(path, TrainingFrames("rand").choose(Video(path), np.random.default_rng(3)))
        assert chosen == indices("rand", 20, seed=3)


@pytest.mark.parametrize("method", ["random", "fps", "fps0", "fps-1", "fps1e3", ""])
def test_methods_that_are_none(method):
    with pytest.raises(ValueError, match=f"TrainingFrames.method is '{method}'; valid: rand, middle, or fps and a"):
        TrainingFrames(method)
    with pytest.raises(ValueError, match="TrainingFrames.fewest is 9 and most 8; valid: 1 <= fewest <= most"):
        TrainingFrames(fewest=9, most=8)
