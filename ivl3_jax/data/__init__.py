"""The data engine, host side only: records, images, videos, chat template, tokenizer, batches. Imports no jax."""

from ivl3_jax.data.collate import collate
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.encoding import Encoder
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.frames import TrainingFrames
from ivl3_jax.data.images import choose_grid, open_image, tile_image
from ivl3_jax.data.jpeg import Jpeg
from ivl3_jax.data.jsonl import read_jsonl
from ivl3_jax.data.loader import batches, prefetch
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, Message, Pair, Sample, Video
from ivl3_jax.data.template import INTERNVL_SYSTEM, ChatTemplate
from ivl3_jax.data.tokenizer import Tokenizer
from ivl3_jax.data.units import Unit

__all__ = [
    "IMAGE_PLACEHOLDER",
    "INTERNVL_SYSTEM",
    "ChatTemplate",
    "Encoded",
    "Encoder",
    "Fault",
    "Jpeg",
    "Message",
    "Pair",
    "Processor",
    "Sample",
    "Tokenizer",
    "TrainingFrames",
    "Unit",
    "Video",
    "batches",
    "choose_grid",
    "collate",
    "open_image",
    "prefetch",
    "read_jsonl",
    "tile_image",
]
