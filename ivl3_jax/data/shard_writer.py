"""Writing of shards, see `data.shards`: images are read and tried once, here, and never again from single files."""

import hashlib
import json
import os
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, takewhile
from pathlib import Path
from typing import Any, Literal

from ivl3_jax.data.conversations import to_sample
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.files import is_remote, read_bytes, require_file
from ivl3_jax.data.images import open_image
from ivl3_jax.data.meta import open_source
from ivl3_jax.data.records import ImageSource, Stored, Video
from ivl3_jax.data.shards import FILE, Manifest, Shard, pack
from ivl3_jax.data.sources import RecordSource, SourceSpec

SKIPPED = "skipped.jsonl"
WRITER = "group_size:1"  # entries are read one at a time


def write_shards(
    spec: SourceSpec,
    directory: Path,
    *,
    shard_bytes: float = 512e6,
    faults: Literal["raise", "skip"] = "raise",
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Manifest:
    """Writes a source as shards, in its order.

    Every image is decoded once, so that a damaged one is found here. After an interruption the same call continues
    behind the last complete shard whose checksum holds. Memory is that of a few samples.

    Args:
        spec: of the source.
        directory: to write, made where there is none.
        shard_bytes: a shard is closed once it has as many.
        faults: "raise" ends at a bad sample; "skip" leaves it out, counts it by reason, and writes
            {"reason", "message"} to `skipped.jsonl` in the directory.
        report: is told of (records done, records).

    Returns:
        What was written.

    Raises:
        Fault: a sample is bad, under "raise".
        ValueError: there is something else in the directory, or no sample is good. OSError: as it says.
        ModuleNotFoundError: array_record is not installed.
    """
    source, facts = open_source(spec), _facts(spec)
    shards = _kept(directory, facts)
    start, skipped = (shards[-1].end, Counter(shards[-1].skipped)) if shards else (0, Counter())
    with open(directory / SKIPPED, "ab") as told:
        told.truncate(shards[-1].told if shards else 0)
        told.seek(0, os.SEEK_END)

        def good() -> Iterator[tuple[int, bytes]]:
            report(start, len(source))
            for done, entry in enumerate(_packed(source, start), start + 1):
                if not isinstance(entry, Fault):
                    yield done, entry
                elif faults == "raise":
                    raise entry
                else:
                    skipped[entry.reason] += 1
                    told.write(json.dumps({"reason": entry.reason, "message": str(entry)}).encode() + b"\n")
                report(done, len(source))

        entries = good()
        for first in entries:
            file = directory / f"{len(shards):05}.array_record"
            samples, end = _write(file, chain([first], entries), shard_bytes)
            told.flush()
            about = (file.name, samples, file.stat().st_size, _sha256(file), end, dict(skipped), told.tell())
            shards = (*shards, Shard(*about))
            Manifest(facts, shards).write(directory)
    if not shards:
        raise ValueError(f"{spec.name}: none of {len(source)} samples is good; {directory / SKIPPED} says why")
    for leftover in {*directory.glob("*.array_record*")} - {directory / shard.file for shard in shards}:
        leftover.unlink()
    manifest = Manifest(facts, shards, dict(skipped), complete=True)
    manifest.write(directory)
    return manifest


def _kept(directory: Path, facts: dict[str, Any]) -> tuple[Shard, ...]:
    """The leading complete shards of an earlier call whose checksums hold; makes the directory where there is none."""
    directory.mkdir(parents=True, exist_ok=True)
    if not (directory / FILE).exists():
        if found := next(directory.iterdir(), None):
            raise ValueError(f"{directory} holds {found.name} but no {FILE}; choose another directory or empty it")
        Manifest(facts).write(directory)
    earlier = Manifest.read(str(directory))
    for key, value in facts.items():
        if earlier.source.get(key) != value:
            raise ValueError(
                f"{directory} holds shards of other data: {key} was {earlier.source.get(key)!r} and is {value!r}; "
                "choose another directory or remove it"
            )

    def holds(shard: Shard) -> bool:
        file = directory / shard.file
        return file.exists() and file.stat().st_size == shard.bytes and _sha256(file) == shard.sha256

    return tuple(takewhile(holds, earlier.shards))


def _facts(spec: SourceSpec) -> dict[str, Any]:
    if is_remote(spec.annotation):
        return {"annotation": spec.annotation, "root": spec.root, "repeat": spec.repeat}
    file, found = os.path.abspath(spec.annotation), os.stat(spec.annotation)
    facts = {"annotation": file, "size": found.st_size, "mtime_ns": found.st_mtime_ns}
    return {**facts, "root": spec.root, "repeat": spec.repeat}


def _packed(source: RecordSource, first: int) -> Iterator[bytes | Fault]:
    """The entries from sample `first` on, in order, made by several threads a little ahead."""
    threads = os.cpu_count() or 1
    pool = ThreadPoolExecutor(threads, thread_name_prefix="shards")
    pending = deque[Future[bytes | Fault]]()
    try:
        for index in range(first, len(source)):
            pending.append(pool.submit(_entry, source, index))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _entry(source: RecordSource, index: int) -> bytes | Fault:
    try:
        record, where = source.record(index)
        sample = to_sample(record, source.spec.root, source.number, where)
        for video in sample.videos:
            assert isinstance(video, Video)  # so to_sample makes them
            if not (os.path.isfile(video.path) or os.path.isdir(video.path)):
                raise Fault("video", f"{where}: {video.path}: no such video file or directory of frames")
        images = [_image(image, where) for image in sample.images]
        return pack(record, where, images)
    except Fault as fault:
        return fault


def _image(image: ImageSource, where: str) -> bytes:
    """The bytes of its file, which can be decoded."""
    try:
        if not isinstance(image, Stored):
            assert isinstance(image, str)  # so to_sample makes them
            if not is_remote(image):
                require_file(image)
            image = Stored(image, read_bytes(image))
        open_image(image)
    except FileNotFoundError as error:
        raise Fault("image", f"{where}: {error.filename}: no such image file") from error
    except OSError as error:
        raise Fault("image", f"{where}: {image}: cannot be read ({error.strerror or error})") from error
    except ValueError as error:
        raise Fault(error.reason if isinstance(error, Fault) else "image", f"{where}: {error}") from error
    return image.data


def _write(file: Path, entries: Iterable[tuple[int, bytes]], shard_bytes: float) -> tuple[int, int]:
    """Writes a shard, which has its name only once it is complete.

    Args:
        entries: each with the number of records used up with it.

    Returns:
        How many samples are in it, and how many records are used up.
    """
    from array_record.python import array_record_module  # late: it is an extra

    unfinished = file.with_name(f"{file.name}.unfinished")
    writer = array_record_module.ArrayRecordWriter(str(unfinished), WRITER)
    samples = size = end = 0
    try:
        for done, entry in entries:
            writer.write(entry)
            samples, size, end = samples + 1, size + len(entry), done
            if size >= shard_bytes:
                break
    finally:
        writer.close()
    unfinished.replace(file)
    return samples, end


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
