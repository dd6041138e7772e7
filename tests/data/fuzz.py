"""Damaged lines, images, videos and meta files by number, and what the data engine makes of them.

    python -m tests.data.fuzz COUNT [FIRST]

Whatever comes in is encoded within its bounds, or is a fault of a known reason that names file and line: no other
exception, nothing that hangs or runs out of memory, nothing lost between what is drawn, given and skipped. A case is a
function of its number, so that one alone is `python -m tests.data.fuzz 1 NUMBER`.
"""

import dataclasses
import faulthandler
import json
import logging
import re
import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from ivl3_jax.batch import IGNORE, Batch
from ivl3_jax.data import ChatTemplate, Encoder, Fault, Loader, Processor, Tokenizer, collate, open_source, read_meta
from ivl3_jax.data.faults import REASONS, FaultPolicy
from ivl3_jax.data.files import is_remote
from ivl3_jax.data.mixture import Mixture
from ivl3_jax.data.packing import Budget
from ivl3_jax.data.positions import random_deltas
from ivl3_jax.data.settings import DataRecipe, make_feed
from ivl3_jax.data.sources import RecordSource, SourceSpec
from ivl3_jax.data.stream import Feed, Part
from ivl3_jax.data.tokenizer_training import train_tokenizer
from ivl3_jax.data.units import Unit
from tests.data.bad_samples import talk
from tests.data.corpus import CORPUS
from tests.data.mutations import Rng, choose, mutate_bytes, mutate_image, mutate_json
from tests.data.pictures import picture, write_video

TOGETHER = 250  # cases of one file
ROW = Budget(tokens=200, tiles=10, segments=8)
SECONDS = 120  # within which a case is far from ending only if it never will
MEMORY = 2 << 30  # bytes; the largest image that is allowed takes 1.4 GiB, as it is and as RGB
ADDRESSES = 8 << 30  # bytes that may be asked for; a header may speak of 4 GiB of which no byte is touched

RECORDS = [
    {"id": 0, "conversations": talk()},
    {"conversations": [{"from": "system", "value": "Be brief."}, *talk(), *talk("And 书?", "é")], "length": 9},
    {"image": "good.png", "width": 40, "height": 30, "conversations": talk("<image>\nWhat?")},
    {"image": ["good.png", "good.jpg"], "conversations": talk("Image-1: <image>\nImage-2: <image>\nWhich?")},
    {"image": "good.jpg", "conversations": talk()},
    {"video": "a.mp4", "conversations": talk("<video>\nWhat?")},
    {"video": "a.gif", "clip": [0, 1.5], "conversations": talk("<video>\nWhat?")},
    {"video": "frames/", "image": "good.png", "conversations": talk()},
    {"image": "good.png", "question": "<image>\nWhat?", "chosen": "this", "rejected": "that"},
    {"question": "What?", "chosen": "this", "rejected": "that", "chosen_meta": {}},
]
META = {
    "pets": {"root": "", "annotation": "good.jsonl", "data_augment": True, "repeat_time": 2, "length": 3},
    "cats": {"annotation": "good.jsonl", "repeat_time": 0.5, "max_dynamic_patch": 3, "media": "cats"},
}


def prepare(root: Path) -> dict[str, bytes]:
    """Writes the good files that damaged records speak of; returns videos by suffix."""
    picture(40, 30).save(root / "good.png")
    picture(90, 30).save(root / "good.jpg")
    (root / "frames").mkdir()
    for number in range(3):
        picture(20, 20, number).save(root / "frames" / f"{number}.png")
    for suffix in ("mp4", "mkv", "avi"):
        write_video(root / f"a.{suffix}", 12)
    Image.new("L", (30, 20)).save(root / "a.gif", save_all=True, append_images=[Image.new("L", (30, 20), 90)] * 4)
    (root / "good.jsonl").write_text("".join(json.dumps(RECORDS[0]) + "\n" for _ in range(3)))
    return {suffix: (root / f"a.{suffix}").read_bytes() for suffix in ("mp4", "mkv", "avi", "gif")}


