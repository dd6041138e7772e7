"""benchmarks/parity_sizes.py on sizes small enough for a test."""

import dataclasses

import pytest

from ivl3_jax.config import PRESETS
from tests.conversion.checkpoints import small_config

pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)

from benchmarks import parity_sizes


@pytest.mark.slow
@pytest.mark.parametrize(("style", "family"), [("300m", "internlm2"), ("6b", "qwen2")])
def test_a_row(style, family, monkeypatch, capsys):
    monkeypatch.setattr(parity_sizes, "PRESETS", {"small": small_config(style, family=family)})
    assert parity_sizes.main(["--size", "small", "--tokens", "40", "--tiles", "1"]) == 0
    *_, head, _, row = capsys.readouterr().out.strip().splitlines()
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert len(cells) == len(head.strip("|").split("|"))
    assert cells[:2] == ["small", "40 + 1"] and cells[7].startswith("0 of ")
    assert all(float(cell) < 1e-4 for cell in cells[2:7])


@pytest.mark.parametrize("size", PRESETS)
def test_cut_keeps_the_widths(size):
    config, whole = parity_sizes.cut(PRESETS[size]), PRESETS[size]
    assert (config.vision.layers, config.decoder.layers, config.decoder.vocab) == (1, 1, parity_sizes.VOCAB)
    assert dataclasses.replace(config.vision, layers=whole.vision.layers) == whole.vision
    decoder = dataclasses.replace(config.decoder, layers=whole.decoder.layers, vocab=whole.decoder.vocab)
    assert decoder == whole.decoder
