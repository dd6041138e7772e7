"""`ivl3 data inspect`."""

import json

import pytest

from ivl3_jax.cli.data_inspect import as_recipe
from ivl3_jax.cli.main import main
from tests.data.conftest import directory, trained
from tests.data.html import check_html
from tests.data.metas import write_meta

__all__ = ["directory", "trained"]

ROOM = ["--tokens", "600", "--tiles", "12", "--segments", "10"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """The current directory, with meta.json."""
    monkeypatch.chdir(tmp_path)
    write_meta(tmp_path)
    return tmp_path


def inspect(directory, *argv):
    return main(["data", "inspect", "meta.json", "--model", str(directory), *argv])


def test_a_page_and_figures_are_written(work, directory, capsys):
    assert inspect(directory, *ROOM, "--rows", "2", "--pictures", "3", "--decode") == 0
    said = capsys.readouterr()
    assert said.out.startswith("meta.json: 70 samples, 70 looked at, 5 bad\n")
    assert "text 38, one image 14, several images 11, interleaved 3\n" in said.out
    assert "bad, line: 1\n  text.jsonl:6: not a JSON object" in said.out
    assert "images.jsonl:9: cut.png: cannot be read as an image" in said.out.replace("./", "")
    assert said.out.endswith("written: inspection.html, inspection.figures.json\n")
    page = check_html((work / "inspection.html").read_text(encoding="utf-8"))
    assert [text for text in page.texts_in("h3") if text.startswith("Step")] == [
        "Step 1, row 1",
        "Step 1, row 2",
        "Step 2, row 1",
    ]
    figures = json.loads((work / "inspection.figures.json").read_text(encoding="utf-8"))
    assert figures["about"]["row"] == "600 tokens, 12 tiles, 10 segments"
    assert figures["samples"]["there_are"] == 70
    assert {file.name for file in work.iterdir() if file.suffix in (".html", ".json")} == {
        "meta.json",
        "inspection.html",
        "inspection.figures.json",
    }


def test_a_training_recipe_is_taken_as_it_is(work, directory, capsys):
    settings = {"meta": ["meta.json"], "rows": 2, "tokens": 600, "tiles": 12, "segments": 10}
    recipe = {
        "output": "runs/first",
        "model": {"checkpoint": str(directory)},
        "data": {**settings, "faults": {"action": "skip", "most": 0.5}},
        "sharding": {"plan": "fsdp_tensor", "mesh": {"fsdp": 16}},
        "train": {"steps": 5, "seed": 3},
    }
    (work / "recipe.yaml").write_text(json.dumps(recipe))
    assert main(["data", "inspect", "--config", "recipe.yaml", "--page", "by_recipe.html"]) == 0
    assert "Training leaves them out, as faults.most allows 50.00%." in capsys.readouterr().out
    by_options = [*ROOM, "--rows", "2", "--faults.action=skip", "--data.faults.most", "0.5", "--train.seed", "3"]
    assert inspect(directory, *by_options, "--page", "by_options.html") == 0
    assert (work / "by_recipe.html").read_bytes() == (work / "by_options.html").read_bytes()
    assert not (work / "runs").exists()


def test_options_reach_what_they_say(work, directory, capsys):
    assert inspect(directory, *ROOM, "--samples", "20", "--all", "--pictures", "0", "--page", "all.htm") == 0
    figures = json.loads((work / "all.figures.json").read_text())
    assert figures["samples"] | {"skipped": 4, "draws": 20, "looked_at": 70} == figures["samples"]
    assert (
        inspect(directory, *ROOM, "--samples", "20", "--all", "--decode", "--pictures", "0", "--page", "all.htm") == 0
    )
    assert json.loads((work / "all.figures.json").read_text())["samples"]["skipped"] == 5
    assert "the other samples" in capsys.readouterr().err


def test_the_options_of_train_with_or_without_data(work):
    assert as_recipe(
        ["a.json", "b.json", "--model", "m", "--max-tiles", "4", "--faults.most=0.1", "--samples", "9"]
    ) == [
        '--data.meta=["a.json", "b.json"]',
        "--model.checkpoint",
        "m",
        "--data.max-tiles",
        "4",
        "--data.faults.most=0.1",
        "--samples",
        "9",
    ]
    assert as_recipe(["--model=m", "--data.tokens", "8"]) == ["--model.checkpoint=m", "--data.tokens", "8"]
    (work / "model.yaml").write_text("checkpoint: m\n")
    assert as_recipe(["--model", "model.yaml", "--annotation", "a.jsonl"])[:2] == ["--model", "model.yaml"]


@pytest.mark.parametrize(
    ("argv", "code", "told"),
    [
        (["--tokens", "600", "--samples", "0"], 2, "samples is 0; it must be at least 1"),
        (["--page", "out/a.html"], 2, "page is 'out/a.html', but there is no directory 'out'"),
        (["--page", "meta.json"], 2, "page is 'meta.json'; it must be a file name that ends in .html"),
        (["--tokns", "600"], 2, "tokns is not a setting"),
        (["--tokens", "many"], 2, "data.tokens is 'many'; it must be an integer"),
        (["--tokens", "1000000"], 1, "data.tokens is 1000000; the decoder takes 32768 positions at most"),
        (["--meta", '["none.json"]'], 1, "none.json: No such file or directory"),
    ],
)
def test_mistakes(work, directory, capsys, argv, code, told):
    assert inspect(directory, *argv) == code
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("ivl3: error: ")
    assert told in error
    assert not list(work.glob("*.html"))


def test_what_is_missing_is_told(work, directory, capsys):
    for argv, told in (
        (["meta.json"], "--model is missing: a checkpoint directory"),
        (["meta.json", "--model", "nowhere"], "there is no directory nowhere"),
        (["--model", str(directory)], "give either meta (files) or annotation"),
    ):
        assert main(["data", "inspect", *argv]) in (1, 2)
        assert told in capsys.readouterr().err


def test_one_file_without_a_meta(work, directory, capsys):
    argv = ["data", "inspect", "--annotation", "images.jsonl", "--model", str(directory), *ROOM, "--pictures", "0"]
    assert main(argv) == 0
    assert capsys.readouterr().out.startswith("images.jsonl: 24 samples, 24 looked at, 2 bad\n")
