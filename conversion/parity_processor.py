"""Images and conversations through transformers' InternVLProcessor and through ours: tiles, pixels, text, ids.

Needs the `parity` extra. transformers' complete processor also needs torchvision, for its video part; without it the
same class is built from its other parts. Pixels are compared with its Pillow image processor, the one that resizes as
the authors' code does.
"""

import itertools
import platform
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import transformers
from PIL import Image
from transformers import AutoImageProcessor, AutoProcessor, AutoTokenizer
from transformers.models.internvl.processing_internvl import InternVLProcessor
from transformers.utils import is_torchvision_available

from ivl3_jax.config import IMAGE_MEAN, IMAGE_STD
from ivl3_jax.conversion import tolerances
from ivl3_jax.conversion.companions import write_companions, write_json
from ivl3_jax.conversion.comparison import Difference, Report, difference, mismatch
from ivl3_jax.data.images import choose_grid
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Message, Sample
from ivl3_jax.data.template import ChatTemplate
from ivl3_jax.data.tokenizer_files import read_json
from ivl3_jax.hf_config import read_config, to_hf
from ivl3_jax.original_config import MODEL_TYPE

SIDES = (1, 27, 100, 224, 300, 447, 448, 449, 600, 633, 634, 640, 768, 896, 1000, 1344, 1792, 2000, 3000, 5376)
PICTURES = ((448, 448), (640, 480), (300, 1000), (1500, 200), (33, 35), (1000, 1000))  # width, height
MODES = ("RGBA", "L", "P", "LA")
QUESTION = "What is written here? 图中写着什么？"


class WithoutVideo(InternVLProcessor):
    """transformers' processor without its video part."""

    def check_argument_for_proper_class(self, *arguments: Any, **named: Any) -> None:
        """Lets the video processor be None."""


def check(directory: str | Path) -> Report:
    """Compares the processor of a checkpoint directory with transformers'; weights are neither needed nor read.

    Args:
        directory: in either layout, with its tokenizer. For the original layout, which has no files for transformers'
            processor, these are written as `ivl3 convert` writes them.

    Raises:
        FileNotFoundError: no config.json or no tokenizer. ValueError: a file is malformed or lacks something.
    """
    directory = Path(directory)
    ours = Processor.from_directory(directory)
    with tempfile.TemporaryDirectory() as temporary:
        files, where = directory, "its own"
        if read_json(directory / "config.json").get("model_type") == MODEL_TYPE:
            files, where = Path(temporary), "as `ivl3 convert` writes them; the original layout has none"
            config = read_config(directory)
            write_json(files / "config.json", to_hf(config))
            write_companions(directory, files, "hf", config)
        theirs, kind = open_processor(files, ours.tile_tokens)
    facts = {
        "checkpoint": str(directory),
        "transformers' processor": kind,
        "its files": where,
        "versions": f"transformers {transformers.__version__}, Pillow {Image.__version__}, "
        f"Python {platform.python_version()}",
    }
    differences = [_tile_counts(ours, theirs), *_pixels(ours, theirs), *_conversations(ours, theirs)]
    return Report(f"Processor of {directory.resolve().name} beside transformers'", facts, differences)


def open_processor(directory: Path, tile_tokens: int) -> tuple[InternVLProcessor, str]:
    """transformers' processor with its Pillow image part, and what it is, for reports.

    Raises:
        ValueError: the directory's files are not enough for it.
    """
    try:
        images = AutoImageProcessor.from_pretrained(directory, backend="pil")
        if is_torchvision_available():
            processor = AutoProcessor.from_pretrained(directory)
            processor.image_processor = images
            return processor, "AutoProcessor, its image part replaced by the one for Pillow"
        tokenizer = AutoTokenizer.from_pretrained(directory)
        template = tokenizer.chat_template
        processor = WithoutVideo(images, tokenizer, None, image_seq_length=tile_tokens, chat_template=template)
    except (AttributeError, OSError, ValueError) as error:
        raise ValueError(
            f"{directory}: transformers cannot build its InternVLProcessor from the files there ({error}); it needs "
            "preprocessor_config.json, and extra_special_tokens in tokenizer_config.json, as `ivl3 convert` writes them"
        ) from error
    return processor, "InternVLProcessor from its parts, since torchvision is not installed; image part for Pillow"


