"""Bad images, videos, rows of Parquet and entries of shards, behind the bad lines of `tests.data.bad_samples`."""

import io
import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from array_record.python import array_record_module

from ivl3_jax.data import SourceSpec
from ivl3_jax.data.shard_writer import WRITER
from ivl3_jax.data.shards import Manifest, Shard, pack
from tests.data.bad_samples import BAD_LINE, CASES, GOOD, GPT, HUMAN, STAY, add, good, lines_with, talk
from tests.data.pictures import picture, write_noise, write_video

__all__ = ["CASES"]


def encoded(format: str, width: int = 64, height: int = 48) -> bytes:
    buffer = io.BytesIO()
    picture(width, height).save(buffer, format)
    return buffer.getvalue()


def chunk(kind: bytes, content: bytes) -> bytes:
    """A part of a PNG."""
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG of one bit a pixel that claims a size, with compressed rows or none."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def file(name: str, reason: str, told: str, path: str, content: bytes | Callable[[Path], object], **fields) -> None:
    """A case of an image, or with `video=True` of a video: the content of its file, or what puts something there."""
    kind = "video" if fields.pop("video", False) else "image"

    def write(root: Path) -> SourceSpec:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            (root / path).write_bytes(content)
        else:
            content(root / path)
        return lines_with(root, good(9, **{kind: path}, **fields))

    add(name, reason, f"{path.removesuffix('/')}: {told}", write)


def image(name: str, told: str, path: str, content) -> None:
    file(name, "image", told, path, content)


def video(name: str, told: str, path: str, content, **fields) -> None:
    file(name, "video", told, path, content, video=True, **fields)


def nothing(path: Path) -> None:
    """Leaves the place empty."""


UNKNOWN = "cannot be read as an image (UnidentifiedImageError: it does not begin as a file of JPEG, PNG, … does)"
TRUNCATED = "cannot be read as an image (OSError: Truncated File Read)"
PIPE = "cannot be read as an image (OSError: is a pipe or a device, not a file)"
BOMB = "refused as a possible decompression bomb (Image size (400000000 pixels) exceeds limit of 178956970 pixels, …)"
IHDR = 8 + 8  # where the header of a PNG begins

