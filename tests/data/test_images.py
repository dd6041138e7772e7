"""Tiles equal a plain Pillow rendering of the published algorithm to the byte; unreadable images say so."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from ivl3_jax.data import Fault, choose_grid, open_image, tile_image
from ivl3_jax.data.images import image_size, square

MODES = ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "I", "F", "I;16"]


def grid_as_published(width, height, min_num, max_num, size):
    """reference: ratios from a set, sorted by area, walked with the tie rule."""
    ratios = {
        (i, j)
        for n in range(min_num, max_num + 1)
        for i in range(1, n + 1)
        for j in range(1, n + 1)
        if min_num <= i * j <= max_num
    }
    best_difference, best = float("inf"), (1, 1)
    for ratio in sorted(ratios, key=lambda r: r[0] * r[1]):
        difference = abs(width / height - ratio[0] / ratio[1])
        if difference < best_difference:
            best_difference, best = difference, ratio
        elif difference == best_difference and width * height > 0.5 * size * size * ratio[0] * ratio[1]:
            best = ratio
    return best


def tiles_as_published(image, size, min_num, max_num, thumbnail):
    image = image.convert("RGB")
    columns, rows = grid_as_published(*image.size, min_num, max_num, size)
    resized = image.resize((size * columns, size * rows))
    tiles = []
    for n in range(columns * rows):
        left, top = n % columns * size, n // columns * size
        tiles.append(resized.crop((left, top, left + size, top + size)))
    if thumbnail and len(tiles) != 1:
        tiles.append(image.resize((size, size)))
    return np.stack([np.asarray(tile) for tile in tiles])


def noise(mode, width, height):
    rng = np.random.default_rng(width * 7919 + height)
    if mode == "P":
        image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)).quantize(16)
        image.info["transparency"] = 3
        return image
    if mode in ("I", "F"):
        return Image.fromarray(rng.integers(-50, 400, (height, width)).astype({"I": "i4", "F": "f4"}[mode]))
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 1 << 16, (height, width), np.uint16))
    if mode == "1":
        return Image.fromarray(rng.random((height, width)) < 0.5)
    bands = len(Image.new(mode, (1, 1)).getbands())
    return Image.frombytes(mode, (width, height), rng.bytes(width * height * bands))


@pytest.mark.parametrize("max_tiles", [1, 2, 6, 12, 24, 36])
@pytest.mark.parametrize("size", [28, 448])
def test_grid_over_sizes(max_tiles, size):
    sides = [1, 3, 27, 28, 42, 57, 100, 224, 448, 600, 634, 672, 896, 1000, 1344, 5000]
    for width in sides:
        for height in sides:
            assert choose_grid(width, height, 1, max_tiles, size) == grid_as_published(
                width, height, 1, max_tiles, size
            )


@given(st.integers(1, 6000), st.integers(1, 6000), st.integers(1, 4), st.integers(4, 14), st.sampled_from([28, 448]))
@settings(max_examples=300, deadline=None)
@example(10, 4, 4, 4, 28)  # 2 x 2 and 4 x 1 are equally near and of one area
def test_grid_anywhere(width, height, min_tiles, max_tiles, size):
    grid = choose_grid(width, height, min_tiles, max_tiles, size)
    assert grid == grid_as_published(width, height, min_tiles, max_tiles, size)


@pytest.mark.parametrize(
    ("side", "grid"), [(448, (1, 1)), (633, (1, 1)), (634, (2, 2)), (950, (2, 2)), (951, (3, 3)), (4000, (3, 3))]
)
def test_larger_squares_need_more_than_half_their_pixels(side, grid):
    assert choose_grid(side, side, 1, 12, 448) == grid


def test_area_rule_scales_with_the_tile_size():
    # 2 x 2 tiles of 28 need more than 0.5 * 28 * 28 * 4 = 1568 pixels.
    assert choose_grid(39, 39, 1, 12, 28) == (1, 1)
    assert choose_grid(40, 40, 1, 12, 28) == (2, 2)


def test_the_middle_between_two_ratios():
    # 3:2 is as far from 1:1 as from 2:1 if at most two tiles are allowed; the later one needs the larger area.
    assert choose_grid(300, 200, 1, 2, 448) == (1, 1)
    assert choose_grid(900, 600, 1, 2, 448) == (2, 1)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("shape", [(1, 1), (40, 30), (200, 61), (17, 130), (1, 5000)])
def test_tiles_of_every_mode(mode, shape):
    image = noise(mode, *shape)
    assert np.array_equal(tile_image(image, 28, 1, 12, True), tiles_as_published(image, 28, 1, 12, True))


@pytest.mark.parametrize("shape", [(1, 5000), (5000, 1), (2, 3), (1000, 999), (447, 449)])
@pytest.mark.parametrize("thumbnail", [True, False])
def test_tiles_of_published_size(shape, thumbnail):
    image = noise("RGB", *shape)
    tiles = tile_image(image, 448, 1, 12, thumbnail)
    assert tiles.dtype == np.uint8 and tiles.flags.c_contiguous
    assert np.array_equal(tiles, tiles_as_published(image, 448, 1, 12, thumbnail))


def test_thumbnail_is_last_and_only_with_several_tiles():
    image = noise("RGB", 90, 45)
    assert tile_image(image, 28, 1, 12, True).shape == (9, 28, 28, 3)
    assert np.array_equal(tile_image(image, 28, 1, 12, True)[-1], np.asarray(image.resize((28, 28))))
    assert tile_image(image, 28, 1, 1, True).shape == (1, 28, 28, 3)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP"])
def test_tiles_from_files(format, tmp_path):
    file = tmp_path / "picture"
    noise("RGB", 70, 30).save(file, format)
    assert np.array_equal(tile_image(file, 28, 1, 6, True), tiles_as_published(Image.open(file), 28, 1, 6, True))


MODES_OF = {"PNG": ["1", "L", "LA", "P", "RGB", "RGBA", "I;16"], "JPEG": ["L", "RGB", "CMYK"], "TIFF": ["I;16", "CMYK"]}


@pytest.mark.parametrize(("format", "mode"), [(name, mode) for name, modes in MODES_OF.items() for mode in modes])
def test_files_of_every_mode(format, mode, tmp_path):
    file = tmp_path / "picture"
    noise(mode, 70, 30).save(file, format)
    assert np.array_equal(tile_image(file, 28, 1, 6, True), tiles_as_published(Image.open(file), 28, 1, 6, True))


def test_a_colour_that_stands_for_nothing_stays_a_colour(tmp_path):
    """PNGs without an alpha channel may name one colour as transparent."""
    image = noise("RGB", 70, 30)
    image.save(tmp_path / "a.png", transparency=image.getpixel((3, 4)))
    assert np.array_equal(tile_image(tmp_path / "a.png", 28, 1, 6, True), tiles_as_published(image, 28, 1, 6, True))


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_exif_orientation_is_not_applied(format, tmp_path):
    image = noise("RGB", 60, 30)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotated by a quarter turn
    image.save(tmp_path / "turned", format, exif=exif, quality=100, subsampling=0)
    found = tile_image(tmp_path / "turned", 28, 1, 6, True)
    assert np.array_equal(found, tiles_as_published(Image.open(tmp_path / "turned"), 28, 1, 6, True))
    assert image_size(tmp_path / "turned") == open_image(tmp_path / "turned").size == (60, 30)


@pytest.mark.parametrize("format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "ICO"])
def test_sizes_from_headers(format, tmp_path):
    noise("RGB", 48, 30).save(tmp_path / "picture", format)
    assert image_size(tmp_path / "picture") == open_image(tmp_path / "picture").size
    assert image_size(noise("L", 5, 7)) == (5, 7)
    with pytest.raises(Fault, match="none: no such image file") as raised:
        image_size(tmp_path / "none")
    assert raised.value.reason == "image"


@pytest.mark.parametrize("shape", [(40, 30), (30, 41), (20, 20), (1, 9)])
def test_square(shape):
    found, side = square(noise("RGB", *shape)), max(shape)
    expected = Image.new("RGB", (side, side), tuple(int(mean * 255) for mean in (0.485, 0.456, 0.406)))
    expected.paste(noise("RGB", *shape), ((side - shape[0]) // 2, (side - shape[1]) // 2))
    assert found.tobytes() == expected.tobytes()


def test_the_users_image_is_left_alone():
    image = noise("RGBA", 60, 30)
    before = image.copy()
    tile_image(image, 28, 1, 6, True)
    assert image.mode == "RGBA" and image.tobytes() == before.tobytes()


def bomb() -> bytes:
    """A PNG that claims 30,000 x 30,000 pixels in a few bytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 30000, 30000, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def encoded(format) -> bytes:
    buffer = io.BytesIO()
    noise("RGB", 64, 64).save(buffer, format)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (bomb(), "decompression bomb"),
        (b"not an image", "cannot be read as an image"),
        (b"", "cannot be read as an image"),
        (encoded("PNG")[:-5000], "truncated"),
        (encoded("JPEG")[:-500], "truncated"),
    ],
)
def test_unreadable_files(content, told, tmp_path):
    file = tmp_path / "bad.png"
    file.write_bytes(content)
    with pytest.raises(ValueError, match=told) as raised:
        tile_image(file, 28, 1, 6, True)
    assert str(file) in str(raised.value)


