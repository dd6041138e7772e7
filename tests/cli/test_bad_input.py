"""docs/bad-input.md holds: every mistake it lists gives the exit code and message that it says, and none is missing."""

import re
from pathlib import Path

import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.conversion.convert import convert
from tests.cli.bad_data import CASES
from tests.cli.bad_input import prepare
from tests.models.small import checkpoint

PAGE = Path(__file__).parents[2] / "docs/bad-input.md"
ROW = re.compile(r"^\| (?P<name>[^|]+?) \| (?P<command>\w+) \| (?P<code>\d) \| `` (?P<message>.+) `` \|$")
ROWS = {row["name"]: row for row in map(ROW.match, PAGE.read_text().splitlines()) if row}


@pytest.fixture(scope="session")
def good(tmp_path_factory):
    directory = tmp_path_factory.mktemp("good")
    convert(checkpoint(), directory / "model", layout="hf")
    convert(checkpoint(), directory / "sharded", layout="hf", max_shard_bytes=300_000)
    convert(checkpoint(), directory / "original", layout="original")
    assert len(list((directory / "sharded").glob("*.safetensors"))) == 4
    return directory


def test_the_page_lists_every_case():
    assert list(ROWS) == list(CASES)
    assert len(ROWS) >= 25


@pytest.mark.parametrize("name", CASES)
def test_message_and_exit_code(good, tmp_path, capsys, monkeypatch, name):
    prepare(tmp_path, good)
    monkeypatch.chdir(tmp_path)
    argv = CASES[name](tmp_path)
    code = main(argv)
    said = capsys.readouterr()
    error = said.err.strip().splitlines()[-1].replace(f"{tmp_path}/", "")
    row = ROWS[name]
    assert (argv[0], code) == (row["command"], int(row["code"])), error
    kind = "error" if code else "warning"
    expected = re.escape(f"ivl3: {kind}: " + row["message"].replace("\\|", "|")).replace("…", ".*")
    assert re.fullmatch(expected, error), error
    assert "Traceback" not in said.err + said.out
    left = tmp_path / "out"
    assert argv[0] != "convert" or not left.exists() or [file.name for file in left.iterdir()] == ["notes.txt"]
