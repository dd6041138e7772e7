"""What looks bad and is taken: how each sample is made, and what becomes of it, as docs/faults.md lists them."""

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from ivl3_jax.data import SourceSpec
from tests.data.bad_files import encoded
from tests.data.bad_samples import GPT, HUMAN, PAIR, lines_with, talk
from tests.data.pictures import grey, picture, write_video

ANSWER = GPT["value"]


@dataclass(frozen=True)
class Odd:
    """A sample that only looks bad.

    Attributes:
        becomes: what is made of it.
        write: writes the source into a directory, as that of a bad sample.
        answers: what is trained on in it.
    """

    becomes: str
    write: Callable[[Path], SourceSpec]
    answers: tuple[str, ...] = (ANSWER,)


ODD: dict[str, Odd] = {}


def odd(name: str, becomes: str, record: dict | bytes, prepare: Callable[[Path], object] = lambda root: None, **more):
    def write(root: Path) -> SourceSpec:
        prepare(root)
        return lines_with(root, record)

    assert name not in ODD, name
    ODD[name] = Odd(becomes, write, **more)


def shown(path: str, content: bytes | Callable[[Path], object]) -> tuple[dict, Callable[[Path], object]]:
    """A record with an image, and what puts its file there."""

    def prepare(root: Path) -> None:
        if isinstance(content, bytes):
            (root / path).write_bytes(content)
        else:
            content(root / path)

    return {"image": path, "conversations": talk()}, prepare


def elsewhere(path: Path) -> None:
    outside = path.parent.parent / f"{path.parent.name}.png"
    picture(40, 30).save(outside)
    path.symlink_to(outside)


def moving(file: Path) -> None:
    first, *others = (Image.fromarray(grey(index)) for index in range(3))
    first.save(file, save_all=True, append_images=others)


def several(file: Path) -> None:
    picture(40, 30).save(file, "MPO", save_all=True, append_images=[picture(20, 50)])


def with_junk_as_exif() -> bytes:
    buffer = io.BytesIO()
    picture(40, 30).save(buffer, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff" + bytes(range(200)))
    return buffer.getvalue()


def with_sixteen_bits(file: Path) -> None:
    Image.fromarray(np.arange(1200, dtype=np.uint16).reshape(30, 40) * 50).save(file)


def taller(lines: int) -> bytes:
    """A JPEG of 48 lines that claims more."""
    size = (48).to_bytes(2) + (64).to_bytes(2)
    return encoded("JPEG").replace(size, lines.to_bytes(2) + size[2:], 1)


RECORD = {"conversations": talk()}
odd("a byte order mark", "it is passed over", b"\xef\xbb\xbf" + json.dumps(RECORD).encode())
odd(
    "keys that nobody knows, NaN among them",
    "they are passed over",
    {**RECORD, "score": float("nan"), "image_id": [[]]},
)
odd("an image that is null or empty", "a sample without images", {**RECORD, "image": []})
odd("a null character in a text", "it is part of the text", {"conversations": talk("What\0?")})
odd(
    "a placeholder in an answer",
    "it is ordinary text, as in the original",
    {"conversations": talk("What?", "<image>!")},
    answers=("<image>!",),
)
odd("a question without text", "the turn is empty", {"conversations": talk("")})
odd(
    "turns in another order",
    "they stand as they are, and every answer is trained on",
    {"conversations": [GPT, HUMAN, HUMAN, GPT]},
    answers=(ANSWER * 2,),
)
odd(
    "an image without a placeholder",
    "it stands in front of the first question",
    {"image": "good.png", "conversations": talk()},
)
odd("a pair whose answers are equal", "a pair", {**PAIR, "rejected": PAIR["chosen"]}, answers=(ANSWER, ANSWER))
odd(
    "a link within the root that leads out of it",
    "it is followed: whoever made it has the disk, and lines make none",
    *shown("a.png", elsewhere),
)
odd("an animation as an image", "its first frame", *shown("a.gif", moving))
odd("a JPEG of several pictures", "the first of them", *shown("a.jpg", several))
odd("an image of 3,000 x 1 pixels", "the widest grid of tiles", *shown("a.png", encoded("PNG", 3000, 1)))
odd("an image of one pixel", "one tile of its colour", *shown("a.png", encoded("PNG", 1, 1)))
odd("a PNG with the name of a JPEG", "what its first bytes say", *shown("a.jpg", encoded("PNG")))
odd("a JPEG with junk as EXIF", "the EXIF is not looked at", *shown("a.jpg", with_junk_as_exif()))
odd(
    "a JPEG that claims more lines than it has",
    "Pillow fills them with grey and tells nobody",
    *shown("a.jpg", taller(96)),
)
odd("an image of 16 bits", "clipped at 255, as in the original", *shown("a.png", with_sixteen_bits))
odd(
    "a clip that ends behind the video",
    "it ends with it",
    {"video": "a.mp4", "clip": [1, 9], "conversations": talk()},
    lambda root: write_video(root / "a.mp4", 20),
)
odd(
    "a video of fewer frames than are looked at",
    "frames repeat",
    {"video": "a.mp4", "conversations": talk()},
    lambda root: write_video(root / "a.mp4", 3),
)