@given(st.data())
@settings(max_examples=150, deadline=None)
def test_damaged_bytes_give_an_image_or_a_value_error(tmp_path_factory, data):
    content = bytearray(encoded(data.draw(st.sampled_from(["PNG", "JPEG", "GIF", "WEBP"]))))
    for _ in range(data.draw(st.integers(1, 8))):
        content[data.draw(st.integers(0, min(len(content), 600) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path_factory.getbasetemp() / "damaged"
    file.write_bytes(content)
    try:
        assert open_image(file).mode == "RGB"
    except ValueError as error:
        assert str(file) in str(error)


def test_missing_file_and_wrong_type(tmp_path):
    with pytest.raises(ValueError, match="none.png: no such image file"):
        open_image(tmp_path / "none.png")
    for source in (np.zeros((4, 4, 3), np.uint8), None, 3):
        told = f"^image of type {type(source).__name__}: an image must be given as a path or as a PIL image$"
        with pytest.raises(ValueError, match=told):
            open_image(source)
    with pytest.raises(ValueError, match="0 x 4"):
        tile_image(Image.new("RGB", (0, 4)), 28, 1, 6, True)
    for bounds in ((3, 2), (1, 257), (1, 10**9)):
        with pytest.raises(ValueError, match=f"min_tiles is {bounds[0]} and max_tiles {bounds[1]}; .* <= 256"):
            choose_grid(10, 10, *bounds, 28)
    assert choose_grid(10, 2560, 1, 256, 28) == (1, 256)


def test_warnings_that_name_no_file_are_not_shown(tmp_path):
    exif = b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(200))
    noise("RGB", 40, 30).save(tmp_path / "a.jpg", exif=exif)
    code = "import sys; from ivl3_jax.data import open_image; open_image(sys.argv[1])"
    for options, shown in ([], False), (["-W", "always"], True):
        done = subprocess.run(
            [sys.executable, *options, "-c", code, tmp_path / "a.jpg"], capture_output=True, text=True
        )
        assert (done.returncode, "Corrupt EXIF" in done.stderr) == (0, shown), done.stderr
