"""Where the time of an image goes, stage by stage, in the loader and in the plain one."""

import json
import time
from collections.abc import Callable
from itertools import count
from pathlib import Path

import numpy as np
import plain_loader as plain
import torch
from measuring import MAX_TILES, ROW, SIZE, medians, processor, table, trained
from photographs import write_photographs
from PIL import Image

from ivl3_jax.data.collate import collate
from ivl3_jax.data.encoding import Encoder
from ivl3_jax.data.images import choose_grid, cut, image_size, open_image
from ivl3_jax.data.jpeg import Jpeg
from ivl3_jax.data.meta import open_source
from ivl3_jax.data.packing import Item, Packer
from ivl3_jax.data.sources import SourceSpec

MEGAPIXELS = (2, 12)
STAGES = {
    "header": "its header",
    "decode": "reading and decoding it",
    "resize": "resizing it to its grid",
    "thumbnail": "the thumbnail",
    "cut": "cutting it into tiles",
    "tensors": "normalised float32 tensors, stacked",
    "text": "its record and text",
    "pack": "packing",
    "collate": "collating",
}
TURNS = 21

Work = Callable[[], object]


def ours(file: Path) -> dict[str, tuple[Work, int]]:
    """What is done at each stage, and for how many images at once."""
    source = open_source(SourceSpec("photographs", str(file.parent), str(file)))
    encoder, rng = Encoder(processor(trained()), ROW.tokens, ROW.tiles), np.random.default_rng(0)
    image = source[0].images[0]
    (unit,) = encoder.measure(source[0], rng)
    rgb = open_image(image)
    cols, rows = choose_grid(*rgb.size, 1, MAX_TILES, SIZE)
    resized = rgb.resize((cols * SIZE, rows * SIZE))
    tiles = np.empty((unit.tiles, SIZE, SIZE, 3), np.uint8)
    images = ROW.tiles // unit.tiles  # in a row
    row = [encoder.decode(unit, rng)[0] for _ in range(images)]
    packer, keys = Packer(ROW, 4.0), count()

    def pack() -> None:
        for _ in range(images):
            packer.add(Item(next(keys), unit.tokens, unit.tiles, unit.segments))
        if packer.ready:
            packer.row()

    return {
        "header": (lambda: image_size(image), 1),
        "decode": (lambda: open_image(image), 1),
        "resize": (lambda: rgb.resize((cols * SIZE, rows * SIZE)), 1),
        "thumbnail": (lambda: rgb.resize((SIZE, SIZE)), 1),
        "copy": (resized.copy, 1),
        "cut": (lambda: cut(resized, (cols, rows), tiles[: cols * rows]), 1),  # copies what needs no resizing
        "text": (lambda: encoder.measure(source[0], rng), 1),  # reads the header, too
        "pack": (pack, images),
        "collate": (lambda: collate(encoder.processor, [row], ROW.tokens, ROW.tiles, ROW.segments), images),
        "JPEG": (lambda: Jpeg().apply(tiles, rng), 1),
    }


def theirs(file: Path) -> dict[str, tuple[Work, int]]:
    """The same of the plain loader."""
    torch.set_num_threads(1)
    samples = plain.Samples(str(file), trained())
    samples.lines = file.read_text().splitlines()  # not shuffled
    image = plain.load_image(str(file.parent / "0.jpg"))
    cols, rows = plain.closest_grid(*image.size, MAX_TILES)
    whole = image.resize((cols * SIZE, rows * SIZE))
    tiles = plain.dynamic_preprocess(image, MAX_TILES)
    sample, packed, open_rows = samples[0], plain.Packed(samples, ROW.tokens, ROW.tiles), []
    images = ROW.tiles // len(tiles)
    for _ in range(images * (packed.buffers + 1)):
        packed.add(sample, open_rows)
    row, collator = open_rows[0], plain.Collate(ROW.tokens, samples.pad)
    return {
        "decode": (lambda: plain.load_image(str(file.parent / "0.jpg")), 1),
        "resize": (lambda: image.resize((cols * SIZE, rows * SIZE)), 1),
        "thumbnail": (lambda: image.resize((SIZE, SIZE)), 1),
        "cut": (lambda: [whole.crop(plain.box(number, cols)) for number in range(cols * rows)], 1),
        "tensors": (lambda: torch.stack([plain.transform(tile) for tile in tiles]), 1),
        "text": (lambda: samples.encoded(json.loads(samples.lines[0]), len(tiles)), 1),
        "pack": (lambda: [packed.add(sample, open_rows) for _ in range(images)], images),
        "collate": (lambda: collator([plain.padded(row, ROW.tiles)]), images),
        "JPEG": (lambda: [plain.reencoded(tile) for tile in tiles], 1),
    }


def milliseconds(*sides: dict[str, tuple[Work, int]]) -> list[dict[str, float]]:
    """Medians of CPU time for each image; in a turn both sides go through all their stages."""
    taken: list[list[list[float]]] = [[] for _ in sides]
    for _ in range(TURNS):
        for side, stages in enumerate(sides):
            turn = []
            for work, images in stages.values():
                began = time.process_time()
                work()
                turn.append(1e3 * (time.process_time() - began) / images)
            taken[side].append(turn)
    return [dict(zip(stages, medians(turns), strict=True)) for stages, turns in zip(sides, taken, strict=True)]


def stages(folder: Path) -> None:
    """Prints the milliseconds of each stage for one photograph of each size."""
    for megapixels in MEGAPIXELS:
        file = write_photographs(folder / f"stages {megapixels}", megapixels, 1, 30)
        with Image.open(file.parent / "0.jpg") as image:
            width, height = image.size
        us, them = milliseconds(ours(file), theirs(file))
        us["cut"] -= us["copy"]
        us["text"] -= us["header"]
        print(f"\nMilliseconds for an image of {width} x {height} pixels, {megapixels} megapixels, 13 tiles")
        rows = [
            [told, *(f"{side[name]:.2f}" if name in side else "" for side in (us, them))]
            for name, told in STAGES.items()
        ]
        sums = [f"{sum(side[name] for name in STAGES if name in side):.1f}" for side in (us, them)]
        jpeg = [f"{side['JPEG']:.1f}" for side in (us, them)]
        table(["stage", "ours", "plain"], [*rows, ["all", *sums], ["JPEG of each tile, with data_augment", *jpeg]])
