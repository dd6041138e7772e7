"""The mistakes in data sets that docs/bad-input.md lists, behind those of `tests.cli.bad_input`."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ivl3_jax.cli.main import main
from tests.cli.bad_input import CASES, case, picture

__all__ = ["CASES"]

TURNS = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "This."}]


def shard(work, content):
    (work / "meta.json").write_text(content if isinstance(content, str) else json.dumps({"pets": content}))
    return ["data", "shard", str(work / "meta.json"), str(work / "out")]


def shard_line(work, **record):
    (work / "a.jsonl").write_text(json.dumps(record) + "\n")
    return shard(work, {"annotation": str(work / "a.jsonl")})


@case("a meta file that is not JSON")
def _(work):
    return shard(work, "pets: a.jsonl")


@case("a misspelled key in a meta file")
def _(work):
    return shard(work, {"annotation": "a.jsonl", "repeat_times": 2})


@case("a value of the wrong type in a meta file")
def _(work):
    return shard(work, {"annotation": "a.jsonl", "data_augment": "yes"})


@case("two sources of one name")
def _(work):
    return shard(work, '{"pets": {"annotation": "a.jsonl"}, "pets": {"annotation": "b.jsonl"}}')


@case("an annotation that is not there")
def _(work):
    return shard(work, {"annotation": "nowhere.jsonl"})


@case("an annotation in an S3 bucket")
def _(work):
    return shard(work, {"annotation": "s3://b/a.jsonl"})


@case("a Parquet file without conversations")
def _(work):
    pq.write_table(pa.table({"text": ["a"]}), work / "a.parquet")
    return shard(work, {"annotation": str(work / "a.parquet")})


@case("an incomplete preference pair")
def _(work):
    return shard_line(work, question="What?", chosen="This.")


@case("a truncated image of a data set")
def _(work):
    file = Path(picture(work))
    file.write_bytes(file.read_bytes()[:100])
    return shard_line(work, image="a.png", conversations=TURNS)


@case("shards of other data in the output")
def _(work):
    earlier = shard_line(work, conversations=TURNS)
    assert main(earlier) == 0
    return shard(work, {"annotation": str(work / "a.jsonl"), "repeat_time": 2})
