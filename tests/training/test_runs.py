"""What else a recipe can ask for: preferences, held-out loss, answers, traces, fresh parts, bad steps."""

import numpy as np
import pytest
import yaml

import ivl3_jax
from ivl3_jax.cli.main import main
from tests.models.small import checkpoint
from tests.training.runs import losses, metrics, weights, write_data, write_pairs, write_recipe

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("pairs"))


def run(file, *options):
    assert main(["train", "--config", str(file), *options]) == 0
    return yaml.safe_load(file.read_text())["output"]


def short(tmp_path, annotation, **sections):
    train = {"steps": 4, "average": None} | sections.pop("train", {})
    return write_recipe(tmp_path / "recipe.yaml", annotation, train=train, **sections)


@pytest.mark.long
def test_preferences_are_learned(pairs, tmp_path, capsys):
    """Chosen answers become likelier than rejected ones, whichever way the reference is had."""
    size = {"tokens": 400, "segments": 8}
    train = {"steps": 12, "learning_rate": 2e-3, "preference": {}}
    (tmp_path / "a").mkdir(), (tmp_path / "b").mkdir()
    same = {"data": size, "model": {"drop_path": 0.0}}
    run(short(tmp_path / "a", pairs, train=train, **same))
    assert "log-probabilities of the reference model" in capsys.readouterr().err
    run(short(tmp_path / "b", pairs, train=train | {"preference": {"precompute": False}}, **same))
    told = metrics(tmp_path / "a/run")
    assert losses(tmp_path / "b/run") == pytest.approx(losses(tmp_path / "a/run"), rel=1e-6)
    first, last = told[0]["parts"], told[-1]["parts"]
    assert first["preference"] == pytest.approx(np.log(2), rel=1e-5) and abs(first["reward_margin"]) < 1e-6
    assert last["reward_margin"] > 0.1 and last["reward_accuracy"] == 1 and last["generation"] < first["generation"]
    with np.load(tmp_path / "a/run/reference.npz") as table:
        assert table["table"].shape == (12, 4, 8)
    capsys.readouterr()
    (tmp_path / "a/run/checkpoint").rename(tmp_path / "a/other")
    (tmp_path / "a/run/states").rename(tmp_path / "a/states")
    assert main(["train", "--config", str(tmp_path / "a/recipe.yaml"), "--train.seed", "7"]) == 1
    assert "reference.npz is of another run: its seed is 0, here it is 7" in capsys.readouterr().err


def test_pairs_are_faults_of_other_runs(pairs, tmp_path, capsys):
    assert main(["train", "--config", str(short(tmp_path, pairs))]) == 1
    assert "is a preference pair" in capsys.readouterr().err


def test_watching(data, tmp_path):
    questions = data.parent / "questions.jsonl"
    questions.write_text("\n".join(data.read_text().splitlines()[:2]))
    watch = {
        "every": 2, "held_out": str(data), "held_out_batches": 2, "questions": str(questions), "profile": [2, 1],
    }  # fmt: skip
    output = tmp_path / "run"
    run(short(tmp_path, data, watch=watch))
    seen = {line["step"]: line["seen"] for line in metrics(output) if "seen" in line}
    assert list(seen) == [2, 4] and seen[4]["held_out_loss"] < seen[2]["held_out_loss"]
    for looked in seen.values():
        assert [one["question"][-10:] for one in looked["answers"]] == ["What is 0?", "What is 1?"]
    assert list(output.glob("profile/**/*.xplane.pb"))
    last = metrics(output)[-1] if "loss" in metrics(output)[-1] else metrics(output)[-2]
    assert 0 < last["goodput"] <= 1 and last["positions_per_second"] > 0 and "mfu" not in last
    assert set(last["kinds"]) == {"text", "visual"} and list(last["sources"]) == ["train.jsonl"]


