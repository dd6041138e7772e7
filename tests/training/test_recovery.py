"""What goes wrong around a run, and leaves it able to go on: other settings, damage, half-written results."""

import json
import shutil

import numpy as np
import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.training import reference
from tests.training.runs import (
    await_step,
    finish,
    kill,
    losses,
    metrics,
    start,
    start_together,
    steps_of,
    weights,
    write_data,
    write_pairs,
    write_recipe,
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A recipe of six steps with states after 2, 4 and 6, and its run."""
    root = tmp_path_factory.mktemp("finished")
    recipe = write_recipe(root / "recipe.yaml", data, train={"steps": 6}, save={"every": 2, "keep": 3})
    assert main(["train", "--config", str(recipe)]) == 0
    return recipe, root / "run"


@pytest.fixture
def part(finished, tmp_path):
    """The command of a run that has come to step 4, and its directory."""
    recipe, run = finished
    output = tmp_path / "run"
    shutil.copytree(run, output)
    for name in ("checkpoint", "checkpoint-average", "states/6"):
        shutil.rmtree(output / name)
    return ["train", "--config", str(recipe), "--output", str(output)], output


def states(output):
    return sorted(state.name for state in (output / "states").iterdir())


@pytest.mark.parametrize(
    ("option", "told"),
    [
        ("--train.average=null", "train.average was 0.9, now null"),
        ("--train.moment-dtype=bfloat16", 'train.moment_dtype was "float32", now "bfloat16"'),
        ("--train.vision.train=false", "train.vision.train was true, now false"),
        ("--model.param-dtype=bfloat16", 'model.param_dtype was "float32", now "bfloat16"'),
    ],
)
def test_settings_that_a_state_has_no_room_for_are_refused(part, option, told, capsys):
    command, output = part
    assert main([*command, option]) == 1
    error = capsys.readouterr().err
    assert f"holds states of other arrays than these settings need ({told}" in error
    assert states(output) == ["2", "4"] and "damaged" not in error


def test_the_same_command_goes_on_behind_a_refusal(part, finished):
    command, output = part
    assert main([*command, "--train.average=null"]) == 1
    assert main(command) == 0
    assert losses(output) == losses(finished[1])


def test_fewer_steps_than_are_done_are_refused(part, capsys):
    command, output = part
    assert main([*command, "--train.steps=3"]) == 1
    assert f"train.steps is 3; the newest state in {output} is of step 4" in capsys.readouterr().err
    assert not (output / "checkpoint").exists()


def test_a_run_whose_states_are_all_damaged_does_not_begin_anew(part, capsys):
    command, output = part
    for state in ("2", "4"):
        (output / "states" / f"damaged-{state}").mkdir()  # from an earlier time: another name is found
        for file in (output / "states" / state / "state").rglob("*"):
            if file.is_file():
                file.write_bytes(file.read_bytes()[:20])
    for _ in range(2):
        assert main(command) == 1
        assert "every state in " in capsys.readouterr().err
    assert states(output) == ["damaged-2", "damaged-2-2", "damaged-4", "damaged-4-2"]
    assert steps_of(output)


def test_what_cannot_be_reached_is_not_damaged(part, monkeypatch, capsys):
    from ivl3_jax.training.states import States

    def refuse(self, step, **items):
        raise PermissionError(13, "Permission denied", "states/4")

    command, output = part
    monkeypatch.setattr(States, "_restore", refuse)
    assert main(command) == 1
    assert "states/4: Permission denied" in capsys.readouterr().err and states(output) == ["2", "4"]


def test_results_are_written_again_after_a_kill_between_them(finished, tmp_path):
    recipe, run = finished
    output = tmp_path / "run"
    shutil.copytree(run, output)
    shutil.rmtree(output / "checkpoint")
    (output / "checkpoint.partial").mkdir()
    (output / "checkpoint.partial" / "half").touch()
    assert main(["train", "--config", str(recipe), "--output", str(output)]) == 0
    for name in ("checkpoint", "checkpoint-average"):
        assert weights(output / name).keys() == weights(run / name).keys()
        assert all((weights(output / name)[key] == value).all() for key, value in weights(run / name).items())
    assert not (output / "checkpoint.partial").exists()


def test_something_else_is_not_replaced_by_results(finished, tmp_path, capsys):
    (tmp_path / "run/checkpoint").mkdir(parents=True)
    (tmp_path / "run/checkpoint/thesis.txt").touch()
    assert main(["train", "--config", str(finished[0]), "--output", str(tmp_path / "run")]) == 1
    assert "holds something that no run wrote; choose another output" in capsys.readouterr().err
    assert not metrics(tmp_path / "run") and (tmp_path / "run/checkpoint/thesis.txt").exists()


def test_a_damaged_run_json_is_named(part, capsys):
    command, output = part
    (output / "run.json").write_text('{"be')
    assert main(command) == 1
    assert "run.json is damaged" in capsys.readouterr().err
    (output / "run.json").unlink()
    assert main(command) == 0


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--train.vision.layers=30:"], "train.vision.layers is '30:'; it selects none of the 3 layers"),
        (
            ["--train.projector.layers=0:1"],
            "train.projector has layers or layer_decay, and the projector has no layers",
        ),
        (["--train.decoder.lora.rank=4", "--train.decoder.train=false"], "train.decoder.lora is given and"),
        (["--train.decoder.rate=0"], "train.decoder.rate is 0"),
        (["--train.preference.beta=0.1"], "is a preference pair (a line with `chosen` and `rejected`)"),
        (
            ["--train.preference.preference=0", "--train.preference.quality=0", "--train.preference.generation=0"],
            "preference, quality and generation are all 0",
        ),
        (
            ["--sharding.plan=fsdp_tensor", "--sharding.mesh.fsdp=2", "--watch.questions=any.jsonl"],
            "watch.questions: generation runs on one device",
        ),
    ],
)
def test_settings_that_would_do_nothing_are_refused(finished, options, told, tmp_path, capsys):
    assert main(["train", "--config", str(finished[0]), "--output", str(tmp_path / "run"), *options]) != 0
    assert told in capsys.readouterr().err.replace("TrainConfig.", "train.")
    assert not metrics(tmp_path / "run")


@pytest.mark.long
def test_a_reference_in_several_parts(tmp_path, monkeypatch, capsys):
    """Written now and then, damaged, computed anew: the same table."""
    monkeypatch.setattr(reference, "SAVED_EVERY", 2)
    pairs = write_pairs(tmp_path)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        pairs,
        train={"steps": 5, "preference": {}, "average": None},
        data={"tokens": 400, "segments": 8},
    )
    assert main(["train", "--config", str(recipe)]) == 0
    assert "reference: 4 of 5 steps" in capsys.readouterr().err
    table = np.load(tmp_path / "run/reference.npz")["table"]
    content = (tmp_path / "run/reference.npz").read_bytes()
    shutil.rmtree(tmp_path / "run/checkpoint")
    (tmp_path / "run/reference.npz").write_bytes(content[:200])
    with pytest.warns(UserWarning, match=r"reference.npz is damaged and is computed anew"):
        from ivl3_jax.cli.train import run

        run(["--config", str(recipe)])
    assert (np.load(tmp_path / "run/reference.npz")["table"] == table).all()


@pytest.mark.long
def test_told_to_end_and_killed_while_the_reference_is_computed(tmp_path):
    pairs = write_pairs(tmp_path)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        pairs,
        train={"steps": 8, "preference": {}},
        data={"tokens": 400, "segments": 8},
    )
    whole, output = tmp_path / "run", tmp_path / "other"
    finish(start(recipe, whole))
    run = start(recipe, output)
    for line in run.stdout:
        if "log-probabilities" in line:
            run.terminate()
            break
    (said,) = finish(run)
    assert "told to end" in said and not steps_of(output)
    run = start(recipe, output)
    await_step(run, output, 3)
    kill(run)
    finish(start(recipe, output))
    assert losses(output) == losses(whole)
    assert all(value.tobytes() == weights(whole / "checkpoint")[name].tobytes()
               for name, value in weights(output / "checkpoint").items())  # fmt: skip


@pytest.mark.long
def test_damage_that_one_of_two_processes_meets(data, tmp_path):
    sharding = {"plan": "fsdp_tensor", "mesh": {"fsdp": 2}}
    recipe = write_recipe(tmp_path / "recipe.yaml", data, sharding=sharding, train={"steps": 4}, save={"every": 2})
    output = tmp_path / "run"
    finish(*start_together(recipe, output, 2, devices=2))
    before = losses(output)
    for name in ("checkpoint", "checkpoint-average"):
        shutil.rmtree(output / name)
    files = [file for file in (output / "states/4").rglob("*") if file.is_file() and "process_1" in str(file)]
    max(files, key=lambda file: file.stat().st_size).unlink()
    said = finish(*start_together(recipe, output, 2, devices=2))
    assert "4 is damaged and was moved to damaged-4" in said[0] and "going on from step 2" in said[0]
    assert "Exception ignored" not in said[1]  # once for each array
    assert losses(output) == before


def test_metrics_are_json_whatever_the_loss(tmp_path):
    from ivl3_jax.training.writers import JsonLines

    writer = JsonLines(tmp_path / "metrics.jsonl", 0)
    writer.write(1, {"loss": float("nan"), "parts": {"quality": float("inf"), "generation": 0.5}})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    refuse = pytest.fail
    found = json.loads(line, parse_constant=lambda name: refuse(f"{name} is no JSON"))
    assert found == {"step": 1, "loss": None, "parts": {"quality": None, "generation": 0.5}}
