"""`ivl3 bench kernels` as a user meets it."""

import json

import pytest

from ivl3_jax.bench import peers, problems, schedule, timing
from ivl3_jax.cli import bench_kernels
from ivl3_jax.cli.main import main


def test_help(capsys):
    assert main(["bench", "--help"]) == 0
    assert "kernels" in capsys.readouterr().out
    assert main(["bench"]) == 2


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--only", "vit-7b"], "option --only 'vit-7b' is unknown; there are vit-6b, vit-300m, packed"),
        (["--chips", "v4"], "option --chips 'v4' is unknown; there are v5e, v5p, v6e"),
        (
            ["--against", "splosh"],
            "option --against 'splosh' is unknown; there are splash, tokamax, cudnn",
        ),
        (["--against", "xla", "--chips", "v6e"], "by the schedule only splash attention can be read"),
        (["--models"], "--models has a meaning only with --chips, and with neither --only nor --against"),
        (["--search"], "--search has a meaning only with --chips and --against=splash"),
    ],
)
def test_mistakes(options, told, capsys):
    assert main(["bench", "kernels", *options]) == 2
    assert told in capsys.readouterr().err


def test_names_are_those_of_the_package():
    assert tuple(problems.PROBLEMS) == bench_kernels.PROBLEMS
    assert set(peers.PEERS) == {"ours", *bench_kernels.PEERS}
    assert tuple(schedule.CHIPS) == bench_kernels.CHIPS


def test_a_table(monkeypatch, capsys, tmp_path):
    tiny = problems.Attention("vit-300m", 1, 65, 2, 2, 64)
    monkeypatch.setitem(problems.PROBLEMS, "vit-300m", tiny)
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "PRODUCT", {"cpu": 64})
    command = ["bench", "kernels", "--only", "vit-300m", "--against", "xla,splash", "--output", str(tmp_path / "out")]
    assert main(command) == 0
    printed = capsys.readouterr().out
    assert "vit-300m: attention 1 x 65, 2 heads of 64" in printed and "splash attention is for TPUs" in printed
    rows = json.loads((tmp_path / "out/kernels.json").read_text())
    assert [(row["part"], row["implementation"]) for row in rows] == [
        (part, name) for part in ("forward", "both") for name in ("ours (chunked)", "xla", "splash")
    ]
    assert len((tmp_path / "out/kernels.md").read_text().splitlines()) == 6