image("no such image", "no such image file", "gone.png", nothing)
image("a link that leads nowhere", "no such image file", "a.png", lambda path: path.symlink_to("gone.png"))
image(
    "a directory as an image",
    "cannot be read as an image (IsADirectoryError: is a directory, not a file)",
    "a.png",
    Path.mkdir,
)
image("a pipe", PIPE, "a.png", os.mkfifo)
image("a device", PIPE, "a.png", lambda path: path.symlink_to("/dev/zero"))
image(
    "a file that may not be read",
    "cannot be read as an image (PermissionError: Permission denied)",
    "a.png",
    lambda path: path.touch(mode=0),
)
image(
    "a path through a file",
    "cannot be read as an image (NotADirectoryError: Not a directory)",
    "good.png/a.png",
    lambda path: path.parent.rmdir(),
)
image("an empty image", "cannot be read as an image: the file is empty", "a.png", b"")
image("text as an image", UNKNOWN, "a.jpg", b"404 not found\n")
image("an SVG", UNKNOWN, "a.svg", b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>')
image("PostScript, which would be run", UNKNOWN, "a.eps", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n{} loop\n")
image(
    "a JPEG that was cut off",
    "cannot be read as an image (OSError: image file is truncated …)",
    "a.jpg",
    encoded("JPEG")[:-300],
)
image(
    "a PNG that was cut off",
    "cannot be read as an image (OSError: image file is truncated)",
    "a.png",
    encoded("PNG")[:-3000],
)
image("a JPEG of which the header is there", TRUNCATED, "a.jpg", encoded("JPEG")[:100])
image(
    "a flipped byte in a PNG",
    "cannot be read as an image (…)",
    "a.png",
    encoded("PNG")[:60] + bytes([encoded("PNG")[60] ^ 255]) + encoded("PNG")[61:],
)
image(
    "a JPEG that does not state its height",
    UNKNOWN,
    "a.jpg",
    encoded("JPEG").replace(struct.pack(">HH", 48, 64), struct.pack(">HH", 0, 64), 1),
)
image("a PNG without width", UNKNOWN, "a.png", encoded("PNG")[:IHDR] + bytes(4) + encoded("PNG")[IHDR + 4 :])
image(
    "samples of five bits",
    UNKNOWN,
    "a.tiff",
    encoded("TIFF").replace(struct.pack("<3H", 8, 8, 8), struct.pack("<3H", 5, 5, 5), 1),
)
file(
    "a decompression bomb",
    "bomb",
    BOMB,
    "a.png",
    lambda path: path.write_bytes(png(20_000, 20_000, bytes(2501 * 20_000))),
)
file("a header that claims a bomb", "bomb", BOMB.replace("400000000", "900000000"), "a.png", png(30_000, 30_000))

UNREADABLE = "cannot be read as a video (InvalidDataError: Invalid data found when processing input)"
PLAYLIST = "cannot be read as a video; a playlist, which names other files, is none"
SOUND = b"RIFF\x24\x01\0\0WAVEfmt \x10\0\0\0\1\0\1\0\x40\x1f\0\0\x40\x1f\0\0\1\0\x08\0data\0\1\0\0" + bytes(256)
HLS = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:2,\nfile:///videos/a.ts\n"
FRAME = struct.pack("<BHHHHB", 0x2C, 0, 0, 15_000, 15_000, 0) + b"\x02\x02\x4c\x01\x00"
GIF = b"GIF89a" + struct.pack("<HHBBB", 15_000, 15_000, 0x80, 0, 0) + bytes(6) + 2 * FRAME + b"\x3b"


def frames(path: Path, spoiled: Callable[[Path], object]) -> None:
    """A directory of good frames, and one in which another thing lies."""
    path.mkdir()
    for number in (1, 3):
        picture(40, 30).save(path / f"{number}.png")
    spoiled(path / "2.png")


def overwritten(content: bytes, at: int, length: int) -> bytes:
    return content[:at] + bytes(length) + content[at + length :]


def without_frames(path: Path) -> None:
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


video("no such video", "no such video file or directory of frames", "gone.mp4", nothing)
video("an empty video", UNREADABLE, "a.mp4", b"")
video("text as a video", UNREADABLE, "a.mp4", b"404 not found\n" * 99)
video(
    "a video that was cut off before its index",
    UNREADABLE,
    "a.mp4",
    lambda path: path.write_bytes(write_video(path, 20).read_bytes()[:-2000]),
)
video(
    "a video of an unknown codec",
    "it is of a codec that FFmpeg does not know",
    "a.mkv",
    lambda path: path.write_bytes(write_video(path, 20).read_bytes().replace(b"V_MPEG4/ISO/AVC", b"V_MPEG4/ISO/XYZ")),
)
video("a still picture as a video", "a still picture, not a video; give it as an image", "a.mp4", encoded("PNG"))
video("a GIF that does not move", "a GIF that does not move, so no video; give it as an image", "a.gif", encoded("GIF"))
video(
    "half a video",
    "the video is damaged: …",
    "a.mkv",
    lambda path: path.write_bytes(write_noise(path).read_bytes()[:60_000]),
)
video(
    "a video with damage in its middle",
    "the video is damaged: 1 of the frames that are looked at could be decoded only in part",
    "a.mkv",
    lambda path: path.write_bytes(overwritten(write_noise(path).read_bytes(), 53_000, 2000)),
)
video("sound alone", "has no video in it", "a.mp4", SOUND)
video("a video of no frames", "cannot be read as a video (EOFError: End of file)", "a.mkv", without_frames)
video("frames of 225 million pixels", "its frames have 225000000 pixels; at most 178956970 are decoded", "a.gif", GIF)
video("a playlist, which names files anywhere", PLAYLIST, "a.m3u8", HLS)
video("a list of files for FFmpeg", PLAYLIST, "a.mp4", b"ffconcat version 1.0\nfile b.mp4\n")
video("a pipe as a video", "is a pipe or a device, not a video file or a directory of frames", "a.mp4", os.mkfifo)
video(
    "a clip behind the end",
    "the clip begins at 5 s, but the video ends after 2 s",
    "a.mp4",
    lambda path: write_video(path, 20),
    clip=[5, 6],
)
video(
    "a clip of a directory of frames",
    "the frames have no times, so a clip in seconds cannot be cut out",
    "frames/",
    lambda path: frames(path, lambda frame: picture(40, 30).save(frame)),
    clip=[0, 1],
)
video(
    "a directory without frames",
    "the directory has no frames; valid are files that end in .jpg, …",
    "frames/",
    Path.mkdir,
)
video(
    "text among frames",
    f"…/frames/2.png: {UNKNOWN}",
    "frames/",
    lambda path: frames(path, lambda frame: frame.write_text("no")),
)
video("a pipe among frames", f"…/frames/2.png: {PIPE}", "frames/", lambda path: frames(path, os.mkfifo))


# Parquet and shards


def table(name: str, reason: str, told: str, spoil: Callable[[Path], object] = lambda file: None, **bad) -> None:
    """A case of a row of Parquet; `spoil` may then damage the file."""

    def write(root: Path) -> SourceSpec:
        fields = {"conversations": [HUMAN, GPT], **bad}
        records = [{"conversations": talk("Which?", f"good {number}")} for number in range(GOOD)]
        if isinstance(fields["conversations"], str):
            records = [{"conversations": json.dumps(record["conversations"])} for record in records]
        records.insert(BAD_LINE - 1, fields)
        columns = {key: [record.get(key) for record in records] for key in fields}
        pq.write_table(pa.table(columns), root / "a.parquet", row_group_size=1)
        spoil(root / "a.parquet")
        return SourceSpec("bad", str(root), str(root / "a.parquet"))

    add(name, reason, told, write)


def spoil_row_group(file: Path) -> None:
    column = pq.ParquetFile(file).metadata.row_group(BAD_LINE - 1).column(0)
    at = column.dictionary_page_offset or column.data_page_offset
    content = file.read_bytes()
    file.write_bytes(content[:at] + b"\xff" * 40 + content[at + 40 :])


def shard(
    name: str, reason: str, told: str, entry: bytes, spoil: Callable[[bytes], bytes] = lambda shard: shard
) -> None:
    """A case of an entry of a shard; `spoil` may then damage the shard."""

    def write(root: Path) -> SourceSpec:
        entries = [pack(good(number), f"a.jsonl:{number + 1}", []) for number in range(GOOD)]
        entries.insert(BAD_LINE - 1, entry)
        file = root / "00000.array_record"
        writer = array_record_module.ArrayRecordWriter(str(file), WRITER)
        for each in entries:
            writer.write(each)
        writer.close()
        file.write_bytes(spoil(file.read_bytes()))
        about = Shard(file.name, len(entries), file.stat().st_size, "", len(entries), {}, 0)
        Manifest({}, (about,), {}, complete=True).write(root)
        return SourceSpec("bad", str(root), str(root))

    add(name, reason, told, write)


def flip(content: bytes, within: bytes) -> bytes:
    """The content with one byte of a part of it changed."""
    at = content.index(within)
    return content[:at] + bytes([content[at] ^ 255]) + content[at + 1 :]


LINE = f"a.jsonl:{BAD_LINE}"
NOISE = encoded("PNG")
DAMAGED = "the shard is damaged (…)"

table("a row of text that is not JSON", "line", "'conversations' is text that is not JSON (…)", conversations="[{")
table(
    "a row with a null for a text",
    "line",
    "conversations[1].value is None; it must be a string",
    conversations=[HUMAN, {"from": "gpt", "value": None}],
)
table(
    "a row whose path leaves its root",
    "path",
    f"image path '../good.png' leaves the root '…'; {STAY}",
    image={"bytes": None, "path": "../good.png"},
)
table("a row of bytes that are no image", "image", f"image 1: {UNKNOWN}", image=b"404 not found")
table("a row with a bomb", "bomb", f"a.png: {BOMB}", image={"bytes": png(20_000, 20_000), "path": "a.png"})
table("a damaged row group", "line", "its row group cannot be read (…)", spoil_row_group)
shard("an entry of a shard that is none", "line", DAMAGED, b"not msgpack")
shard("an entry of a shard without its image", "line", DAMAGED, pack(good(9, image="a.png"), LINE, []))
shard(
    "a flipped byte in a shard",
    "line",
    DAMAGED,
    pack(good(9, image="a.png"), LINE, [NOISE]),
    lambda content: flip(content, NOISE[100:110]),
)
shard(
    "a damaged image in a shard",
    "image",
    "a.jpg: cannot be read as an image (OSError: image file is truncated …)",
    pack(good(9, image="a.jpg"), LINE, [encoded("JPEG")[:-300]]),
)
shard(
    "a shard whose video leaves its root",
    "path",
    f"video path '../a.mp4' leaves the root '…'; {STAY}",
    pack(good(9, video="../a.mp4"), LINE, []),
)
