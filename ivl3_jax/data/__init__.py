"""The data engine, host side only: sources, records, images, videos, template, tokenizer, batches. Imports no jax."""

from ivl3_jax.data.collate import collate
from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.encoding import Encoder
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.frames import TrainingFrames
from ivl3_jax.data.images import choose_grid, open_image, tile_image
from ivl3_jax.data.jpeg import Jpeg
from ivl3_jax.data.loader import Loader
from ivl3_jax.data.meta import open_source, read_meta
from ivl3_jax.data.prefetch import prefetch
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, Message, Pair, Sample, Stored, Video
from ivl3_jax.data.sources import Source, SourceSpec
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
    "Loader",
    "Message",
    "Pair",
    "Processor",
    "Sample",
    "Source",
    "SourceSpec",
    "Stored",
    "Tokenizer",
    "TrainingFrames",
    "Unit",
    "Video",
    "choose_grid",
    "collate",
    "open_image",
    "open_source",
    "prefetch",
    "read_meta",
    "tile_image",
]
