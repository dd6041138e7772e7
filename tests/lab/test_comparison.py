"""Two answers side by side, and files that are none."""

import dataclasses
import json

import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.lab.answer import Answer, as_json
from ivl3_jax.lab.calibration import Calibration
from ivl3_jax.lab.comparison import COLUMNS, compare
from ivl3_jax.lab.reasons import changes
from tests.lab.predictions import MLP, case, collective, lacking, prediction, timeline

GATHER = collective("all-gather", "fsdp", place=f"{MLP}, weights")
MEGATRON = prediction(case("fsdp_tensor", tensor=2), timeline(GATHER, collective("all-reduce", "tensor")))
SCATTERED = prediction(
    case("sequence", tensor=2),
    timeline(GATHER, collective("reduce-scatter", "tensor", size=2**19), seconds=0.2),
    gibibytes=3.5,
)


def saved(tmp_path, found, name="a.json") -> str:
    file = tmp_path / name
    file.write_text(json.dumps(as_json(found)))
    return str(file)


def test_an_answer_comes_back(tmp_path):
    found = Answer.read(saved(tmp_path, MEGATRON))
    assert found == Answer.of(MEGATRON)
    assert found.collectives == MEGATRON.timeline.collectives
    assert found.memory["total"] == MEGATRON.compiled.memory.total


def test_a_collective_that_became_another():
    text = compare(Answer.of(MEGATRON), Answer.of(SCATTERED), ("fsdp_tensor", "sequence"))
    assert all(len(line) <= COLUMNS for line in text.splitlines())
    assert "decoder.activations.residual: none -> tensor" in text
    assert "a reduce-scatter for an all-reduce" in text
    _, _, listed = text.partition("collectives that changed")
    place, first, second, why = listed.strip().splitlines()[2:6]
    assert place.strip() == MLP
    assert first.split() == ["A", "all-reduce", "over", "tensor", "24", "x", "1.0", "MiB", "2.40", "ms"]
    assert second.split() == ["B", "reduce-scatter", "over", "tensor", "24", "x", "512.0", "KiB", "2.40", "ms"]
    assert why.strip() == "by decoder.activations.residual"
    assert "the same in both: 1 places" in listed
    assert "time, step, s                             0.2500        0.2000       -0.0500      0.80" in text
    assert "memory, total, GiB                          4.00          3.50         -0.50      0.88" in text


def test_the_same_twice():
    text = compare(Answer.of(MEGATRON), Answer.of(MEGATRON), ("a", "b"))
    assert "nothing that was asked differs, nor the compiler" in text
    assert "the same collectives" in text


def test_other_constants():
    slower = dataclasses.replace(MEGATRON, calibration=Calibration(vectors=1.5))
    text = compare(Answer.of(MEGATRON), Answer.of(slower), ("a", "b"))
    assert "calibration.vectors: 0.85 -> 1.5\n      times follow from it, and nothing else" in text
    assert text.count("calibration.") == 1 and "nothing that was asked differs" not in text
    before = dataclasses.replace(Answer.of(MEGATRON), constants={})
    assert "calibration.vectors: unknown -> 1.5" in compare(before, Answer.of(slower), ("a", "b"))


def test_constants_move_no_collective():
    """One differs, and collectives too: those are not said to follow from it."""
    slower = dataclasses.replace(MEGATRON, timeline=timeline(GATHER), calibration=Calibration(vectors=1.5))
    text = compare(Answer.of(MEGATRON), Answer.of(slower), ("a", "b"))
    assert "collectives that changed" in text and "by calibration" not in text


def test_a_place_with_a_bar_in_it():
    odd = prediction(found=timeline(collective("all-gather", "fsdp", place="a | b")))
    assert "a | b" in compare(Answer.of(odd), Answer.of(MEGATRON), ("a", "b"))


def test_one_that_does_not_fit():
    text = compare(Answer.of(MEGATRON), Answer.of(prediction(shortage=lacking())), ("a", "b"))
    assert "DOES NOT FIT: RESOURCE_EXHAUSTED" in text
    assert "unknown" in text


def test_axes_of_one_device_are_no_difference():
    """The two plans differ in rules on `tensor`, which is not in use."""
    assert changes(case("fsdp_tensor").facts(), case("sequence").facts()) == []


def test_remat_bears_on_what_is_computed_again():
    (change,) = changes(case().facts(), case(remat="dots").facts())
    assert (change.name, change.before, change.after) == ("remat.decoder", "full", "dots")
    assert change.causes("decoder layers, recomputed: MLP, weights", {"fsdp"})
    assert not change.causes("decoder layers, forward: MLP, weights", {"fsdp"})
    assert not change.causes("ViT layers, recomputed: MLP, weights", {"fsdp"})


