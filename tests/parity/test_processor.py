"""`ivl3 parity DIR --processor`: equal to transformers' processor, and a fault in ours or in the files is named."""

import json
import shutil

import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.conversion.convert import convert
from ivl3_jax.data import images, template
from tests.parity.reference import tiny

parity_processor = pytest.importorskip("ivl3_jax.conversion.parity_processor", exc_type=ImportError)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.fixture
def directory(tmp_path):
    """A checkpoint without weights, which are not needed."""
    copy = shutil.copytree(tiny(), tmp_path / "checkpoint")
    (copy / "model.safetensors").unlink()
    return copy


def change(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_equal(directory, capsys):
    assert main(["parity", str(directory), "--processor", "--output", str(directory / "out")]) == 0
    shown = said(capsys)
    assert "image part for Pillow" in shown and "equal within tolerance: 31 comparisons" in shown
    assert {file.name for file in (directory / "out").iterdir()} == {"parity.md", "parity.json"}
    report = parity_processor.check(directory)
    assert {d.kind for d in report.differences} == {"tiles", "pixels", "text", "ids"}
    assert all(d.max_abs == 0 for d in report.differences if d.kind != "pixels")
    assert all(d.relative < 2e-7 for d in report.differences)


def test_the_original_layout(tmp_path, capsys):
    convert(tiny(), tmp_path / "original", layout="original")
    change(tmp_path / "original" / "config.json", max_dynamic_patch=7)
    assert main(["parity", str(tmp_path / "original"), "--processor"]) == 0
    assert "as `ivl3 convert` writes them; the original layout has none" in said(capsys)


def test_files_that_ask_for_other_pixels(directory, capsys):
    """A preprocessor file without a mean means CLIP's to transformers."""
    file = directory / "preprocessor_config.json"
    fields = json.loads(file.read_text())
    del fields["image_mean"]
    file.write_text(json.dumps(fields))
    assert main(["parity", str(directory), "--processor"]) == 1
    assert "the first is bytes, 448x448 RGB (tiles)" in said(capsys)


@pytest.mark.parametrize(
    ("module", "name", "value", "first"),
    [
        (template, "TURN_END", "<|endoftext|>", "0 images (text)"),
        (images, "_grids", lambda least, most: ((1, 1), (1, 2)), "number for 400 image sizes, "),
    ],
)
def test_a_planted_fault_is_found(module, name, value, first, directory, monkeypatch, capsys):
    monkeypatch.setattr(module, name, value)
    assert main(["parity", str(directory), "--processor"]) == 1
    assert f"the first is {first}" in said(capsys)


def test_the_whole_processor_where_torchvision_is_installed(directory, monkeypatch, capsys):
    parts, _ = parity_processor.open_processor(directory, 16)
    parts.image_processor = None
    monkeypatch.setattr(parity_processor, "is_torchvision_available", lambda: True)
    monkeypatch.setattr(parity_processor.AutoProcessor, "from_pretrained", lambda directory: parts)
    assert main(["parity", str(directory), "--processor"]) == 0
    assert "AutoProcessor, its image part replaced by the one for Pillow" in said(capsys)


def test_what_cannot_be_compared_is_one_line(directory, capsys):
    file = directory / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    del fields["extra_special_tokens"]
    file.write_text(json.dumps(fields))
    (directory / "special_tokens_map.json").unlink()
    assert main(["parity", str(directory), "--processor"]) == 1
    assert "extra_special_tokens in tokenizer_config.json" in capsys.readouterr().err
    (directory / "tokenizer.json").unlink()
    assert main(["parity", str(directory), "--processor"]) == 1
    assert "has no tokenizer" in capsys.readouterr().err
    assert main(["parity", str(directory), "--processor", "--gradients"]) == 2
    assert "--gradients has no meaning for comparing processors" in capsys.readouterr().err
    assert main(["parity", str(directory), "--outputs"]) == 2
    assert "--outputs has no meaning for comparing a checkpoint with PyTorch" in capsys.readouterr().err
    assert main(["parity"]) == 2
