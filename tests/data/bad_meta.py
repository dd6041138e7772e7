"""Meta files, annotations and settings that are refused at the start, as docs/faults.md lists them.

Each case has the content of `meta.json`, beside which lies a good `a.jsonl`, and what spoils the files.
"""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ivl3_jax.data.images import LARGEST_GRID
from ivl3_jax.data.shard_writer import write_shards
from ivl3_jax.data.shards import FILE
from ivl3_jax.data.sources import SourceSpec
from tests.data.bad_samples import good

ENTRY = {"annotation": "a.jsonl"}


@dataclass(frozen=True)
class Refused:
    """A mistake.

    Attributes:
        told: the message without the directory; "…" stands for anything.
        content: of the meta file. spoil: what else is done in its directory.
        settings: of the `DataRecipe` beside the meta file.
    """

    told: str
    content: bytes
    spoil: Callable[[Path], object] = lambda root: None
    settings: dict = field(default_factory=dict)


REFUSED: dict[str, Refused] = {}


def prepare(root: Path) -> None:
    """Writes the good annotation."""
    (root / "a.jsonl").write_text("".join(json.dumps(good(number)) + "\n" for number in range(4)))


def meta(name: str, told: str, content, spoil=lambda root: None, **settings) -> None:
    raw = content if isinstance(content, bytes) else json.dumps(content).encode()
    assert name not in REFUSED, name
    REFUSED[name] = Refused(told, raw, spoil, settings)


def pets(name: str, told: str, spoil=lambda root: None, **entry) -> None:
    """A case of one source, `pets`."""
    meta(name, told, {"pets": {**ENTRY, **entry}}, spoil)


def key(name: str, must: str, **entry) -> None:
    """A case of a value that cannot be."""
    ((key, value),) = entry.items()
    shown = repr(value) if len(repr(value)) < 80 else f"{repr(value)[:9]}…"
    pets(name, f"meta.json: pets.{key} is {shown}; it must be {must}", **entry)


OBJECT = "meta.json: must be a JSON object with an entry for each data source, as in InternVL"
PATH = "a path or gs://BUCKET/PATH; from other places copy it, or mount the bucket"
REPEATS = "a fraction above 0 and below 1, or a whole number up to 1000000000000"
LENGTH = "a whole number up to 1000000000000"
NAMED = "is no name for a source; it must be printable, and more than dots"

meta("a meta file that is not JSON", "meta.json: not a meta file (…)", b"pets: a.jsonl")
meta(
    "a meta file that is not UTF-8", "meta.json: not a meta file ('utf-8' codec can't decode byte …)", b'{"caf\xe9": 1}'
)
meta("a meta file nested 100,000 deep", "meta.json: not a meta file (nested too deep)", b"[" * 100_000)
meta("an empty meta file", "meta.json: not a meta file (…)", b"")
meta("a list of sources", OBJECT, [ENTRY])
meta("no sources", OBJECT, {})
meta(
    "two sources of one name",
    "meta.json: not a meta file ('pets' stands in it twice)",
    b'{"pets": {"annotation": "a.jsonl"}, "pets": {"annotation": "a.jsonl"}}',
)
meta(
    "a key that stands in an entry twice",
    "meta.json: not a meta file ('root' stands in it twice)",
    b'{"pets": {"root": "a", "root": "b", "annotation": "a.jsonl"}}',
)
meta("a source named ..", f"meta.json: '..' {NAMED}", {"..": ENTRY})
meta("a source without a name", f"meta.json: '' {NAMED}", {"": ENTRY})
meta("a line break in a name", f"meta.json: 'pets\\n' {NAMED}", {"pets\n": ENTRY})
meta(
    "an entry that is a path",
    "meta.json: pets is 'a.jsonl'; it must be an object with root, annotation, …",
    {"pets": "a.jsonl"},
)
meta(
    "a misspelled key",
    "meta.json: pets has the key 'repeat_times'; did you mean repeat_time?",
    {"pets": {**ENTRY, "repeat_times": 2}},
)
meta(
    "an entry without annotation",
    "meta.json: pets has no 'annotation'; it must name a .jsonl or .parquet file, or shards",
    {"pets": {"root": "a"}},
)
key("an annotation that is a list", PATH, annotation=["a.jsonl"])
key("an annotation at s3://", PATH, annotation="s3://b/a.jsonl")
key("a root that is null", PATH, root=None)
key("a root at http://", PATH, root="http://localhost/pets")
key("data_augment in words", "true or false", data_augment="yes")
key("a negative repeat_time", REPEATS, repeat_time=-1)
key("a repeat_time of 0", REPEATS, repeat_time=0)
key("a repeat_time that is not a number", REPEATS, repeat_time=float("nan"))
key("an endless repeat_time", REPEATS, repeat_time=float("inf"))
key("a repeat_time of 10^400", REPEATS, repeat_time=10**400)
key("a repeat_time between whole numbers", REPEATS, repeat_time=1.5)
key("a repeat_time in words", REPEATS, repeat_time="2")
key("a negative length", LENGTH, length=-1)
key("a length in words", LENGTH, length="all")
key("no tiles", f"a whole number from 1 to {LARGEST_GRID}", max_dynamic_patch=0)
key("a million tiles", f"a whole number from 1 to {LARGEST_GRID}", max_dynamic_patch=10**6)