def line(rng: Rng, number: int, root: Path, videos: dict[str, bytes]) -> bytes:
    """A damaged line, or a good one with an image or a video that is damaged, which is written beside it."""
    record, kind = choose(rng, RECORDS), rng.random()
    if kind < 0.35:
        return json.dumps(mutate_json(rng, record), ensure_ascii=bool(rng.random() < 0.5)).encode(errors="replace")
    if kind < 0.5:
        return mutate_bytes(rng, json.dumps(record).encode(), json.dumps(choose(rng, RECORDS)).encode())
    if kind < 0.93:
        (root / f"{number}.png").write_bytes(mutate_image(rng))
        path, record = f"{number}.png", RECORDS[2 if rng.random() < 0.8 else 8]
        return json.dumps({**record, "image": path}).encode()
    suffix = choose(rng, list(videos))
    (root / f"{number}.{suffix}").write_bytes(mutate_bytes(rng, videos[suffix], choose(rng, list(videos.values()))))
    return json.dumps({"video": f"{number}.{suffix}", "conversations": talk()}).encode()


def encoder_of(group: int) -> Encoder:
    """The settings of a group of cases."""
    tokenizer = Tokenizer(train_tokenizer(CORPUS, 420))
    processor = Processor(tokenizer, ChatTemplate(), 56, 4, max_tiles=6, vocab=len(tokenizer))
    return Encoder(
        dataclasses.replace(processor, pad_to_square=group % 5 == 4),
        ROW.tokens,
        ROW.tiles,
        too_long=("raise", "truncate", "split")[group % 3],
        too_many_tiles=("raise", "shrink")[group % 2],
        deltas=random_deltas if group % 4 == 3 else None,
    )


def check(encoder: Encoder, unit: Unit, batch: Batch) -> None:
    """Asserts that a row of one unit is within its bounds."""
    vocab, size = encoder.processor.vocab, len(batch.tokens[0])
    here, trained = batch.segment_ids > 0, batch.labels != IGNORE
    assert here.sum() == unit.tokens <= ROW.tokens and unit.tiles <= ROW.tiles
    assert (batch.tokens >= 0).all() and (batch.tokens < vocab).all()
    assert (batch.labels[trained] >= 0).all() and (batch.labels[trained] < vocab).all()
    assert not trained[~here].any()
    assert np.isfinite(batch.positions).all() and (batch.positions >= 0).all() and (batch.positions < size).all()
    assert np.isfinite(batch.loss_weights).all() and ((batch.loss_weights > 0) == trained).all()
    visual = batch.visual_index[batch.visual_index >= 0]
    assert set(visual.tolist()) == set(range(unit.tiles * encoder.processor.tile_tokens))
    assert batch.tiles.dtype == np.uint8 and not batch.tiles[0, unit.tiles :].any()


def try_sample(encoder: Encoder, source: RecordSource, index: int, place: str) -> tuple[int, Counter[str]]:
    """How many units of a sample were encoded, and the faults of the others by reason."""
    given, faults, rng = 0, Counter[str](), np.random.default_rng(index)
    try:
        units = encoder.measure(source[index], rng)
    except Fault as fault:
        check_fault(fault, place)
        return 0, Counter([fault.reason])
    for unit in units:
        try:
            segments = encoder.decode(unit, rng)
        except Fault as fault:
            check_fault(fault, place)
            faults[fault.reason] += 1
        else:
            check(encoder, unit, collate(encoder.processor, [segments], *dataclasses.astuple(ROW)))
            given += 1
    return given, faults


def check_fault(fault: Fault, place: str) -> None:
    message = str(fault)
    assert fault.reason in REASONS and message.startswith(f"{place}: ") and message.isprintable(), message


