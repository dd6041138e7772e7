"""A process that takes batches and saves where it is after each, as a trainer does, and can be killed at any moment.

    python -m tests.data.trainer DATA CHECKPOINT OUTPUT STEPS HOSTS WORKERS

OUTPUT/batches.jsonl has a line for each batch, {"step", "digest"}, and OUTPUT/state.json what to go on from. All hosts
of a run are loaders in this one process.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from ivl3_jax.batch import Batch
from ivl3_jax.data import Loader, Processor, TrainingFrames
from ivl3_jax.data.faults import FaultPolicy
from ivl3_jax.data.files import replacing
from ivl3_jax.data.loader import share
from ivl3_jax.data.settings import DataRecipe, open_feed
from ivl3_jax.data.stream import Feed
from tests.data.bad_files import encoded
from tests.data.bad_samples import talk
from tests.data.pictures import picture

ROWS = 12


def write_data(root: Path) -> None:
    """Sources of text, images and frames, some bad in what is read first and some in what is decoded last."""
    for number in range(5):
        picture(30 + 20 * number, 40, number).save(root / f"{number}.jpg")
    (root / "cut.jpg").write_bytes(encoded("JPEG")[:-300])
    (root / "frames").mkdir()
    for number in range(3):
        picture(20, 20, number).save(root / "frames" / f"{number}.png")
    text = [{"conversations": talk("Which?", f"text {n} {'x' * (n % 23)}")} for n in range(61)]
    text[7] = {"conversations": []}
    images = [{"image": f"{n % 5}.jpg", "conversations": talk("Which?", f"image {n}")} for n in range(37)]
    images[5]["image"], images[11]["image"] = "gone.jpg", "cut.jpg"
    videos = [{"video": "frames", "conversations": talk("Which?", f"video {n}")} for n in range(9)]
    for name, records in (("text", text), ("images", images), ("videos", videos)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    entries = {name: {"annotation": f"{name}.jsonl", "data_augment": name == "images"} for name in ("text", "images")}
    entries["videos"] = {"annotation": "videos.jsonl", "repeat_time": 2}
    (root / "meta.json").write_text(json.dumps(entries))


def open_data(root: Path, processor: Processor) -> Feed:
    recipe = DataRecipe(
        meta=[str(root / "meta.json")],
        rows=ROWS,
        tokens=150,
        tiles=10,
        segments=8,
        too_long="split",
        positions="v2pe",
        frames=TrainingFrames("rand", 2, 5),
        faults=FaultPolicy("skip", most=1),
    )
    return open_feed(recipe, processor, seed=3)


def digest(batch: Batch) -> str:
    whole = hashlib.sha256()
    for array in batch:
        whole.update(f"{array.dtype} {array.shape}".encode() + np.ascontiguousarray(array).tobytes())
    return whole.hexdigest()


def steps(feed: Feed, hosts: int, workers: int, state: dict | None = None) -> Iterator[tuple[str, dict]]:
    """The digest of each global batch, with the state of all hosts after it."""
    shares = [share(feed.mixture.streams, host, hosts) for host in range(hosts)]
    with ExitStack() as stack:
        loaders = [
            stack.enter_context(closing(Loader(feed, streams=mine, workers=workers, state=state))) for mine in shares
        ]
        while True:
            batch = Batch(*map(np.concatenate, zip(*map(next, loaders), strict=True)))
            streams = {stream: where for loader in loaders for stream, where in loader.state["streams"].items()}
            yield digest(batch), {"of": loaders[0].state["of"], "streams": streams}


def main(data: str, checkpoint: str, output: str, count: str, hosts: str, workers: str) -> None:
    folder, first, state = Path(output), 0, None
    if (folder / "state.json").exists():
        saved = json.loads((folder / "state.json").read_text())
        first, state = saved["step"], saved["data"]
    feed = open_data(Path(data), Processor.from_directory(checkpoint))
    going = steps(feed, int(hosts), int(workers), state)
    with closing(going), open(folder / "batches.jsonl", "a") as batches:
        for step in range(first, int(count)):
            found, state = next(going)
            batches.write(json.dumps({"step": step, "digest": found}) + "\n")
            batches.flush()
            with replacing(folder / "state.json") as file:
                file.write(json.dumps({"step": step + 1, "data": state}).encode())


if __name__ == "__main__":
    main(*sys.argv[1:])
