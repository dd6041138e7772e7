"""Measuring and decoding: the same as encoding at once, no pixel too early, every fault with its reason and place."""

import dataclasses
import pickle

import numpy as np
import pytest
from PIL import Image, ImageFile

from ivl3_jax.data import Encoder, Fault, Jpeg, TrainingFrames, tile_image, video_file
from ivl3_jax.data.images import PADDING
from ivl3_jax.data.positions import random_deltas, v2pe_positions
from ivl3_jax.data.records import Video
from tests.data.pictures import picture, write_video
from tests.data.talks import sample
from tests.data.test_images import bomb

FIELDS = ("tokens", "labels", "supervised", "tiles", "visual_index", "positions", "source", "where", "answer")


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Two photographs, and a video as a directory of frames."""
    root = tmp_path_factory.mktemp("files")
    picture(120, 60, 1).save(root / "wide.png")
    picture(60, 120, 2).save(root / "tall.jpg")
    (root / "frames").mkdir()
    for number in range(12):
        picture(64, 48, number).save(root / "frames" / f"{number}.png")
    return root


def assert_same(found, expected):
    for field in FIELDS:
        np.testing.assert_array_equal(getattr(found, field), getattr(expected, field), err_msg=field)
        assert np.asarray(getattr(found, field)).dtype == np.asarray(getattr(expected, field)).dtype


def talks(root):
    two = (root / "wide.png", picture(30, 60))
    frames = (root / "frames",)
    return [
        sample(("s", "Be brief."), ("u", "Hi"), ("a", "Yes?"), ("u", "What is it?"), ("a", "It is 7."), source=3),
        sample(("u", "<image> or <image>?"), ("a", "7"), images=two, where="a:1"),
        sample(("u", "Hi"), ("a", "Yes?"), ("u", "<video><image>"), ("a", "8"), images=two[:1], videos=frames),
        sample(("u", "?"), ("a", "7"), images=(np.zeros((2, 56, 56, 3), np.uint8),)),
    ]


def test_two_steps_are_one(encoder, files, rng):
    for talk in talks(files):
        (unit,) = encoder.measure(talk, rng)
        unit = pickle.loads(pickle.dumps(unit))  # it may go to another process
        (found,) = encoder.decode(unit, rng)
        assert_same(found, encoder.processor.encode(talk))
        sizes = unit.tokens, unit.tiles, unit.segments, unit.supervised, unit.source, unit.where
        assert sizes == (len(found), len(found.tiles), 1, (found.supervised.sum(),), talk.source, talk.where)
    assert rng.random() == np.random.default_rng(7).random()  # nothing was drawn


def test_measuring_decodes_nothing(encoder, files, rng, monkeypatch):
    def decoded(*_):
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", decoded)
    (unit,) = encoder.measure(talks(files)[1], rng)
    assert unit.tiles == 6
    (unit,) = encoder.measure(sample(("u", "?"), ("a", "7"), videos=(files / "frames",)), rng)
    assert unit.tiles == 8


def test_measuring_a_video_decodes_nothing(encoder, rng, tmp_path, monkeypatch):
    file = write_video(tmp_path / "a.mp4", 20)
    talk = sample(("u", "?"), ("a", "7"), videos=(Video(file, 4),))
    expected = encoder.processor.encode(talk)
    upright = video_file._upright
    monkeypatch.setattr(video_file, "_upright", lambda frame: pytest.fail("a frame was decoded"))
    (unit,) = encoder.measure(talk, rng)
    monkeypatch.setattr(video_file, "_upright", upright)
    assert unit.tiles == 4
    assert_same(encoder.decode(unit, rng)[0], expected)


def test_limits_of_a_data_set_are_shared_out(encoder, rng, files):
    talk = talks(files)[1]
    for limit in (None, 6, 4, 3, 1, 12):
        (unit,) = encoder.measure(talk, rng, limit)
        found = [visual.tiles for visual in unit.visuals]
        pictures = [tile_image(image, 56, 1, max(1, (limit or 6) // 2), True) for image in talk.images]
        assert found == [len(tiles) for tiles in pictures]
        assert np.array_equal(encoder.decode(unit, rng)[0].tiles, np.concatenate(pictures))


def test_the_processor_s_square(processor, rng):
    squared = Encoder(dataclasses.replace(processor, pad_to_square=True), 400, 20)
    wide = picture(100, 40)
    (unit,) = squared.measure(sample(("u", "?"), ("a", "7"), images=[wide, picture(9, 9)]), rng)
    assert unit.tiles == 2
    canvas = Image.new("RGB", (100, 100), (123, 116, 103))
    canvas.paste(wide, (0, 30))
    tiles = squared.decode(unit, rng)[0].tiles
    assert np.array_equal(tiles[0], np.asarray(canvas.resize((56, 56))))
    assert np.array_equal(tiles[1], np.asarray(picture(9, 9).resize((56, 56)))) and PADDING == (123, 116, 103)
    with pytest.raises(Fault, match=r"filled up to a square it would have 400000000 pixels; at most \d+") as raised:
        squared.measure(sample(("u", "?"), ("a", "7"), images=[Image.new("1", (20000, 1))]), rng)
    assert raised.value.reason == "bomb"


def test_jpeg_is_for_images_and_video_jpeg_for_videos(encoder, files, rng):
    talk = talks(files)[2]  # two images would come after the frames
    (unit,) = encoder.measure(talk, rng)
    (plain,) = encoder.decode(unit, rng)
    for settings, changed in (({"jpeg": Jpeg()}, slice(8, None)), ({"video_jpeg": Jpeg()}, slice(0, 8))):
        (found,) = dataclasses.replace(encoder, **settings).decode(unit, np.random.default_rng(1))
        differs = [not np.array_equal(a, b) for a, b in zip(found.tiles, plain.tiles, strict=True)]
        expected = np.zeros(len(differs), bool)
        expected[changed] = True
        assert differs == expected.tolist()
        assert np.abs(found.tiles.astype(int) - plain.tiles).max() > 3


def test_decoding_is_a_function_of_its_generator(encoder, files):
    jpeg, frames = Jpeg(0.5, (10, 90)), TrainingFrames(fewest=2, most=12)
    noisy = dataclasses.replace(encoder, jpeg=jpeg, deltas=random_deltas, frames=frames)
    talk = talks(files)[2]

    def made(seed):
        (unit,) = noisy.measure(talk, np.random.default_rng(seed))
        noisy.measure(talks(files)[1], np.random.default_rng(99))  # others between change nothing
        return noisy.decode(unit, np.random.default_rng(seed))[0]

    assert_same(made(3), made(3))
    assert not np.array_equal(made(3).positions, made(4).positions)


def test_deltas_are_drawn_for_each_image(encoder, files, rng):
    stepped = dataclasses.replace(encoder, deltas=random_deltas)
    (unit,) = stepped.measure(talks(files)[1], rng)
    (found,) = stepped.decode(unit, np.random.default_rng(5))
    deltas = random_deltas(np.random.default_rng(5), 2)
    assert np.array_equal(found.positions, v2pe_positions(found.visual_index >= 0, deltas))
    drawn = random_deltas(rng, 9000)
    values, counts = np.unique(drawn, return_counts=True)
    assert values.tolist() == [2.0**-k for k in range(8, -1, -1)] and (np.abs(counts - 1000) < 150).all()


def test_training_frames(encoder, files, rng):
    trained = dataclasses.replace(encoder, frames=TrainingFrames("middle", 3, 3))
    (unit,) = trained.measure(sample(("u", "<video>?"), ("a", "7"), videos=(Video(files / "frames", 8),)), rng)
    assert [visual.index for visual in unit.visuals] == [1, 5, 9]


def test_shrunk_to_fit(encoder, files, rng):
    talk = talks(files)[1]
    for room, tiles in ((6, (3, 3)), (5, (1, 1)), (2, (1, 1))):
        fitting = dataclasses.replace(encoder, tiles=room, too_many_tiles="shrink")
        (unit,) = fitting.measure(talk, rng)
        assert tuple(visual.tiles for visual in unit.visuals) == tiles
        (found,) = fitting.decode(unit, rng)
        assert_same(found, encoder.processor.encode(talk, max_tiles=2 * max(1, tiles[0] - 1)))
    for policy in ("raise", "shrink"):
        full = dataclasses.replace(encoder, tiles=1, too_many_tiles=policy)
        with pytest.raises(Fault, match=rf"^a:1: has {6 if policy == 'raise' else 2} tiles, .* room for 1") as raised:
            full.measure(talk, rng)
        assert raised.value.reason == "tiles"


@pytest.mark.parametrize(
    ("of", "advice"),
    [
        ({}, "set too_long to split"),
        ({"images": "wide.png"}, "lower max_tiles"),
        ({"videos": "frames"}, "fewer frames"),
    ],
)
def test_what_would_make_it_fit(encoder, files, rng, of, advice):
    talk = sample(("u", "What is it?"), ("a", "It is 7."), **{kind: [files / name] for kind, name in of.items()})
    with pytest.raises(Fault, match=f"raise tokens of a row, or .*{advice}"):
        dataclasses.replace(encoder, tokens=9).measure(talk, rng)


def test_too_long(encoder, files, rng):
    talk = sample(("u", "<image>" * 3), ("a", "0123456789" * 4), images=[files / "wide.png"] * 3, where="a:1")
    (whole,) = encoder.measure(talk, rng, 3)
    told = f"^a:1: has {whole.tokens} tokens, but a row has room for 50; leave the sample out"
    with pytest.raises(Fault, match=told) as raised:
        dataclasses.replace(encoder, tokens=50).measure(talk, rng, 3)
    assert raised.value.reason == "tokens"
    shorter = dataclasses.replace(encoder, tokens=50, too_long="truncate")
    (unit,) = shorter.measure(talk, rng, 3)
    (cut,), expected = shorter.decode(unit, rng), encoder.processor.encode(talk, 3)
    assert unit.tokens == 50 and np.array_equal(cut.tokens, expected.tokens[:50]) and cut.labels[-1] == -100
    pieces = dataclasses.replace(encoder, tokens=20, too_long="split").measure(talk, rng, 3)
    found = [encoder.decode(piece, rng)[0] for piece in pieces]
    assert np.array_equal(np.concatenate([piece.tokens for piece in found]), expected.tokens)
    assert np.array_equal(np.concatenate([piece.tiles for piece in found]), expected.tiles)
    for piece in found:
        visual = piece.visual_index[piece.visual_index >= 0]
        assert len(piece) <= 20 and piece.positions[0] == 0 and visual.tolist() == list(range(4 * len(piece.tiles)))


@pytest.mark.parametrize(
    ("name", "fields", "reason", "told"),
    [
        ("missing", {"images": ["none.png"]}, "image", "none.png: no such image file"),
        ("no image", {"images": ["text.png"]}, "image", "text.png: cannot be read as an image"),
        ("bomb", {"images": ["bomb.png"]}, "bomb", "bomb.png: refused as a possible decompression bomb"),
        ("no pixels", {"images": [Image.new("RGB", (0, 4))]}, "image", "the image is 0 x 4 pixels"),
        ("no tiles", {"images": [np.zeros((1, 5, 5, 3), np.uint8)]}, "image", "an image was given as an array"),
        ("video", {"videos": ("none.mp4",)}, "video", "none.mp4: no such video file"),
        ("no video", {"videos": ("text.mp4",)}, "video", "text.mp4: cannot be read as a video"),
        ("clip", {"videos": (Video("frames", clip=(0, 1)),)}, "video", "frames: the frames have no times"),
    ],
)
def test_faults_when_measured(name, fields, reason, told, encoder, files, tmp_path, rng, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "frames").symlink_to(files / "frames")
    for file in ("text.png", "text.mp4"):
        (tmp_path / file).write_text("neither an image nor a video")
    (tmp_path / "bomb.png").write_bytes(bomb())
    with pytest.raises(Fault, match=f"^data.jsonl:9: {told}") as raised:
        encoder.measure(sample(("u", "?"), ("a", "7"), where="data.jsonl:9", **fields), rng)
    assert raised.value.reason == reason


def test_faults_when_decoded(encoder, tmp_path, rng):
    file = tmp_path / "a.png"
    picture(70, 40).save(file)
    whole = file.read_bytes()
    (unit,) = encoder.measure(sample(("u", "?"), ("a", "7"), images=[file], where="a:1"), rng)
    cases = [
        (lambda: file.write_bytes(whole[:-2000]), r"a\.png: cannot be read as an image \(OSError: .*truncated"),
        (lambda: picture(40, 70).save(file), r"a\.png: has 40 x 70 pixels, but its header said 70 x 40$"),
        (file.unlink, r"a\.png: no such image file"),
    ]
    for damage, told in cases:
        damage()
        with pytest.raises(Fault, match=f"^a:1: .*{told}") as raised:
            encoder.decode(unit, rng)
        assert raised.value.reason == "image"


def test_a_wrong_tokenizer_is_no_fault_of_the_sample(encoder, rng):
    smaller = dataclasses.replace(encoder.processor, vocab=300)
    with pytest.raises(ValueError, match="^a:1: the token .* use its own tokenizer") as raised:
        dataclasses.replace(encoder, processor=smaller).measure(sample(("u", "?"), ("a", "7"), where="a:1"), rng)
    assert not isinstance(raised.value, Fault)


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"too_long": "drop"}, "Encoder.too_long is 'drop'; valid: raise, truncate, split"),
        ({"too_many_tiles": "split"}, "Encoder.too_many_tiles is 'split'; valid: raise, shrink"),
        ({"tokens": 0}, "Encoder.tokens is 0; it must be at least 1"),
        ({"tiles": -1}, "Encoder.tiles is -1; it must be at least 0"),
    ],
)
def test_settings_that_cannot_be(encoder, fields, told):
    with pytest.raises(ValueError, match=told):
        dataclasses.replace(encoder, **fields)
