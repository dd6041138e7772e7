"""`ivl3 parity A B`: what equals, what is rounded, what differs, and where."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ivl3_jax.cli.main import main
from ivl3_jax.conversion.convert import convert
from ivl3_jax.conversion.two_checkpoints import compare_checkpoints
from ivl3_jax.data.tokenizer_training import train_tokenizer, write_tokenizer_files
from tests.conversion.checkpoints import BFLOAT16, random_tensors, small_config, write_checkpoint

SMALL = ["--tokens", "20", "--tiles", "1"]


def checkpoint(directory, dtype=np.float32, layout="hf", change=None, **which):
    config = small_config(**which)
    tensors = random_tensors(config, layout=layout)
    if change:
        change(tensors)
    return write_checkpoint(directory, config, {name: x.astype(dtype) for name, x in tensors.items()}, layout)


def said(capsys):
    return " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize("family", ["qwen2", "internlm2"])
def test_layouts_are_bit_equal(family, tmp_path, capsys):
    source = checkpoint(tmp_path / "hf", family=family)
    convert(source, tmp_path / "original", layout="original", max_shard_bytes=50_000)
    assert main(["parity", str(source), str(tmp_path / "original"), "--output", str(tmp_path / "out")]) == 0
    shown = said(capsys)
    assert "config: the same" in shown and "bit-equal: " in shown and "tokenizer: in neither" in shown
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"parity.md", "parity.json"}  # nothing to draw


def test_a_wider_copy_is_equal_in_value(tmp_path, capsys):
    narrow = checkpoint(tmp_path / "bf16", BFLOAT16)
    convert(narrow, tmp_path / "f32", layout="hf", dtype="float32")
    assert main(["parity", str(narrow), str(tmp_path / "f32"), "--outputs", *SMALL]) == 0
    shown = said(capsys)
    assert "bfloat16 and float32, compared in the wider" in shown
    assert "equal in value, not in bits: " in shown and "outputs logits 0 0 1e-04 ok" in shown


def test_rounding_is_told_from_training(tmp_path, capsys):
    wide, narrow = checkpoint(tmp_path / "f32"), checkpoint(tmp_path / "bf16", BFLOAT16)
    assert main(["parity", str(wide), str(narrow)]) == 1
    assert "NOT equal, weights by rounding to the narrower dtype alone: " in said(capsys)
    assert main(["parity", str(wide), str(narrow), "--tolerance", "4e-3"]) == 0
    assert "equal within tolerance: " in said(capsys)

    def train(tensors):
        tensors["mlp1.0.bias"] += 1

    trained = checkpoint(tmp_path / "trained", BFLOAT16, "original", train)
    again = checkpoint(tmp_path / "original", layout="original")
    assert main(["parity", str(again), str(trained)]) == 1
    assert "NOT equal: " in said(capsys)


def test_layers_that_differ_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    wide, narrow = checkpoint(tmp_path / "f32"), checkpoint(tmp_path / "bf16", BFLOAT16)
    assert main(["parity", str(wide), str(narrow), "--output", str(tmp_path / "out")]) == 1
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"parity.md", "parity.json", "parity.png"}


def test_first_and_worst_are_named(tmp_path, capsys):
    def train(tensors):
        tensors["model.vision_tower.encoder.layer.1.mlp.fc1.weight"][0] *= -1
        tensors["model.language_model.norm.weight"] *= 2

    one, other = checkpoint(tmp_path / "before"), checkpoint(tmp_path / "after", change=train)
    assert main(["parity", str(one), str(other)]) == 1
    shown = said(capsys)
    assert "before and after compared" in shown and "2 different" in shown
    assert "NOT equal: 2 of" in shown and "first is vision/layers/mlp/up/kernel[1] (weights)" in shown
    assert "the worst decoder/norm/scale (weights): relative 5.00e-01, allowed 0" in shown
    report = compare_checkpoints(one, other, outputs=True, tokens=20, tiles=1)
    outputs = [d for d in report.differences if d.kind == "outputs"]
    assert next(d.place for d in outputs if not d.ok) == "vision/layers/mlp[1]"
    assert [d.name for d in outputs][-1] == "logits" and not outputs[-1].ok


def test_zeros_of_either_sign_are_equal_in_value(tmp_path):
    def zero(sign):
        return lambda tensors: tensors["mlp1.0.bias"].fill(sign * 0.0)

    one, other = (checkpoint(tmp_path / str(s), layout="original", change=zero(s)) for s in (1.0, -1.0))
    report = compare_checkpoints(one, other)
    assert report.ok and report.verdict.startswith("equal in value, not in bits")


def test_nan_is_not_equal_to_a_number(tmp_path):
    def spoil(tensors):
        tensors["mlp1.0.bias"][3] = np.nan

    one, other = (
        checkpoint(tmp_path / "a", layout="original"),
        checkpoint(tmp_path / "b", np.float32, "original", spoil),
    )
    report = compare_checkpoints(one, other)
    assert not report.ok and "the first is projector/norm/bias (weights): relative nan" in report.verdict
    assert "bit-equal" in compare_checkpoints(other, other).verdict


def test_other_architectures_are_a_statement(tmp_path, capsys):
    one, other = checkpoint(tmp_path / "300m"), checkpoint(tmp_path / "6b", style="6b", tied=True)
    assert main(["parity", str(one), str(other), "--outputs", *SMALL]) == 1
    shown = said(capsys)
    assert "architecture: different, so that no weights were compared: vision/cls [32] / [40]" in shown
    assert "vision.width 32 / 40" in shown and "NOT equal, different architectures: " in shown


def test_settings_without_effect_do_not_count(tmp_path, capsys):
    one, other = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    fields = json.loads((other / "config.json").read_text())
    fields["vision_config"]["drop_path_rate"] = 0.1
    (other / "config.json").write_text(json.dumps(fields))
    assert main(["parity", str(one), str(other)]) == 0
    assert "different in vision.drop_path 0.0 / 0.1; no forward pass depends on that" in said(capsys)
    fields["text_config"]["rms_norm_eps"] = 1e-5
    (other / "config.json").write_text(json.dumps(fields))
    assert main(["parity", str(one), str(other)]) == 1
    assert "NOT equal, though all weights are: 1 of" in (shown := said(capsys))
    assert "the first is decoder.norm_eps (config)" in shown


def test_tokenizers(tmp_path, capsys):
    one, other = checkpoint(tmp_path / "a"), checkpoint(tmp_path / "b")
    write_tokenizer_files(train_tokenizer(["What is written here?"] * 4, 280), one)
    assert main(["parity", str(one), str(other)]) == 0
    assert f"tokenizer: only in {one}, not compared" in said(capsys).replace("/ ", "/")
    write_tokenizer_files(train_tokenizer(["The number is 1729."] * 4, 280), other)
    assert main(["parity", str(one), str(other)]) == 1
    report = compare_checkpoints(one, other)
    assert {d.name for d in report.differences if not d.ok} >= {"ids of English", "special tokens"}
    write_tokenizer_files(train_tokenizer(["What is written here?"] * 4, 280), other)
    assert main(["parity", str(one), str(other)]) == 0
    (other / "preprocessor_config.json").write_text(json.dumps({"max_patches": 6}))
    assert main(["parity", str(one), str(other)]) == 1
    assert "the first is tiles of an image (tokenizer)" in said(capsys)


def test_what_cannot_be_read_is_one_line(tmp_path, capsys):
    good = checkpoint(tmp_path / "good")
    for arguments, words, code in (
        ([tmp_path / "none"], "there is no directory", 1),
        ([good, "--gradients"], "--gradients has no meaning for comparing two checkpoints", 2),
        ([good, "--processor"], "leave the second directory out", 2),
        ([good, "--tolerance", "-1"], "--tolerance is -1.0; it must be at least 0", 2),
        ([good, "--outputs", "--tokens", "40000"], "the decoder knows 32768", 1),
    ):
        assert main(["parity", str(good), *map(str, arguments)]) == code
        assert words in capsys.readouterr().err
    file = tmp_path / "good" / "model.safetensors"
    tensors = load_file(file)
    tensors.pop("lm_head.weight")
    (tmp_path / "short").mkdir()
    (tmp_path / "short" / "config.json").write_text((good / "config.json").read_text())
    save_file(tensors, tmp_path / "short" / "model.safetensors")
    assert main(["parity", str(good), str(tmp_path / "short")]) == 1
    assert "short does not fit its config.json. Missing tensors, 1: lm_head.weight" in capsys.readouterr().err