def test_choices_of_attention_and_of_a_pipeline():
    before, after = case("context", context=2).facts(), case("context", context=2).facts()
    after["plan"]["context"]["attention"] = "ring"
    (change,) = changes(before, after)
    assert change.name == "context.attention" and change.after == "ring"
    assert "round a ring" in change.effect
    assert change.causes("decoder layers, forward: attention, keys and values round the ring", {"context"})
    assert not change.causes("decoder layers, forward: MLP", {"context"})


def test_files_in_the_command(tmp_path, capsys):
    assert main(["lab", "compare", saved(tmp_path, MEGATRON), saved(tmp_path, SCATTERED, "b.json")]) == 0
    assert "collectives that changed" in capsys.readouterr().out


def bad(text: str):
    def make(tmp_path) -> list[str]:
        (tmp_path / "bad.json").write_text(text)
        return [str(tmp_path / "bad.json"), saved(tmp_path, MEGATRON)]

    return make


def without(**changed):
    return bad(json.dumps(as_json(MEGATRON) | changed))


def case_with(**fields):
    found = MEGATRON.case.facts()
    return found | {"plan": found["plan"] | fields}


GATHERED = as_json(MEGATRON)["collectives"][0]


@pytest.mark.parametrize(
    ("argv", "code", "says"),
    [
        (lambda _: ["none.json", "none.json"], 1, "none.json: No such file or directory"),
        (lambda tmp_path: [str(tmp_path / "x.json")] * 2, 1, "x.json: No such file or directory"),
        (bad("{"), 1, "bad.json is not valid JSON"),
        (bad("[1]"), 1, "bad.json holds no table; it must be a file that `ivl3 lab compile --json` writes"),
        (bad('{"loss": 1}'), 1, "bad.json lacks case, memory, collectives, versions, parts, model, plan"),
        (without(collectives=[{"kind": "all-gather"}]), 1, "it must be a file that `ivl3 lab compile --json` writes"),
        (without(case={"plan": 3}), 1, "bad.json: TypeError"),
        (without(case={"plan": {}}), 1, "bad.json: KeyError: 'mesh'"),
        (without(step_seconds="long"), 1, "the file has step_seconds = 'long'; it must be a number of at most 1e+100"),
        (without(memory={"total": "much"}), 1, "memory has total = 'much'; it must be a number of at most 1e+100"),
        (without(rows=None), 1, "bad.json: the file has rows = None; it must be a number"),
        (without(model=3), 1, "bad.json: the file has model = 3; it must be text"),
        (without(mfu=float("nan")), 1, "bad.json: the file has mfu = nan"),
        (without(tokens=10**400), 1, "bad.json: the file has tokens = 1000"),
        (without(versions=[1]), 1, "bad.json: versions is [1]; it must be a table"),
        (without(versions=None), 1, "bad.json: versions is None; it must be a table"),
        (without(versions={"jax": 1}), 1, "bad.json: versions has jax = 1; it must be text"),
        (without(constants={"ici": "fast"}), 1, "bad.json: constants has ici = 'fast'; it must be a number"),
        (without(parts=[]), 1, "bad.json: parts is []; it must be a table"),
        (without(collectives=[GATHERED | {"count": 0}]), 1, "bad.json: a collective, all-gather, has count = 0"),
        (without(collectives=[GATHERED | {"place": None}]), 1, "bad.json: a collective, all-gather, has place = None"),
        (without(collectives=[GATHERED | {"axes": ["up"]}]), 1, "bad.json: a collective is 'all-gather' over ['up']"),
        (without(collectives=[GATHERED | {"axes": [[]]}]), 1, "bad.json: TypeError"),
        (without(case=case_with(remat={"tower": "full"})), 1, "case.plan.remat has 'tower'; known there: vision"),
        (bad("[" * 100_000), 1, "bad.json is not valid JSON (nested too deep)"),
        (bad('{"a": 1, "a": 2}'), 1, "bad.json is not valid JSON ('a' stands in it twice)"),
        (bad("9" * 5000), 1, "bad.json is not valid JSON"),
        (lambda _: ["fsdp"], 2, "takes two plans or files before its options, A and B; 1 given"),
        (lambda _: [], 2, "A and B; 0 given"),
        (lambda _: ["a.json", "b.json", "--model", "1b"], 2, "options are for plans that are compiled"),
        (lambda _: ["fsdp", "sequence", "--plan", "fsdp"], 2, "plan is not a setting"),
        (lambda _: ["fsdp", "sequence", "--model", "1b"], 2, "topology must be given"),
        (lambda _: ["nope", "fsdp", "--model", "1b", "--topology", "v5e:4x4"], 1, "no sharding plan 'nope'"),
        (lambda _: ["fsdp", "fsdp", "--mesh-c", "{}"], 2, "mesh-c is not a setting"),
    ],
)
def test_bad_input(tmp_path, capsys, argv, code, says):
    assert main(["lab", "compare", *argv(tmp_path)]) == code
    said = capsys.readouterr().err
    assert says in said
    assert said.count("\n") == 1
