"""From a YAML recipe and a JSONL file to a checkpoint that everything opens."""

import json

import jax
import numpy as np
import pytest
import yaml
from PIL import Image

import ivl3_jax
from ivl3_jax.batch import Batch
from ivl3_jax.cli.main import main
from ivl3_jax.conversion.parity import example_batch
from tests.models.small import checkpoint

STEPS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions about images of two shapes, and about none."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    lines = []
    for number, size in enumerate([(30, 30), (30, 70), None, (90, 30)]):
        turns = [{"from": "human", "value": f"What is {number}?"}, {"from": "gpt", "value": f"It is {number}."}]
        record = {"conversations": turns}
        if size:
            Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8)).save(root / f"{number}.png")
            record["image"] = f"{number}.png"
            turns[0]["value"] = "<image>\n" + turns[0]["value"]
        lines.append(json.dumps(record))
    (root / "train.jsonl").write_text("\n".join(lines))
    return root


def recipe(data, output, **changes):
    """Writes recipe.yaml; `changes` are dotted names with two underscores for the dot."""
    fields = {
        "output": str(output / "run"),
        "model": {"checkpoint": str(checkpoint()), "drop_path": 0.1},
        "data": {"annotation": str(data / "train.jsonl"), "rows": 2, "tokens": 160, "tiles": 6, "segments": 3},
        "train": {"steps": STEPS, "learning_rate": 1e-3, "warmup_steps": 1},
    }
    for name, value in changes.items():
        section, _, key = name.rpartition("__")
        (fields[section] if section else fields)[key] = value
    file = output / "recipe.yaml"
    file.write_text(yaml.safe_dump(fields))
    return file


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    output = tmp_path_factory.mktemp("output")
    assert main(["train", "--config", str(recipe(data, output))]) == 0
    return output / "run"


def test_what_a_run_leaves(trained):
    assert {file.name for file in trained.iterdir()} == {"checkpoint", "metrics.jsonl", "run.json", "states"}
    told = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in told] == list(range(1, STEPS + 1))
    assert all(line["loss"] > 0 and line["tokens"] > 0 for line in told)


def test_the_checkpoint_opens_and_answers(trained, data):
    model = ivl3_jax.load(trained / "checkpoint")
    before = ivl3_jax.load(checkpoint())
    moved = [bool((a != b).any()) for a, b in zip(*map(jax.tree.leaves, (model.params, before.params)), strict=True)]
    assert all(moved)
    answer = ivl3_jax.Chat(model).ask("What is 0?", [data / "0.png"], max_new_tokens=8)
    assert isinstance(answer, str)
    assert main(["chat", str(trained / "checkpoint"), str(data / "0.png"), "What is 0?", "--max-new-tokens", "8"]) == 0


def test_transformers_opens_it_with_the_same_logits(trained, torch):
    parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)
    model = ivl3_jax.load(trained / "checkpoint")
    batch = example_batch(model.config, 60, 2)
    reference = parity_reference.load_reference(trained / "checkpoint")
    theirs = parity_reference.run(reference, parity_reference.inputs_from_batch(batch, model.config))["logits"]
    assert np.linalg.norm(model(batch) - theirs) < 1e-4 * np.linalg.norm(theirs)


@pytest.mark.long
def test_a_run_on_a_mesh_from_a_fresh_model(data, tmp_path):
    """The other way to begin: a size of its own, sharded."""
    changes = {
        "model": {"size": str(checkpoint()), "tokenizer": str(checkpoint())},
        "sharding": {"plan": "fsdp_tensor", "mesh": {"fsdp": 2, "tensor": 2}},
    }
    file = recipe(data, tmp_path, **changes, train__steps=1, data__max_tiles=4)
    assert main(["train", "--config", str(file)]) == 0
    batch: Batch = example_batch(ivl3_jax.load(checkpoint()).config, 20, 1)
    assert np.isfinite(ivl3_jax.load(tmp_path / "run" / "checkpoint")(batch)).all()


