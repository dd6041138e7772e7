"""Going on from a checkpoint of step 1,000,000: seconds to the first batch, and which samples are read for it."""

from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from line_speed import BATCHES, first_batches, write_lines
from measuring import feed, fresh, table, trained
from tokenizers import Tokenizer

from ivl3_jax.data.loader import Loader
from ivl3_jax.data.records import Pair, Sample
from ivl3_jax.data.sources import Source
from ivl3_jax.data.stream import PIECES

STEP = 1_000_000


@dataclass
class Counted:
    """A source that notes which samples are read."""

    source: Source
    read: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        return self.source.name

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: int) -> Sample | Pair:
        self.read.append(index)
        return self.source[index]


def state_of_step(file: Path, tokenizer: Tokenizer) -> dict[str, Any]:
    """A loader's state of about that step: as many draws on as its rows take, with what waits there.

    Samples a row are counted over some batches. Since each draw follows from its number alone, a stream can be set to
    any; from there batches are made until as much waits as ever does.
    """
    opened = feed(file, tokenizer)
    states: list[dict[str, Any]] = []
    for _ in range(2):
        with closing(Loader(opened, state=states[-1] if states else None)) as loader:
            for _ in range(BATCHES):
                next(loader)
            states.append(loader.state)
        if len(states) == 1:
            stream = states[0]["streams"]["0"]
            stream["next"] = (stream["drawn"] - len(stream["waiting"])) * (STEP - BATCHES) // BATCHES
            stream["waiting"] = []
    return states[-1]


def reads(file: Path, tokenizer: Tokenizer, state: dict[str, Any]) -> list[int]:
    """How many samples wait, and how many were read of these, of those drawn then, and of any others.

    Read for the first batch, that is, and for those that are made ahead meanwhile.
    """
    opened, stream = feed(file, tokenizer), state["streams"]["0"]
    counted = Counted(opened.parts[0].source)
    noting = replace(opened, parts=[replace(opened.parts[0], source=counted)])
    with closing(Loader(noting, state=state)) as loader:
        next(loader)
    waiting = {opened.mixture.draw(0, item[0] // PIECES).sample for item in stream["waiting"]}
    draws = range(stream["next"], stream["next"] + len(counted.read))
    drawn = {opened.mixture.draw(0, number).sample for number in draws}
    kinds = [0 if sample in waiting else 1 if sample in drawn else 2 for sample in counted.read]
    return [len(stream["waiting"]), *(kinds.count(kind) for kind in range(3))]


def resume(folder: Path, lines: int, repeats: int) -> None:
    """Prints the time to the first batch and the number of samples read."""
    files, tokenizer = write_lines(folder, lines), trained()
    states = {kind: fresh(state_of_step, file, tokenizer) for kind, file in files.items()}
    print(f"\nSeconds to the first batch of a fresh process that goes on from step {STEP:,}")
    table(["lines", "workers", "feed open", "first batch"], first_batches(files, repeats, states))
    print("\nSamples read for that batch and those made ahead meanwhile")
    rows = [
        [kind, f"{states[kind]['streams']['0']['next']:,}", *fresh(reads, file, tokenizer, states[kind])]
        for kind, file in files.items()
    ]
    table(["lines", "draws before", "waiting", "read of these", "drawn and read", "other reads"], rows)
