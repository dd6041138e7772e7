"""Every plan error of docs/sharding.md is made here, and its message read."""

import dataclasses
import re
from pathlib import Path

import jax
import pytest

from ivl3_jax.lab.topology import Topology
from ivl3_jax.models.model import abstract_model, place_batch
from ivl3_jax.sharding.plan import ShardingPlan
from tests.models.small import CONFIG, changed, random_batch

DOCS = Path(__file__).parents[2] / "docs/sharding.md"
ROW = re.compile(r"^\| (?P<what>[^|`]+) \| `` (?P<message>.*) `` \|$", re.MULTILINE)
MESSAGES = {row["what"]: row["message"] for row in ROW.finditer(DOCS.read_text())}
TENSOR = "decoder: {parameters: {heads: [tensor]}, activations: {heads: [tensor]}}"
CASES = {}


def case(what):
    def add(function):
        CASES[what] = function
        return function

    return add


def read(folder, text, **mesh):
    (folder / "mine.yaml").write_text(text)
    return ShardingPlan.read("mine.yaml", mesh)


def model(plan, config=CONFIG):
    return abstract_model(config, plan, plan.make_mesh(jax.devices()))


def place(plan, rows, length=8):
    place_batch(random_batch(rows, [(8, 1)], length=length, tiles=1), plan, plan.make_mesh(jax.devices()))


case("an unknown field")(lambda folder: read(folder, "meshes: {fsdp: 2}"))
case("an unknown logical axis")(lambda folder: read(folder, "decoder: {parameters: {width: [fsdp]}}"))
case("an unknown mesh axis")(lambda folder: read(folder, "vision: {activations: {tiles: [dp]}}"))
case("a mesh axis twice in a list")(lambda folder: read(folder, "vision: {parameters: {embed: [fsdp, fsdp]}}"))
case("a mesh axis twice in a parameter")(
    lambda folder: model(read(folder, "decoder: {parameters: {embed: [fsdp], mlp: [fsdp]}}", fsdp=2))
)
case("a mesh axis twice in an activation")(
    lambda folder: model(read(folder, "decoder: {activations: {batch: [fsdp], residual: [fsdp]}}", fsdp=2))
)
case("a key twice")(lambda folder: read(folder, "remat: {}\ndecoder: {}\ndecoder: {}"))
case("options that are no values")(lambda folder: read(folder, "compiler: {v5e: {xla_tpu_flag: [1]}}"))
case("a size of no axis")(lambda folder: read(folder, "mesh: {fsdp: 0}"))
case("more devices than there are")(lambda folder: model(ShardingPlan.read("fsdp", {"fsdp": 16})))
case("more chips than the slice has")(
    lambda folder: Topology.read("v5e:4x4").make_mesh(ShardingPlan.read("fsdp", {"fsdp": 32}))
)
case("25 heads")(
    lambda folder: model(
        read(folder, "vision: {parameters: {heads: [tensor]}}", tensor=2), changed(vision={"heads": 25, "width": 200})
    )
)
case("query heads")(lambda folder: model(read(folder, TENSOR, tensor=8), changed(decoder={"heads": 12, "kv_heads": 2})))
case("keys apart from their queries")(
    lambda folder: model(read(folder, "decoder: {activations: {heads: [tensor], kv_heads: [fsdp]}}", tensor=2))
)
case("parts of a head in flight")(lambda folder: model(read(folder, "decoder: {activations: {head_dim: [tensor]}}")))
case("a hidden size")(
    lambda folder: model(ShardingPlan.read("fsdp_tensor", {"tensor": 2}), changed(decoder={"mlp": 129}))
)
case("rows")(lambda folder: place(ShardingPlan.read("fsdp_tensor", {"fsdp": 4, "tensor": 2}), 6))
case("positions of a row")(lambda folder: place(ShardingPlan.read("sequence", {"tensor": 8}), 2, length=12))
case("positions in zigzag order")(lambda folder: place(ShardingPlan.read("context", {"context": 8}), 2, length=24))
case("zigzag with all-to-all")(lambda folder: read(folder, "context: {attention: all_to_all, order: zigzag}"))
case("heads over positions")(
    lambda folder: model(
        dataclasses.replace(
            ShardingPlan.read("context", {"context": 4, "tensor": 2}),
            context=dataclasses.replace(ShardingPlan().context, attention="all_to_all"),
        ),
        changed(decoder={"heads": 12, "kv_heads": 2}),
    )
)
case("layers by stages")(lambda folder: model(ShardingPlan.read("pipeline", {"stage": 4})))
case("microbatches by stages")(
    lambda folder: model(read(folder, "extends: pipeline\npipeline: {microbatches: 3}", stage=2))
)
case("rows by microbatches")(lambda folder: place(ShardingPlan.read("pipeline", {"stage": 2, "fsdp": 2}), 6))
case("rows that do not begin with the stage")(lambda folder: model(read(folder, "extends: fsdp", stage=2)))
case("an unknown remat policy")(lambda folder: read(folder, "remat: {decoder: some}"))
case("an unknown name in remat")(lambda folder: read(folder, "remat: {decoder: {save: [logits]}}"))
case("a plan that extends itself")(lambda folder: read(folder, "extends: mine.yaml"))
case("a base that is not there")(lambda folder: read(folder, "extends: nofile.yaml"))
case("a plan that is not there")(lambda folder: ShardingPlan.read("fsdpp"))


def test_every_row_is_a_case():
    assert list(MESSAGES) == list(CASES)


@pytest.mark.parametrize("what", CASES)
def test_message(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises((ValueError, OSError)) as error:
        CASES[what](tmp_path)
    expected = re.escape(MESSAGES[what]).replace("…", ".*")
    assert re.fullmatch(expected, str(error.value)), error.value