def _tile_counts(ours: Processor, theirs: InternVLProcessor) -> Difference:
    """The number of tiles over a grid of image sizes; the name tells the first size that differs."""
    found, expected = {}, {}
    for width, height in itertools.product(SIDES, SIDES):
        columns, rows = choose_grid(width, height, ours.min_tiles, ours.max_tiles, ours.tile_size)
        found[width, height] = columns * rows + (columns * rows > 1)
        count = theirs.image_processor.get_number_of_image_patches
        expected[width, height] = count(height, width, {"crop_to_patches": True})
    name = f"number for {len(found)} image sizes"
    wrong = next((size for size in found if found[size] != expected[size]), None)
    if wrong is not None:
        name += f", {wrong[0]}x{wrong[1]} has {found[wrong]} here and {expected[wrong]} there"
    return mismatch("tiles", name, list(found.values()), list(expected.values()))


def _pixels(ours: Processor, theirs: InternVLProcessor) -> Iterator[Difference]:
    """Tiles of random pictures: as bytes once their normalisation is undone, and normalised."""
    pictures = [(f"{width}x{height} RGB", _picture(width, height)) for width, height in PICTURES]
    pictures += [(f"320x200 {mode}", _picture(320, 200).convert(mode)) for mode in MODES]
    mean, std = np.float64(IMAGE_MEAN), np.float64(IMAGE_STD)
    for name, picture in pictures:
        found = theirs.image_processor(images=[picture], crop_to_patches=True, return_tensors="np")["pixel_values"]
        expected = np.asarray(found).transpose(0, 2, 3, 1)
        sample = Sample((Message("user", QUESTION),), (picture,))
        tiles = ours.encode_prompt(sample).tiles
        if tiles.shape != expected.shape:
            yield mismatch("tiles", f"shape, {name}", tiles.shape, expected.shape)
            continue
        theirs_bytes = np.rint((expected * std + mean) * 255)
        yield difference("tiles", f"bytes, {name}", None, tiles, theirs_bytes, 0.0)
        normalised = (tiles / 255 - mean) / std
        yield difference("pixels", f"normalised, {name}", None, normalised, expected, tolerances.LAYER["float32"])


def _picture(width: int, height: int) -> Image.Image:
    """Noise over a gradient, so that resizing has something to do at every scale."""
    rng = np.random.default_rng(width * 10_000 + height)
    ramp = np.linspace(0, 191, width)[None, :, None] * np.linspace(0.2, 1, height)[:, None, None]
    return Image.fromarray((ramp + rng.integers(0, 64, (height, width, 3))).astype(np.uint8))


def _conversations(ours: Processor, theirs: InternVLProcessor) -> Iterator[Difference]:
    """Prompts of none to three images, and one of several turns with a system message: as text, and as ids."""
    for images in range(4):
        yield from _conversation(ours, theirs, f"{images} images", [("user", images, QUESTION)])
    turns = [("system", 0, "Be brief."), ("user", 1, QUESTION), ("assistant", 0, "1729."), ("user", 1, "And here?")]
    yield from _conversation(ours, theirs, "4 turns", turns)


def _conversation(
    ours: Processor, theirs: InternVLProcessor, name: str, turns: list[tuple[str, int, str]]
) -> Iterator[Difference]:
    count = sum(images for _, images, _ in turns)
    pictures = [_picture(*PICTURES[number]) for number in range(count)]
    parts = [
        {"role": role, "content": [{"type": "image"}] * images + [{"type": "text", "text": text}]}
        for role, images, text in turns
    ]
    expected = theirs.apply_chat_template(parts, add_generation_prompt=True, tokenize=False)
    # transformers writes each image's place as the image token, which stands for all of its tokens until encoding.
    written = [Message(role, "<IMG_CONTEXT>\n" * images + text) for role, images, text in turns]
    yield mismatch("text", name, ChatTemplate().prompt(written), expected)
    messages = tuple(Message(role, "<image>\n" * images + text) for role, images, text in turns)
    encoded = ours.encode_prompt(Sample(messages, tuple(pictures)))
    found = theirs(images=pictures or None, text=[expected], return_tensors="np")
    ids = np.asarray(found["input_ids"])[0].tolist()
    yield mismatch("ids", name, encoded.tokens.tolist(), ids)
