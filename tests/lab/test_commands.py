"""`ivl3 lab compile` and `ivl3 lab search` as a user meets them, on steps that are kept already."""

import csv
import dataclasses
import json

import pytest

from ivl3_jax.cli import lab, lab_compile, lab_search
from ivl3_jax.cli.lab_cases import Question
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
    (tmp_path / "mine.yaml").write_text("vectors: 2.0")
    with pytest.raises(ValueError, match=r"mine.yaml: Calibration.vectors is 2.0; it must be above 0 and at most 1"):
        lab_compile.run([*OPTIONS, "--plan=fsdp", f"--cache={tmp_path}", f"--calibration={tmp_path / 'mine.yaml'}"])


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
    assert ShardingPlan.read(tmp_path / "out/best.yaml") == kept.plan
    page = (tmp_path / "out/report.html").read_text()
    assert "No TPU took part" in page and HELD_OUT in page
    assert len(list(csv.DictReader((tmp_path / "out/plans.csv").open()))) == 3


def test_a_search_of_which_nothing_fits(kept, tmp_path, capsys):
    Store(tmp_path).keep(kept, SHORT)
    asked = [*OPTIONS, "--compile=3", f"--cache={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert lab_search.run(asked) == 1
    assert "no plan fits; the report is" in capsys.readouterr().out
    assert not (tmp_path / "out/best.yaml").exists()


def test_batches_of_a_search():
    question = lab_search.SearchQuestion(**ASKED, plans=("fsdp",), rows=(2.0,))
    assert {each.rows for each in lab_search.cases(question)} == {2.0}
    few = dataclasses.replace(question, most_tokens=0.05)
    assert lab_search.cases(few) == []


def test_without_the_compiler(monkeypatch):
    monkeypatch.setattr(lab, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"ivl3 lab compile needs the TPU compiler, though no TPU; install it: pip"):
        lab.run(["compile", "--model", "1b"])


@pytest.mark.parametrize("field", ["compile", "jobs"])
def test_a_search_of_nothing(field):
    with pytest.raises(ValueError, match=f"{field} is 0; it must be at least 1"):
        lab_search.SearchQuestion(**ASKED, **{field: 0})


def test_a_search_without_a_case(tmp_path, capsys):
    asked = [*OPTIONS, "--most-tokens=0.000001", f"--cache={tmp_path}", f"--output={tmp_path / 'out'}"]
    assert lab_search.run(asked) == 1
    assert "no plan fits; the report is" in capsys.readouterr().out
