"""What encoding a sample costs, stage by stage, in milliseconds on one core; medians of 31.

Run as `python benchmarks/encoding.py`.
"""

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from ivl3_jax.data import ChatTemplate, Encoder, Jpeg, Message, Processor, Sample, Tokenizer, choose_grid, tile_image
from ivl3_jax.data.images import cut, image_size, open_image
from ivl3_jax.data.tokenizer_training import train_tokenizer

SIZE, MAX_TILES = 448, 12


def median(call: Callable[[], object], times: int = 31) -> float:
    taken = []
    for _ in range(times):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return 1000 * sorted(taken)[times // 2]


def photograph(file: Path, width: int = 1632, height: int = 1224) -> Path:
    """Soft shapes and a little noise, as large in bytes as a photograph."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (height // 16, width // 16, 3), np.uint8))
    noisy = np.asarray(coarse.resize((width, height))).astype(int) + rng.integers(-8, 9, (height, width, 3))
    Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return file


def main() -> None:
    pages = [page.read_text() for page in sorted((Path(__file__).parents[1] / "docs").glob("*.md"))]
    tokenizer = Tokenizer(train_tokenizer(pages, 8000))
    encoder = Encoder(Processor(tokenizer, ChatTemplate(), SIZE, 256, 1, MAX_TILES), 8192, 48)
    rng = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        file = photograph(Path(folder) / "photograph.jpg")
        rgb = open_image(file)
        cols, rows = choose_grid(*rgb.size, 1, MAX_TILES, SIZE)
        tiles = np.empty((cols * rows + 1, SIZE, SIZE, 3), np.uint8)
        seen = Sample((Message("user", "What is it?"), Message("assistant", "It is seven.")), (file,))
        (unit,) = encoder.measure(seen, rng)
        text = "".join(pages).replace("<", "")[:1500]
        said = Sample((Message("user", text[:500]), Message("assistant", text[500:])))
        turns = [segment.text for segment in encoder.processor.template.segments(said.messages)]
        block = encoder.processor.block(len(tiles))
        jpeg = dataclasses.replace(encoder, jpeg=Jpeg())
        stages = {
            "header of the image": lambda: image_size(file),
            "decoding it": lambda: open_image(file),
            f"resizing it to {cols} x {rows} tiles": lambda: rgb.resize((cols * SIZE, rows * SIZE)),
            "its thumbnail": lambda: rgb.resize((SIZE, SIZE)),
            "both, cut into tiles": lambda: cut(rgb, (cols, rows), tiles),
            "tile_image": lambda: tile_image(file, SIZE, 1, MAX_TILES, True),
            f"measure, an image of {unit.tiles} tiles": lambda: encoder.measure(seen, rng),
            "decode": lambda: encoder.decode(unit, rng),
            "decode, with JPEG": lambda: jpeg.decode(unit, rng),
            f"tokenizer, {encoder.measure(said, rng)[0].tokens} tokens of text": lambda: [
                tokenizer.encode(turn) for turn in turns
            ],
            "measure, that text": lambda: encoder.measure(said, rng),
            f"tokenizer, a block of {unit.tiles} tiles": lambda: tokenizer.encode(block),
            "encode_text, that block": lambda: encoder.processor.encode_text(block, tiles),
        }
        for name, call in stages.items():
            print(f"{name:<40} {median(call):8.3f}")


if __name__ == "__main__":
    main()