MISSING = "which does not exist, neither beside the meta file nor from the current directory on"
KIND = "of no known kind; valid: a .jsonl or .parquet file, or a directory of shards"
pets("an annotation that is not there", f"pets.annotation is 'gone.jsonl', {MISSING}", annotation="gone.jsonl")
pets(
    "a JSON file as annotation",
    f"pets.annotation is 'a.json', {KIND}",
    lambda root: (root / "a.json").write_text("[]"),
    annotation="a.json",
)
pets(
    "a directory as JSONL",
    "b.jsonl: is a directory, not a file",
    lambda root: (root / "b.jsonl").mkdir(),
    annotation="b.jsonl",
)
pets(
    "a pipe as JSONL",
    "b.jsonl: is a pipe or a device, not a file",
    lambda root: os.mkfifo(root / "b.jsonl"),
    annotation="b.jsonl",
)
pets(
    "JSONL at gs://",
    "pets.annotation is 'gs://b/a.jsonl'; a .jsonl file is read from disk: copy or mount it, …",
    annotation="gs://b/a.jsonl",
)
pets(
    "an empty annotation",
    "a.jsonl: has no records; at least one is needed",
    lambda root: (root / "a.jsonl").write_bytes(b""),
)
pets(
    "an annotation of blank lines",
    "a.jsonl: has no records; at least one is needed",
    lambda root: (root / "a.jsonl").write_bytes(b"\n \n"),
)
pets("a fraction that keeps nothing", "pets.repeat_time is 0.1, which keeps none of 4 records", repeat_time=0.1)


def parquet(name: str, told: str, write: Callable[[Path], object]) -> None:
    """A case of a Parquet file."""
    pets(name, f"a.parquet: {told}", lambda root: write(root / "a.parquet"), annotation="a.parquet")


parquet("text as Parquet", "cannot be read as Parquet (…)", lambda file: file.write_text("PAR1"))
parquet(
    "Parquet of other columns",
    "has the columns text; it must have conversations, or question, chosen and rejected; …",
    lambda file: pq.write_table(pa.table({"text": ["a"]}), file),
)
parquet(
    "Parquet without rows",
    "has no records; at least one is needed",
    lambda file: pq.write_table(pa.table({"conversations": pa.array([], pa.string())}), file),
)


def shards(name: str, told: str, spoil: Callable[[Path], object]) -> None:
    """A case of a directory of shards."""

    def make(root: Path) -> None:
        write_shards(SourceSpec("pets", "", str(root / "a.jsonl")), root / "shards")
        spoil(root / "shards")

    pets(name, told, make, annotation="shards")


def edited(old: str, new: str) -> Callable[[Path], object]:
    """Changes shards.json."""

    def edit(directory: Path) -> None:
        text = (directory / FILE).read_text()
        assert old in text
        (directory / FILE).write_text(text.replace(old, new, 1))

    return edit


SHARD = "00000.array_record"
shards(
    "a directory that is not one of shards",
    "shards/shards.json: No such file or directory",
    lambda directory: (directory / FILE).unlink(),
)
shards("a damaged shards.json", "shards/shards.json: is damaged (…)", edited("{", ""))
shards(
    "shards of another version",
    "shards/shards.json: format is 'ivl3 shards 9'; valid: 'ivl3 shards 1'",
    edited("shards 1", "shards 9"),
)
shards(
    "a shard outside of its directory",
    "shards/shards.json: is damaged (ValueError: a shard is '../b.array_record'; it must be the name of a file …)",
    edited(SHARD, "../b.array_record"),
)
shards(
    "a shard of a negative number of samples",
    "shards/shards.json: is damaged (ValueError: samples of 00000.array_record is -4; it must be a whole number)",
    edited('"samples": 4', '"samples": -4'),
)
shards(
    "shards that are not complete",
    "shards: is not complete; the same `ivl3 data shard` continues it",
    edited('"complete": true', '"complete": false'),
)
shards("a missing shard", f"shards/{SHARD}: No such file or directory", lambda directory: (directory / SHARD).unlink())
shards(
    "a shard that was cut off",
    f"shards/{SHARD}: has 9 bytes, but shards.json says …; copy or make it again",
    lambda directory: (directory / SHARD).write_bytes(b"123456789"),
)

meta(
    "weights that miss a source",
    "weights are given for no unknown sources and missing for ['cats']; …",
    {"pets": ENTRY, "cats": ENTRY},
    weights={"pets": 1},
)
meta("a weight of 0", "the weight of pets is 0.0; it must be above 0 and finite", {"pets": ENTRY}, weights={"pets": 0})
meta(
    "weights without a finite sum",
    "the sum of the sources' weights is not finite; give smaller ones",
    {"pets": ENTRY, "cats": ENTRY},
    weights={"pets": 1e308, "cats": 1e308},
)
meta(
    "a share of text where there is no other",
    "text_share is 0.25, but all sources are text",
    {"pets": ENTRY},
    text_share=0.25,
)
meta(
    "more tiles than an image may have",
    f"DataRecipe.max_tiles is 1000000; it must be at most {LARGEST_GRID}",
    {"pets": ENTRY},
    max_tiles=10**6,
)