def test_tensorboard(data, tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is not installed (extra: watch)")
    run(short(tmp_path, data, watch={"tensorboard": True}))
    assert list((tmp_path / "run/tensorboard").iterdir())


def test_a_fresh_projector(data, tmp_path):
    """The start of native pre-training: a new projector between what was trained before."""
    train = {"steps": 1, "warmup_steps": 1}  # at a rate of zero
    run(short(tmp_path, data, model={"fresh": ["projector"]}, train=train))
    found, before = weights(tmp_path / "run/checkpoint"), weights(checkpoint())
    moved = {name for name, value in before.items() if (found[name] != value).any()}
    assert moved and all("projector" in name for name in moved)


@pytest.mark.parametrize("policy", ["stop", "skip", "rollback"])
def test_spikes(data, tmp_path, policy, capsys, monkeypatch):
    """Once the losses have settled, a limit just above their average makes some of them spikes."""
    from ivl3_jax.training import step

    monkeypatch.setattr(step, "SETTLED", 3)
    train = {"steps": 10, "on_bad_step": policy, "spike": 1.0001, "learning_rate": 1e-6, "most_bad_steps": 9}
    code = main(["train", "--config", str(short(tmp_path, data, train=train))])
    error, output = capsys.readouterr().err, tmp_path / "run"
    applied = [line["applied"] for line in metrics(output)]
    assert "above 1.0001 times its moving average; the step was not applied, its batch is in" in error
    (first, *_) = sorted(output.glob("bad/step-*.npz"))
    with np.load(first) as batch:
        assert set(batch.files) == set(ivl3_jax.batch.Batch._fields) and batch["tokens"].shape == (4, 200)
    if policy == "stop":
        assert code == 1 and len(list(output.glob("bad/*"))) == 1
    else:
        assert code == 0 and applied.count(False) == len(list(output.glob("bad/*"))) and len(applied) == 10


@pytest.mark.long
def test_nothing_to_save_in_between(data, tmp_path):
    """A state for the end alone, from which a longer run goes on."""
    file = short(tmp_path, data, save={"every": None})
    output = tmp_path / "run"
    run(file)
    assert [state.name for state in (output / "states").iterdir()] == ["4"]
    (output / "checkpoint").rename(tmp_path / "first")
    with pytest.warns(UserWarning, match="goes on with other settings than before: train.steps was 4, now 6"):
        from ivl3_jax.cli.train import run as train

        train(["--config", str(file), "--train.steps", "6"])
    assert [line["step"] for line in metrics(output)] == [1, 2, 3, 4, 5, 6]


def test_adapters_alone_are_trained(data, tmp_path):
    """Adapters of the decoder: the base stays, and checkpoint and adapter say the same."""
    frozen = {"train": False}
    train = {"steps": 6, "vision": frozen, "projector": frozen, "decoder": {"lora": {"rank": 4}}}
    output = run(short(tmp_path, data, model={"drop_path": 0.0}, train=train, save={"every": 3}))
    found, before = weights(tmp_path / "run/checkpoint"), weights(checkpoint())
    moved = {name for name, value in before.items() if (found[name] != value).any()}
    assert moved and all("language_model.layers" in name and "_proj" in name for name in moved)
    merged = ivl3_jax.load_adapter(ivl3_jax.load(checkpoint()), tmp_path / "run/adapter")
    ivl3_jax.save(merged, tmp_path / "again")
    again = weights(tmp_path / "again")
    assert all(again[name].tobytes() == value.tobytes() for name, value in found.items())
    # It goes on from a state with adapters, and refuses one with others.
    (tmp_path / "run/checkpoint").rename(tmp_path / "first")
    with pytest.raises(ValueError, match=r"holds states of another model \(adapters\)"):
        from ivl3_jax.cli.train import run as train_command

        train_command(["--config", str(tmp_path / "recipe.yaml"), "--train.decoder.lora.rank", "8"])
    assert losses(tmp_path / "run")[-1] < losses(tmp_path / "run")[0] and output
