"""Photographs in JPEG files of chosen sizes, and InternVL's JSONL beside them, for benchmarks.

They are made of those that scikit-image and scikit-learn bring along: enlarged at most twice, continued by mirror
images where that is not enough, so that a large file has detail as a camera's has.
"""

import json
from pathlib import Path

import numpy as np
import skimage.data
import sklearn.datasets
from PIL import Image

SKIMAGE = ("astronaut.png", "chelsea.png", "coffee.png", "hubble_deep_field.jpg", "motorcycle_left.png", "retina.jpg")
SKLEARN = ("china.jpg", "flower.jpg")
RATIOS = (4 / 3, 3 / 2, 16 / 9, 1.0, 3 / 4, 2 / 3, 9 / 16)  # of width to height
WORDS = ["what", "is", "written", "on", "the", "small", "sign", "beside", "a", "door", "of", "this", "old", "house"]


def originals() -> list[Image.Image]:
    folders = Path(skimage.data.__file__).parent, Path(sklearn.datasets.__file__).parent / "images"
    files = [folders[0] / name for name in SKIMAGE] + [folders[1] / name for name in SKLEARN]
    return [Image.open(file).convert("RGB") for file in files]


def fitted(image: Image.Image, width: int, height: int) -> Image.Image:
    """The image at another size: scaled to cover it, by at most 2, cut off or continued by its mirror images."""
    scale = min(2.0, max(width / image.width, height / image.height))
    scaled = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)
    pixels = np.asarray(scaled)[:height, :width]
    missing = [(0, height - pixels.shape[0]), (0, width - pixels.shape[1]), (0, 0)]
    return Image.fromarray(np.pad(pixels, missing, mode="symmetric"))


def write_photographs(folder: Path, megapixels: float, count: int = 21, lines: int = 105) -> Path:
    """Writes `count` JPEG files of varied shape and quality and a JSONL of `lines` records; returns the latter."""
    folder.mkdir(parents=True, exist_ok=True)
    images, rng = originals(), np.random.default_rng(round(megapixels * 10))
    for number in range(count):
        ratio = RATIOS[number % len(RATIOS)]
        width, height = round((megapixels * 1e6 * ratio) ** 0.5), round((megapixels * 1e6 / ratio) ** 0.5)
        image = fitted(images[number % len(images)], width, height)
        image.save(folder / f"{number}.jpg", quality=int(rng.integers(75, 96)))
    file = folder / "lines.jsonl"
    with file.open("w") as stream:
        for number in range(lines):
            turns = [("human", f"<image>\n{said(rng, 12)}?"), ("gpt", f"{said(rng, int(rng.integers(20, 200)))}.")]
            record = {
                "id": number,
                "image": f"{number % count}.jpg",
                "conversations": [{"from": who, "value": text} for who, text in turns],
            }
            stream.write(json.dumps(record) + "\n")
    return file


def said(rng: np.random.Generator, words: int) -> str:
    return " ".join(rng.choice(WORDS, words))
