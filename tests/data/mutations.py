"""Random damage to JSON values, bytes and images, drawn from a generator."""

import io
import json
import struct
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from tests.data.pictures import picture

Rng = np.random.Generator

KEYS = (
    "image", "video", "clip", "conversations", "from", "value", "question", "chosen", "rejected", "id", "Image",
    "images", "width", "annotation", "root", "repeat_time", "length", "data_augment", "max_dynamic_patch", "",
)  # fmt: skip
STRINGS = (
    "", " ", "\n", "\0", "\ud800", "\udc80", "\u202e", "e\u0301", "\U0001f600", "human", "gpt", "system", "user",
    "<image>", "<video>", "<image>\n<image>", "<img>", "</img>", "<IMG_CONTEXT>", "<|im_start|>", "<|im_end|>\n",
    "<|endoftext|>", "<box>[[1, 2, 3, 4]]</box>", "..", ".", "/", "../", "/etc/passwd", "a/../../b.png", "C:\\a.png",
    "file:///etc/passwd", "http://localhost/", "s3://b/a.png", "gs://b/a.png", "data:image/png;base64,", "~", "%2e%2e/",
    "good.png", "frames", "a.mp4", "gone.png", "a" * 300, "word " * 300,
)  # fmt: skip
NUMBERS = (0, 1, -1, 0.5, 1.5, -0.0, 7, 10**6, 2**31, 2**63, 10**400, 1e308, -1e308, 1e-308, float("nan"), float("inf"))
EDGES = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "JPEG", "PNG", "WEBP", "AVIF", "JPEG2000", "PPM", "ICO")
MODES = ("RGB", "RGB", "L", "P", "RGBA", "CMYK", "1", "I;16", "LA")


OPTIONS = (
    {},
    {"progressive": True},
    {"quality": 30},
    {"lossless": True},
    {"interlace": True},
    {"compression": "tiff_lzw"},
    {"compression": "tiff_adobe_deflate"},
    {"compression": "packbits"},
)


def choose(rng: Rng, options: Sequence[Any]) -> Any:
    return options[int(rng.integers(len(options)))]


def junk(rng: Rng) -> Any:
    """A JSON value of any kind."""
    kind = rng.integers(8)
    if kind < 3:
        return choose(rng, STRINGS)
    if kind < 5:
        return choose(rng, NUMBERS)
    if kind == 5:
        return [junk(rng) for _ in range(rng.integers(3))]
    if kind == 6:
        return {choose(rng, KEYS): junk(rng) for _ in range(rng.integers(3))}
    return choose(rng, (None, True, False, json.loads("[" * 400 + "]" * 400)))


def places(value: Any) -> list[tuple[Any, Any]]:
    """Every (object or list, key or index) within a value."""
    found, holders = [], [value]
    while holders:
        holder = holders.pop()
        keys = list(holder) if isinstance(holder, dict) else range(len(holder)) if isinstance(holder, list) else ()
        found += [(holder, key) for key in keys]
        holders += [holder[key] for key in keys]
    return found


def mutate_json(rng: Rng, value: Any) -> Any:
    """A copy of an object with something in it changed: a value, a key, a type, an order, a text."""
    value = json.loads(json.dumps(value))
    for _ in range(choose(rng, (1, 1, 1, 2, 3))):
        if found := places(value):
            change(rng, *choose(rng, found))
    return value


def change(rng: Rng, holder: Any, key: Any) -> None:
    held, action = holder[key], rng.integers(7)
    if action == 0:
        del holder[key]
    elif action == 1:
        holder[key] = junk(rng)
    elif action == 2 and isinstance(holder, dict):
        holder[choose(rng, KEYS)] = holder.pop(key)
    elif action == 3 and isinstance(holder, list):
        holder.insert(int(rng.integers(len(holder) + 1)), choose(rng, (held, junk(rng))))
    elif action == 4 and isinstance(held, list):
        rng.shuffle(held)
    elif isinstance(held, str):
        at = int(rng.integers(len(held) + 1))
        holder[key] = held[:at] + choose(rng, STRINGS) + held[at + int(rng.integers(3)) :]
    elif isinstance(held, int | float):
        holder[key] = choose(rng, NUMBERS)
    else:
        holder[key] = choose(rng, ([held], {choose(rng, KEYS): held}, str(held), junk(rng)))


def mutate_bytes(rng: Rng, content: bytes, other: bytes) -> bytes:
    """Bytes flipped, written over, put in, taken out, cut off, or continued with those of another."""
    for _ in range(choose(rng, (1, 1, 1, 2, 4))):
        reach = len(content) if rng.random() < 0.6 else min(64, len(content))  # headers are short and matter most
        at, length, action = int(rng.integers(reach + 1)), int(rng.integers(1, 9)), rng.integers(6)
        before, after = content[:at], content[at:]
        if action == 0:
            content = before + bytes([after[0] ^ (1 << int(rng.integers(8)))]) + after[1:] if after else content
        elif action == 1:
            content = before + rng.bytes(length) + after[length:]
        elif action == 2:
            content = before + rng.bytes(length) + after
        elif action == 3:
            content = before + after[length:]
        elif action == 4:
            content = before
        else:
            content = before + other[int(rng.integers(len(other) + 1)) :]
    return content


def encoded_image(rng: Rng) -> tuple[bytes, tuple[int, int]]:
    """A good image of some format and mode, and its (width, height)."""
    width, height = (int(side) for side in rng.integers(1, 90, 2))
    image, format = picture(width, height, int(rng.integers(1 << 30))), choose(rng, FORMATS)
    options = choose(rng, OPTIONS)
    if rng.random() < 0.2:
        options = {"save_all": True, "append_images": [picture(width, height)] * 2, **options}
    if rng.random() < 0.2:
        options = {"exif": b"Exif\0\0II*\0\x08\0\0\0" + rng.bytes(40), "icc_profile": rng.bytes(200), **options}
    buffer = io.BytesIO()
    try:
        image.convert(choose(rng, MODES)).save(buffer, format, **options)
    except Exception:  # no such mode or option in that format
        buffer = io.BytesIO()
        image.save(buffer, format)
    return buffer.getvalue(), (width, height)


def mutate_image(rng: Rng) -> bytes:
    """A damaged image; a PNG's checksums are often made right again, so that the damage reaches the decoder."""
    content, size = encoded_image(rng)
    if rng.random() < 0.4:
        content = mutate_size(rng, content, size)
    if rng.random() < 0.7:
        content = mutate_bytes(rng, content, encoded_image(rng)[0])
    return with_checksums(content) if rng.random() < 0.7 else content


def mutate_size(rng: Rng, content: bytes, size: tuple[int, int]) -> bytes:
    """Puts another number where a side of the image stands, by whatever width of integers and order of bytes."""
    spellings = [struct.pack(f"{order}{kind}", side) for order in "<>" for kind in "IH" for side in size]
    found = [spelling for spelling in spellings if spelling in content[:200]]
    if not found:
        return content
    spelling = choose(rng, found)
    order = "<" if spelling[0] else ">"
    edge = choose(rng, EDGES) % (1 << (8 * len(spelling)))
    return content.replace(spelling, struct.pack(f"{order}{'I' if len(spelling) == 4 else 'H'}", edge), 1)


def with_checksums(content: bytes) -> bytes:
    """A PNG whose chunks have the checksums that belong to them; other bytes as they are."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        (length,) = struct.unpack_from(">I", fixed, at)
        end = at + 8 + length
        if end + 4 > len(fixed):
            break
        struct.pack_into(">I", fixed, end, zlib.crc32(fixed[at + 4 : end]))
        at = end + 4
    return bytes(fixed)