def try_group(first: int, count: int) -> Counter[str]:
    """Cases `first` to before `first + count`, of one group: each for itself, then all through a loader."""
    found = Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        videos, cases, lines = prepare(root), [], []
        for number in range(first, first + count):
            rng = np.random.default_rng(number)
            if rng.random() < 0.1:
                found[try_meta(rng, root, number)] += 1
            else:
                damaged = line(rng, number, root, videos).split(b"\n")
                lines += damaged
                cases += [number] * len(damaged)
        file = root / "a.jsonl"
        file.write_bytes(b"\n".join(lines) + b"\n")
        numbers = [number for number, content in enumerate(lines, 1) if content.strip()]
        try:
            source = open_source(SourceSpec("fuzz", name, str(file)))
        except ValueError as error:  # no case has a line
            assert str(error) == f"{file}: has no records; at least one is needed"
            return found
        assert len(source) == len(numbers)
        encoder, whole = encoder_of(first // TOGETHER), Counter[str]()
        for index, at in enumerate(numbers):
            faulthandler.dump_traceback_later(SECONDS, exit=True)
            try:
                given, faults = try_sample(encoder, source, index, f"{file}:{at}")
            except Exception as error:
                raise AssertionError(f"case {cases[at - 1]}: {type(error).__name__}: {error}") from error
            finally:
                faulthandler.cancel_dump_traceback_later()
            whole.update(faults)
            whole["encoded"] += given
            found["encoded" if given else next(iter(faults))] += 1
        faulthandler.dump_traceback_later(10 * SECONDS, exit=True)
        through = through_loader(encoder, source)
        assert through == whole, f"cases {first} to {first + count - 1}: {through} by the loader, {whole} one by one"
        faulthandler.cancel_dump_traceback_later()
    return found


def through_loader(encoder: Encoder, source: RecordSource) -> Counter[str]:
    """What a loader gives of a source in one pass, pairs and pieces counted as one, and what it skips."""
    mixture = Mixture((len(source),), (1.0,), streams=2, exhausted="drop")
    loader = Loader(Feed([Part(source, encoder)], mixture, ROW, faults=FaultPolicy("skip", most=1, grace=10**6)))
    given = 0
    for batch in loader:
        given += int(batch.segment_ids.max(axis=1).sum()) - int((batch.pair_id >= 0).sum()) // 2
    assert Counter(skip.reason for skip in loader.take_skips()) == loader.skipped
    drawn = sum(stream["drawn"] for stream in loader.state["streams"].values())
    assert drawn == given + loader.skipped.total()
    return loader.skipped + Counter(encoded=given)


def try_meta(rng: Rng, root: Path, number: int) -> str:
    """A damaged meta file: refused by name, or read to a feed from which samples can be drawn."""
    if rng.random() < 0.6:
        content = json.dumps(mutate_json(rng, META)).encode()
    else:
        content = mutate_bytes(rng, json.dumps(META).encode(), json.dumps(META).encode())
    file = root / f"{number}.json"
    file.write_bytes(content)
    faulthandler.dump_traceback_later(SECONDS, exit=True)
    try:
        return _read(file, root)
    except Exception as error:
        raise AssertionError(f"case {number}: {type(error).__name__}: {error}") from error
    finally:
        faulthandler.cancel_dump_traceback_later()


def _read(file: Path, root: Path) -> str:
    try:
        specs = read_meta(file)
    except ValueError as error:
        assert str(error).startswith(f"{file}: "), error
        return "meta file refused"
    try:
        sources = [open_source(spec, at) for at, spec in enumerate(specs) if not is_remote(spec.annotation)]
        specs = [spec for spec in specs if not is_remote(spec.annotation)]
        feed = make_feed(DataRecipe(meta=[str(file)]), encoder_of(0).processor, 0, sources, specs)
    except (ValueError, OSError) as error:
        assert any(spec.name in str(error) or spec.annotation in str(error) for spec in specs) or not specs, error
        return "source refused"
    for number in range(4):
        draw = feed.mixture.draw(0, number)
        assert draw is not None and 0 <= draw.sample < len(sources[draw.source])
    return "meta file read"


def main(argv: list[str]) -> None:
    count, first = (int(word) for word in [*argv, "0"][:2])
    logging.getLogger("ivl3_jax.data.meta").setLevel(logging.ERROR)  # wrong lengths and roots are told
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESSES, ADDRESSES))
    faulthandler.enable()
    began, found, last = time.monotonic(), Counter[str](), first + count
    for start in range(first - first % TOGETHER, last, TOGETHER):
        begin, end = max(first, start), min(last, start + TOGETHER)
        found += try_group(begin, end - begin)
    peak = peak_memory() >> 20
    for what, times in sorted(found.items(), key=lambda pair: -pair[1]):
        print(f"{what:20} {times}")
    seconds = time.monotonic() - began
    print(f"{count} inputs, {sum(found.values())} lines and meta files, {seconds:.0f} s, {peak} MiB at most")
    assert peak < MEMORY >> 20


def peak_memory() -> int:
    """The most bytes that this program had in memory; ru_maxrss counts those of the process that it was forked from."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) << 10


if __name__ == "__main__":
    main(sys.argv[1:])
