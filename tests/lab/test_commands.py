"""`ivl3 lab compile` and `ivl3 lab search` as a user meets them, on steps that are kept already."""

import csv
import json
import math
import os
import re

import pytest

from ivl3_jax.cli import UsageError, lab, lab_compile, lab_search
from ivl3_jax.cli.lab_cases import Question
from ivl3_jax.cli.writable import check_file
from ivl3_jax.lab import search
from ivl3_jax.lab.calibration import HELD_OUT
from ivl3_jax.lab.candidates import ranked
from ivl3_jax.lab.compile import Compiled, Memory, Shortage
from ivl3_jax.lab.store import Store
from ivl3_jax.sharding.plan import ShardingPlan

ASKED = {"model": "1b", "topology": "v5e:4x4", "tokens": 2048, "tiles": 4}
OPTIONS = [f"--{name}={value}" for name, value in ASKED.items()]
GIB = 2**30

# A step of one fusion, as the compiler writes it; vector work takes 0.85 of the cycles.
MODULE = """HloModule jit_step, is_scheduled=true, entry_computation_layout={(bf16[8,8]{1,0})->bf16[8,8]{1,0}}

%fused (p: bf16[8,8]) -> bf16[8,8] {
  %p = bf16[8,8]{1,0} parameter(0)
  ROOT %add = bf16[8,8]{1,0} add(%p, %p)
}

ENTRY %main (x: bf16[8,8]) -> bf16[8,8] {
  %x = bf16[8,8]{1,0} parameter(0)
  ROOT %fusion = bf16[8,8]{1,0} fusion(%x), kind=kLoop, calls=%fused, backend_config={CYCLES}
}
""".replace("{CYCLES}", '{"window_config":{"estimated_cycles":"1500000"}}')
FITS = Compiled(MODULE, Memory(GIB, 2 * GIB, GIB, 4 * GIB, 8 * GIB), None, 1.0, 2.0, (), {})
SHORT = Compiled("", None, Shortage("HBM", 20 * GIB, 16 * GIB, "Ran out of memory"), 1.0, 2.0, (), {})

pytestmark = pytest.mark.usefixtures("libtpu")


def test_a_step_that_fits(tmp_path, capsys):
    Store(tmp_path).keep(Question(plan="fsdp", **ASKED).asked(), FITS)
    files = [f"--json={tmp_path / 'a.json'}", f"--text={tmp_path / 'a.hlo'}"]
    assert lab_compile.run([*OPTIONS, "--plan=fsdp", f"--cache={tmp_path}", *files]) == 0
    said = capsys.readouterr().out
    assert "InternVL3-1B under fsdp (fsdp 16), 1 row a chip, on v5e:4x4, 16 chips" in said
    assert "8.00 of 15.75 GiB, fits" in said and "predicted step: 0.001 s" in said and "no collectives" in said
    assert json.loads((tmp_path / "a.json").read_text())["step_seconds"] == pytest.approx(0.85e-3)
    assert (tmp_path / "a.hlo").read_text() == MODULE


def test_a_step_that_does_not(tmp_path, capsys):
    Store(tmp_path).keep(Question(plan="fsdp", **ASKED).asked(), SHORT)
    assert lab_compile.run([*OPTIONS, "--plan=fsdp", f"--cache={tmp_path}"]) == 1
    assert "DOES NOT FIT, HBM: 20.0 GiB wanted; 15.75 GiB of HBM" in capsys.readouterr().out


def test_constants_of_ones_own(tmp_path, capsys):
    Store(tmp_path).keep(Question(plan="fsdp", **ASKED).asked(), FITS)
    asked = [*OPTIONS, "--plan=fsdp", f"--cache={tmp_path}", f"--calibration={tmp_path / 'mine.yaml'}"]
    (tmp_path / "mine.yaml").write_text("hbm: 2.0")
    with pytest.raises(ValueError, match=r"mine.yaml: Calibration.hbm is 2.0; it must be above 0 and at most 1"):
        lab_compile.run(asked)
    (tmp_path / "mine.yaml").write_text("vectors: 1.7")
    assert lab_compile.run([*asked, f"--json={tmp_path / 'a.json'}"]) == 0
    assert "constants of your own: vectors 1.7 (shipped 0.85)" in capsys.readouterr().out
    found = json.loads((tmp_path / "a.json").read_text())
    assert found["step_seconds"] == pytest.approx(1.7e-3) and found["constants"]["vectors"] == 1.7


@pytest.mark.parametrize("option", ["cache", "json", "text"])
def test_a_place_that_cannot_be_written_is_told_before_compiling(tmp_path, monkeypatch, option):
    monkeypatch.setattr(search, "search", None)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=f"option --{option} is '{tmp_path}/file/x', .*: Not a directory$"):
        lab_compile.run([*OPTIONS, f"--cache={tmp_path}", f"--{option}={tmp_path / 'file/x'}"])
    assert os.listdir(tmp_path) == ["file"]


def test_files_that_can_be_written_are_as_they_were(tmp_path):
    (tmp_path / "old").write_text("words")
    (tmp_path / "link").symlink_to(tmp_path / "old")
    for name in ("old", "link", "new"):
        check_file("json", tmp_path / name)
    assert sorted(os.listdir(tmp_path)) == ["link", "old"] and (tmp_path / "link").read_text() == "words"


