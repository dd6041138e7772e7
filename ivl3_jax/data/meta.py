"""InternVL's meta file, which lists data sources:

{"docvqa": {"root": "data/docvqa/", "annotation": "data/docvqa.jsonl", "data_augment": false, "repeat_time": 1,
            "length": 10000, "max_dynamic_patch": 12}, ...}
"""

import difflib
import json
import logging
import os
import posixpath
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ivl3_jax.data.files import is_remote, read_bytes, replacing, require_file
from ivl3_jax.data.images import LARGEST_GRID
from ivl3_jax.data.json_values import parse_json, shown
from ivl3_jax.data.jsonl import JsonlSource
from ivl3_jax.data.parquet import ParquetSource
from ivl3_jax.data.shards import ShardSource
from ivl3_jax.data.sources import RecordSource, SourceSpec

MOST = 10**12  # records, and times that they are repeated: sums of products of the two are finite


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and (not is_remote(value) or value.startswith("gs://"))


def _is_repeat(value: Any) -> bool:
    return type(value) in (int, float) and 0 < value <= MOST and (value < 1 or value == int(value))


_PATH = "a path or gs://BUCKET/PATH; from other places copy it, or mount the bucket"
# What a value must be, each as a test and in words.
KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "root": (_is_path, _PATH),
    "annotation": (lambda value: _is_path(value) and value, _PATH),
    "data_augment": (lambda value: type(value) is bool, "true or false"),
    "repeat_time": (_is_repeat, f"a fraction above 0 and below 1, or a whole number up to {MOST}"),
    "length": (lambda value: type(value) is int and 0 <= value <= MOST, f"a whole number up to {MOST}"),
    "max_dynamic_patch": (
        lambda value: type(value) is int and 0 < value <= LARGEST_GRID,
        f"a whole number from 1 to {LARGEST_GRID}",
    ),
}


def read_meta(file: str | Path) -> list[SourceSpec]:
    """The sources of a meta file, in its order.

    Only "annotation" is required. "root" is by default the directory of the annotation, "data_augment" false and
    "repeat_time" 1. Other keys are passed over, as published files have some, unless one looks like one of these
    misspelled. A relative path starts from the directory of the meta file if it leads to something there, else from
    the current one, as in the original.

    Raises:
        ValueError: the file is not as above; the message says file, source, key, value and what would be valid.
        OSError: the file cannot be read.
    """
    file = str(file)
    if file.lower().endswith((".jsonl", ".parquet")):
        raise ValueError(f"{file}: not a meta file, but data that one names as annotation, as data.annotation does too")
    try:
        found = parse_json(read_bytes(file))
    except ValueError as error:
        raise ValueError(f"{file}: not a meta file ({error})") from error
    if not isinstance(found, dict) or not found:
        raise ValueError(f"{file}: must be a JSON object with an entry for each data source, as in InternVL")
    return [_spec(file, name, entry) for name, entry in found.items()]


def write_meta(file: Path, specs: Iterable[SourceSpec]) -> None:
    """Writes a meta file that `read_meta` reads."""
    entries = {}
    for spec in specs:
        values = (spec.root, spec.annotation, spec.augment, spec.repeat, spec.length, spec.max_tiles)
        entries[spec.name] = {key: value for key, value in zip(KEYS, values, strict=True) if value is not None}
    with replacing(file) as stream:
        stream.write(json.dumps(entries, indent=2, ensure_ascii=False).encode() + b"\n")


def open_source(spec: SourceSpec, number: int = 0) -> RecordSource:
    """Opens a source by the suffix of its annotation: .jsonl, .parquet, or none for a directory of shards.

    A "length" that is not the number of its records is told by a warning and changes nothing; a root that is not there
    is told likewise, since text needs none.

    Args:
        number: given to every sample as its `source`.

    Raises:
        ValueError: it is of another kind, empty, or damaged. OSError: it cannot be read.
        ModuleNotFoundError: what reads it is not installed.
    """
    source = _opened(spec, number)
    # Where a fraction is taken, published files state the number before or after that.
    if spec.length is not None and len(source) not in (spec.length, int(spec.length * min(spec.repeat, 1))):
        said = f"{spec.name}.length is {spec.length}, but {spec.annotation} has {len(source)} samples to use"
        logging.getLogger(__name__).warning(said)
    elsewhere = is_remote(spec.root) or isinstance(source, ShardSource)  # shards have their images in them
    if spec.root and not elsewhere and not os.path.isdir(spec.root):
        said = f"{spec.name}.root is {spec.root!r}, which is no directory: its images and videos will not be found"
        logging.getLogger(__name__).warning(said)
    return source


def _opened(spec: SourceSpec, number: int) -> RecordSource:
    at, suffix = f"{spec.name}.annotation is {spec.annotation!r}", posixpath.splitext(spec.annotation)[1].lower()
    remote, file = is_remote(spec.annotation), suffix in (".jsonl", ".parquet")
    if remote and file:
        raise ValueError(
            f"{at}; a {suffix} file is read from disk: copy or mount it, or make shards of it with `ivl3 data shard`, "
            "which are read from gs:// as well"
        )
    if not remote and not os.path.exists(spec.annotation):
        raise ValueError(f"{at}, which does not exist, neither beside the meta file nor from the current directory on")
    if not remote and not file and not os.path.isdir(spec.annotation):
        raise ValueError(f"{at}, of no known kind; valid: a .jsonl or .parquet file, or a directory of shards")
    if not file:
        return ShardSource(spec, number)
    require_file(spec.annotation)
    return JsonlSource(spec, number) if suffix == ".jsonl" else ParquetSource(spec, number)


def _spec(file: str, name: str, entry: Any) -> SourceSpec:
    if not name.strip(".") or not name.isprintable():  # shards get a directory of that name
        raise ValueError(f"{file}: {shown(name)} is no name for a source; it must be printable, and more than dots")
    if not isinstance(entry, dict):
        raise ValueError(f"{file}: {name} is {shown(entry)}; it must be an object with {', '.join(KEYS)}")
    for key, value in entry.items():
        if key not in KEYS and (near := difflib.get_close_matches(key, KEYS, n=1, cutoff=0.8)):
            raise ValueError(f"{file}: {name} has the key {key!r}; did you mean {near[0]}?")
        if key in KEYS and not KEYS[key][0](value):
            raise ValueError(f"{file}: {name}.{key} is {shown(value)}; it must be {KEYS[key][1]}")
    if "annotation" not in entry:
        raise ValueError(f"{file}: {name} has no 'annotation'; it must name a .jsonl or .parquet file, or shards")
    annotation = _located(entry["annotation"], file)
    return SourceSpec(
        name,
        root=_located(entry["root"], file) if "root" in entry else os.path.dirname(annotation),
        annotation=annotation,
        augment=entry.get("data_augment", False),
        repeat=entry.get("repeat_time", 1),
        length=entry.get("length"),
        max_tiles=entry.get("max_dynamic_patch"),
    )


def _located(path: str, file: str) -> str:
    if not path or is_remote(path) or os.path.isabs(path):
        return path
    beside = posixpath.join(posixpath.dirname(file), path)
    return beside if is_remote(file) or os.path.exists(beside) else path