@pytest.mark.parametrize(
    ("changes", "arguments", "code", "message"),
    [
        ({"train__learning_rat": 1}, [], 2, "recipe.yaml: train.learning_rat is not a setting; allowed in train: st"),
        ({"data__weighting": "cubic"}, [], 2, "recipe.yaml: data.weighting is 'cubic'; it must be one of token, "),
        ({"train__steps": "many"}, [], 2, "recipe.yaml: train.steps is 'many'; it must be an integer"),
        ({}, ["--train.stepz", "1"], 2, "train.stepz is not a setting"),
        ({}, ["--train.steps", "0"], 2, "TrainConfig.steps is 0; it must be above 0"),
        ({"train__seed": 2**63}, [], 2, "TrainConfig.seed is 9223372036854775808; it must be below 2**63"),
        ({"data__rows": 0}, [], 2, "DataRecipe.rows is 0; it must be at least 1"),
        ({"data__tiles": -1}, [], 2, "DataRecipe.tiles is -1; it must be at least 0"),
        ({"data__max_tiles": 0}, [], 2, "DataRecipe.max_tiles is 0; it must be at least 1"),
        ({"data__min_tiles": 3, "data__max_tiles": 2}, [], 2, "DataRecipe.min_tiles is 3 and max_tiles 2; valid: min"),
        ({"sharding": {"mesh": {"self": 2}}}, [], 1, "unknown 'mesh.self'; known there: data, stage"),
        ({"model": {}}, [], 2, "give either checkpoint (a directory) or size"),
        ({"model": {"size": "InternVL3-1B"}}, [], 2, "ModelRecipe.tokenizer is missing"),
        ({"data__annotation": "no.jsonl"}, [], 1, "DataRecipe.annotation is 'no.jsonl', which does not exist"),
        ({"data__tokens": 20}, [], 1, "but a row has room for 20"),
        ({"data__tiles": 1}, [], 1, "tiles, but a row has room for 1"),
        ({"data__rows": 3, "sharding": {"plan": "fsdp_tensor", "mesh": {"fsdp": 2}}}, [], 1, "batch = 3, which does"),
        ({"sharding": {"plan": "fsdp_tensr"}}, [], 1, "no sharding plan 'fsdp_tensr'; shipped: context, "),
        ({"model": {"checkpoint": "nowhere"}}, [], 1, "there is no directory nowhere"),
    ],
)  # fmt: skip
def test_faults_are_told_in_one_line(changes, arguments, code, message, data, tmp_path, capsys):
    assert main(["train", "--config", str(recipe(data, tmp_path, **changes)), *arguments]) == code
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("ivl3: error: ") and message in error
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_finished_run_is_not_overwritten(trained, data, capsys):
    written = (trained / "metrics.jsonl").read_text()
    assert main(["train", "--config", str(trained.parent / "recipe.yaml"), "--train.weight-decay", "1"]) == 1
    told = "already holds a checkpoint, of other settings (train.weight_decay was 0.05, now 1.0)"
    assert told in capsys.readouterr().err
    assert (trained / "metrics.jsonl").read_text() == written


def test_a_tokenizer_of_another_model_is_refused(data, tmp_path, capsys):
    changes = {"model": {"size": "InternVL3-1B", "tokenizer": str(checkpoint())}}
    assert main(["train", "--config", str(recipe(data, tmp_path, **changes))]) == 1
    assert "image_token_id is 151667, but in" in capsys.readouterr().err


@pytest.mark.long
def test_what_is_skipped_is_told(data, tmp_path, capsys):
    lines = (data / "train.jsonl").read_text().splitlines()
    (data / "faulty.jsonl").write_text("\n".join([*lines, "{"]))
    changes = {"data__annotation": str(data / "faulty.jsonl"), "data__faults": {"action": "skip", "most": 0.5}}
    assert main(["train", "--config", str(recipe(data, tmp_path, **changes, train__steps=2))]) == 0
    told = f"ivl3: warning: skipped: {data / 'faulty.jsonl'}:5: not a JSON object"
    assert any(line.startswith(told) for line in capsys.readouterr().err.splitlines())
    last = (tmp_path / "run/metrics.jsonl").read_text().splitlines()[-1]
    assert json.loads(last)["skipped"]["line"] >= 1
