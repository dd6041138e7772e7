"""Cases that are compiled in processes of their own, which fail, die and are interrupted."""

import dataclasses
import os
import signal
import subprocess
import sys
import time

import pytest

from ivl3_jax.cli.lab_cases import Question
from ivl3_jax.lab import search as searching
from ivl3_jax.lab.compile import Compiled, Shortage
from ivl3_jax.lab.search import predicted, search
from ivl3_jax.lab.store import Store

pytestmark = pytest.mark.slow

SHORT = Compiled("", None, Shortage("HBM", 2**37, 2**36, "too much"), 1.0, 2.0, (), {})


@pytest.fixture
def case(libtpu):
    return Question("1b", "v5e:2x2", plan="fsdp", tokens=1024).asked()


def compiled(case, store):
    """Instead of the compiler, in the process that would run it: what comes is asked for by the number of tokens."""
    match case.batch.tokens:
        case 1:
            raise KeyError("a fault")
        case 2:
            raise OSError(28, "No space left on device", "kept/1.json")
        case 3:
            os._exit(1)
        case 4:
            raise ValueError("a plan\n that does not fit")
        case 5:
            return  # nothing is kept
    store.keep(case, SHORT)


def test_one_that_fails_leaves_the_others(case, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "_compile", compiled)
    cases = [dataclasses.replace(case, batch=dataclasses.replace(case.batch, tokens=n)) for n in range(1, 7)]
    tried = {each.case.batch.tokens: each for each in search(cases, Store(tmp_path), jobs=2)}
    assert [tried[n].failure for n in range(1, 7)] == [
        "KeyError: 'a fault'",
        "OSError: [Errno 28] No space left on device: 'kept/1.json'",
        "the compiler ended its process",
        "a plan that does not fit",
        f"what was compiled is not in {tmp_path} any more",
        None,
    ]
    assert not tried[6].prediction.fits and tried[6].prediction.timeline is None


def test_one_alone(case, tmp_path, monkeypatch):
    monkeypatch.setattr(searching, "_compile", compiled)
    wrong = dataclasses.replace(case, batch=dataclasses.replace(case.batch, tokens=1))
    with pytest.raises(ValueError, match="^KeyError: 'a fault'$"):
        predicted(wrong, Store(tmp_path))
    assert predicted(case, Store(tmp_path)).compiled == SHORT


def test_a_text_that_cannot_be_read_is_that_plans_failure(case, tmp_path):
    store = Store(tmp_path)
    other = dataclasses.replace(case, dtype="float32")
    store.keep(case, SHORT)
    store.keep(other, dataclasses.replace(SHORT, text="no module", shortage=None, memory=_memory()))
    found = search([other, case], store)
    assert [each.failure is None for each in found].count(False) == 1


def _memory():
    from ivl3_jax.lab.compile import Memory

    return Memory(1, 1, 1, 1, 4)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interruption_ends_it_at_once(libtpu, tmp_path, number):
    """Before the compiler is done, whose step would else be kept."""
    options = ["--model=1b", "--topology=v5e:2x2", "--tokens=1024", f"--cache={tmp_path / 'kept'}"]
    command = [sys.executable, "-m", "ivl3_jax.cli.main", "lab", "compile", *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0)
    while not (tmp_path / "kept").exists():
        assert process.poll() is None
        time.sleep(0.1)
    time.sleep(5)  # the other process begins
    if number == signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does
    else:
        process.send_signal(number)
    said, complained = process.communicate()  # returns when no process holds their ends any more
    assert process.returncode == (130 if number == signal.SIGINT else -number)
    assert not list((tmp_path / "kept").iterdir()) and said == ""
    assert number != signal.SIGINT or complained == ""
