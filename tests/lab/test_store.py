"""What is kept of a compiled step, and what is taken for kept."""

import dataclasses
import gzip
import json

import pytest

from ivl3_jax.cli.lab_cases import Question
from ivl3_jax.lab import store as stores
from ivl3_jax.lab.compile import Compiled, Memory, Shortage
from ivl3_jax.lab.store import Store

COMPILED = Compiled("HloModule x\n", Memory(1, 2, 3, 4, 10), None, 1.5, 2.5, ("a warning",), {"flag": True})
BEYOND = dataclasses.replace(COMPILED, shortage=Shortage("HBM", 20, 16, "too much"))
SHORT = dataclasses.replace(BEYOND, text="", memory=None)


@pytest.fixture
def case(libtpu):
    return Question("1b", "v5e:4x4", plan="fsdp_tensor", mesh={"tensor": 2}, tokens=2048, tiles=4).asked()


@pytest.mark.parametrize("compiled", [COMPILED, BEYOND, SHORT])
def test_what_is_compiled_is_kept(compiled, case, tmp_path):
    store = Store(tmp_path / "kept")
    assert store.find(case) is None
    assert store.keep(case, compiled) == store.find(case) == compiled


def test_another_case_is_not_taken_for_it(case, tmp_path, monkeypatch):
    store = Store(tmp_path)
    store.keep(case, COMPILED)
    renamed = dataclasses.replace(case, plan=dataclasses.replace(case.plan, name="other"), documents=4)
    assert store.find(renamed) == COMPILED  # neither a plan's name nor the documents are compiled
    assert store.find(dataclasses.replace(case, plan=case.plan.with_mesh({"fsdp": 16, "tensor": 1}))) is None
    assert store.find(dataclasses.replace(case, dtype="float32")) is None
    monkeypatch.setattr(stores, "_source", lambda: "another commit")
    assert store.find(case) is None


@pytest.mark.parametrize("name", [*stores._FLAGS, *stores._EFFORTS])
def test_options_from_the_environment_make_another_step(case, tmp_path, monkeypatch, name):
    store = Store(tmp_path)
    store.keep(case, COMPILED)
    monkeypatch.setenv(name, "--xla_tpu_enable_latency_hiding_scheduler=false")
    assert store.find(case) is None
    monkeypatch.undo()
    assert store.find(case) == COMPILED


def flipped(content: bytes) -> bytes:
    return content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]


@pytest.mark.parametrize("compiled", [COMPILED, BEYOND])
@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("*.json", None),
        ("*.json", lambda _: b""),
        ("*.json", lambda _: b"{}"),
        ("*.json", lambda _: b"[]"),
        ("*.json", lambda _: b'{"compiled": {"memory": {"total": 1}}}'),
        ("*.json", lambda _: b"[" * 100_000),
        ("*.json", lambda content: content[:40]),
        ("*.json", lambda _: b"\xff"),
        ("*.gz", None),
        ("*.gz", lambda _: b""),
        ("*.gz", lambda _: b"garbage"),
        ("*.gz", lambda content: content[:-4]),
        ("*.gz", flipped),
        ("*.gz", lambda _: gzip.compress(b"")),
        ("*.gz", lambda _: gzip.compress(b"\xff")),
    ],
)
def test_what_is_damaged_is_made_again(case, tmp_path, compiled, name, spoil):
    store = Store(tmp_path)
    store.keep(case, compiled)
    (file,) = tmp_path.glob(name)
    if spoil is None:
        file.unlink()
    else:
        file.write_bytes(spoil(file.read_bytes()))
    assert store.find(case) is None
    store.keep(case, compiled)
    assert store.find(case) == compiled and len(list(tmp_path.iterdir())) == 2


def test_a_step_without_a_text_needs_none(case, tmp_path):
    store = Store(tmp_path)
    store.keep(case, SHORT)
    (file,) = tmp_path.iterdir()
    assert json.loads(file.read_text())["compiled"]["shortage"]["message"] == "too much"
    assert store.find(case) == SHORT