@pytest.mark.parametrize("field", ["dtype", "param_dtype"])
def test_dtypes_that_are_none(field):
    with pytest.raises(UsageError, match=f"option --{field} is 'int8'; it must be one of float32, bfloat16"):
        lab_compile.run([*OPTIONS, f"--{field}=int8"])


@pytest.fixture
def kept(tmp_path):
    """All that a search of three plans asks for; only the first step fits."""
    question = lab_search.SearchQuestion(**ASKED, compile=3)
    chosen, _ = ranked(lab_search.cases(question), most=3)
    for number, (case, _) in enumerate(chosen):
        Store(tmp_path).keep(case, SHORT if number else FITS)
    return chosen[0][0]


def test_a_search(kept, tmp_path, capsys):
    asked = [*OPTIONS, "--compile=3", f"--cache={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert lab_search.run(asked) == 0
    said = capsys.readouterr()
    assert "3 are compiled" in said.err and said.err.count("[kept]") == 3 and said.err.count("does not fit") == 2
    assert f"best: {kept.name}" in said.out
    option = f"--rows-per-chip {kept.rows:g}"
    assert f"best.yaml is its plan, for ivl3 lab compile with {option}; " in said.out
    head = (tmp_path / "out/best.yaml").read_text().splitlines()[0]
    assert head.startswith("# ") and head.endswith(f"v5e:4x4, 2048 tokens and 4 tiles a row, with {option}")
    best = [*OPTIONS, f"--plan={tmp_path / 'out/best.yaml'}", option.replace(" ", "="), f"--cache={tmp_path}"]
    assert lab_compile.run(best) == 0  # the same step, kept
    rate = re.search(r"([\d,]+) tokens a second and chip, predicted", said.out)[1]
    assert f"predicted rate: {rate} tokens a second" in capsys.readouterr().out
    assert ShardingPlan.read(tmp_path / "out/best.yaml") == kept.plan
    page = (tmp_path / "out/report.html").read_text()
    assert "No TPU took part" in page and HELD_OUT in page and "constants</dt>" not in page
    assert len(list(csv.DictReader((tmp_path / "out/plans.csv").open()))) == 3


def test_a_search_of_which_nothing_fits(kept, tmp_path, capsys):
    Store(tmp_path).keep(kept, SHORT)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/best.yaml").write_text("of an earlier search")
    asked = [*OPTIONS, "--compile=3", f"--cache={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert lab_search.run(asked) == 1
    assert "no plan fits; the report is" in capsys.readouterr().out
    assert not (tmp_path / "out/best.yaml").exists()


def test_a_search_with_constants_of_ones_own(kept, tmp_path):
    (tmp_path / "mine.yaml").write_text("ici: 0.7")
    asked = [*OPTIONS, "--compile=3", f"--cache={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert lab_search.run([*asked, f"--calibration={tmp_path / 'mine.yaml'}"]) == 0
    page = (tmp_path / "out/report.html").read_text()
    assert "<dt>constants</dt><dd>ici 0.7 (shipped 0.85)</dd>" in page and HELD_OUT not in page


def test_a_report_that_cannot_be_written(kept, tmp_path):
    with pytest.raises(UsageError, match="option --output is '/dev/null', a directory in which no file can be made"):
        lab_search.run([*OPTIONS, f"--cache={tmp_path}", "--output=/dev/null"])


def test_batches_of_a_search():
    question = lab_search.SearchQuestion(**ASKED, plans=("fsdp",), rows=(2.0,))
    assert {each.rows for each in lab_search.cases(question)} == {2.0}


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"most_tokens": 0.0}, "most_tokens is 0.0; it must be above 0"),
        ({"most_tokens": math.nan}, "most_tokens is nan; it must be above 0"),
        ({"most_tokens": 0.01}, "most_tokens is 0.01, in millions; the smallest step to try has 32,768 tokens"),
        ({"rows": (1.0, 0.0)}, "rows is 0.0; it must be above 0"),
        ({"rows": (-1.0,)}, "rows is -1.0; it must be above 0"),
        ({"rows": (0.3,)}, "rows is 0.3 for each chip, which no plan can spread evenly; multiples of 1 can be"),
        ({"plans": ("pipeline",), "topology": "v5e:1x1"}, "no plan of pipeline has a mesh of the chips of v5e:1x1"),
    ],
)
def test_a_search_without_a_case(fields, says):
    with pytest.raises(ValueError, match=says):
        lab_search.cases(lab_search.SearchQuestion(**ASKED | {"plans": ("fsdp",)} | fields))


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(lab, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ivl3 lab compile needs the TPU compiler, though no TPU; install it: pip"):
        lab.run(["compile", "--model", "1b"])


@pytest.mark.parametrize("field", ["compile", "jobs"])
def test_a_search_of_nothing(field):
    with pytest.raises(ValueError, match=f"{field} is 0; it must be at least 1"):
        lab_search.SearchQuestion(**ASKED, **{field: 0})
