"""What kind of sample one is, for a person who looks at a data set."""

import re

from ivl3_jax.data.records import IMAGE_PLACEHOLDER, Pair, Sample

TEXT, IMAGE, IMAGES, INTERLEAVED, VIDEO, PAIR = KINDS = (
    "text",
    "one image",
    "several images",
    "interleaved",
    "video",
    "preference pair",
)

_LABEL = re.compile(r"Image[- ]?\d+:")  # InternVL's conventional prompts number images so


def kind_of(sample: Sample | Pair) -> str:
    """One of `KINDS`.

    Several images are interleaved where they are not all at the front: something other than the images and their
    labels, "Image-1:", stands before the last of them.
    """
    if isinstance(sample, Pair):
        return PAIR
    if sample.videos:
        return VIDEO
    if len(sample.images) < 2:
        return IMAGE if sample.images else TEXT
    said = "\n".join(message.text for message in sample.messages if message.role != "system")
    before_last = said.rpartition(IMAGE_PLACEHOLDER)[0]
    between = _LABEL.sub("", before_last.replace(IMAGE_PLACEHOLDER, ""))
    return INTERLEAVED if between.strip() else IMAGES
