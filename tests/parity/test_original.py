"""Original directories beside transformers, filled through the second map; and that the first map's faults show."""

import ast
import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from ivl3_jax.cli.main import main
from ivl3_jax.conversion import names, parity
from ivl3_jax.conversion.convert import convert
from ivl3_jax.hf_config import read_config
from tests.conversion.checkpoints import random_tensors, small_config, write_checkpoint
from tests.parity.reference import tiny

parity_original = pytest.importorskip("ivl3_jax.conversion.parity_original", exc_type=ImportError)

# Style, tied, decoder, dtype of the file.
CASES = [
    ("300m", False, "qwen2", "float32"),
    pytest.param("300m", True, "llama", "float32", marks=pytest.mark.long),
    ("6b", True, "qwen2", "bfloat16"),
    pytest.param("6b", False, "llama", "float32", marks=pytest.mark.long),
]


def original(directory, **which):
    dtype = which.pop("dtype", None)
    convert(tiny(**which), directory, layout="original", max_shard_bytes=400_000, dtype=dtype)
    return directory


@pytest.mark.slow
@pytest.mark.parametrize(("style", "tied", "decoder", "dtype"), CASES)
def test_every_tensor_and_gradient(style, tied, decoder, dtype, tmp_path):
    directory = original(tmp_path / "original", style=style, tied=tied, decoder=decoder, dtype=dtype)
    assert (directory / "model.safetensors.index.json").is_file()
    assert read_config(directory).decoder.family == ("internlm2" if decoder == "llama" else "qwen2")
    report = parity.check(directory, with_gradients=True, tokens=100, tiles=2)
    assert report.ok, report.verdict
    assert "weights through the second map (conversion/parity_original.py)" in report.facts["reference"]


# InternLM's variants: qkv bias, out bias, MLP bias, and the biases that only Llama's class has (per layer).
BIASES = [
    pytest.param("internlm2", (False, False, False), 0, marks=pytest.mark.long),
    pytest.param("internlm2", (True, True, False), 0, marks=pytest.mark.long),
    pytest.param("internlm3", (True, False, False), 1, marks=pytest.mark.long),
    pytest.param("internlm3", (False, True, True), 3, marks=pytest.mark.long),
    ("internlm3", (True, True, True), 0),
]


@pytest.mark.slow
@pytest.mark.parametrize(("family", "biases", "zeros"), BIASES)
def test_biases_of_internlm(family, biases, zeros, tmp_path):
    config = small_config(family=family)
    qkv, out, mlp = biases
    decoder = dataclasses.replace(config.decoder, qkv_bias=qkv, out_bias=out, mlp_bias=mlp)
    config = dataclasses.replace(config, decoder=decoder)
    tensors = {name: 0.2 * x for name, x in random_tensors(config, layout="original").items()}
    write_checkpoint(tmp_path, config, tensors, "original")
    report = parity.check(tmp_path, with_gradients=True, tokens=40, tiles=1)
    assert report.ok, report.verdict
    found = report.facts["reference"]
    assert (f"{zeros * decoder.layers} biases that the checkpoint has not are zeros" in found) == bool(zeros)


def swapped(path, other):
    """The table with the original tensors of two parameters exchanged."""
    rows = {row.path: row for row in names.ROWS}
    change = {path: rows[other], other: rows[path]}
    return tuple(
        dataclasses.replace(row, original=change[row.path].original, internlm2=change[row.path].internlm2)
        if row.path in change
        else row
        for row in names.ROWS
    )


@pytest.mark.parametrize(
    ("path", "other", "first"),
    [
        ("vision/layers/attention/q/kernel", "vision/layers/attention/k/kernel", "vision/layers/attention[0]"),
        ("decoder/layers/attention/k/kernel", "decoder/layers/attention/v/kernel", "decoder/layers/attention[0]"),
        ("decoder/layers/mlp/gate/kernel", "decoder/layers/mlp/up/kernel", "decoder/layers/mlp[0]"),
    ],
)
def test_a_planted_fault_in_the_first_map_is_found(path, other, first, tmp_path, monkeypatch, capsys):
    directory = original(tmp_path / "original", decoder="llama")
    monkeypatch.setattr(names, "ROWS", swapped(path, other))
    assert main(["parity", str(directory), "--tokens", "40", "--tiles", "1"]) == 1
    assert f"the first is {first} (alone)" in " ".join(capsys.readouterr().out.split())


def test_a_projection_equal_to_the_embedding_may_be_written_out(tmp_path):
    directory = tmp_path / "original"
    convert(tiny(tied=True), directory, layout="original")
    file = directory / "model.safetensors"
    tensors = load_file(file)
    for addition, tied in ((0.0, True), (0.5, False)):
        head = tensors["language_model.model.embed_tokens.weight"] + np.float32(addition)
        save_file(tensors | {"language_model.lm_head.weight": head}, file, metadata={"format": "pt"})
        report = parity.check(directory, with_gradients=True, tokens=40, tiles=1)
        assert report.ok, report.verdict
        paths = {d.name for d in report.differences if d.kind == "gradient"}
        assert ("decoder/head/kernel" not in paths) == tied


def test_the_image_token_is_found_in_any_of_the_files(tmp_path):
    from ivl3_jax.conversion.parity_original_config import read_config as second_reading

    directory = original(tmp_path / "original")
    config, tensors = read_config(directory), ["language_model.model.norm.weight"]
    assert second_reading(directory, tensors).image_token_id == config.image_token_id
    (directory / "tokenizer.json").unlink()
    assert second_reading(directory, tensors).image_token_id == config.image_token_id  # of config.json
    (directory / "tokenizer_config.json").write_text(
        json.dumps({"added_tokens_decoder": {"17": {"content": "<IMG_CONTEXT>"}}})
    )
    assert second_reading(directory, tensors).image_token_id == read_config(directory).image_token_id == 17


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_adapters_are_to_be_merged_first(layout, tmp_path, capsys):
    config = small_config()
    tensors = random_tensors(config, layout=layout)
    name = next(name for name in tensors if name.endswith("layers.0.self_attn.q_proj.weight")).removesuffix(".weight")
    weight = tensors.pop(f"{name}.weight")
    unmerged = {
        f"{name}.base_layer.weight": weight,
        f"{name}.lora_A.default.weight": weight[:4],
        f"{name}.lora_B.default.weight": weight[:, :4].copy(),
    }
    write_checkpoint(tmp_path / "lora", config, tensors | unmerged, layout)
    assert main(["parity", str(tmp_path / "lora")]) == 1
    assert f"merge them first: ivl3 convert SOURCE DESTINATION --layout {layout}" in capsys.readouterr().err


def test_a_checkpoint_that_does_not_fit_is_told_of_before_the_reference_runs(tmp_path, capsys):
    directory = tmp_path / "original"
    convert(tiny(), directory, layout="original")
    file = directory / "model.safetensors"
    tensors = load_file(file)
    del tensors["mlp1.0.bias"]
    save_file(tensors, file, metadata={"format": "pt"})
    assert main(["parity", str(directory)]) == 1
    assert "Missing tensors, 1: mlp1.0.bias" in capsys.readouterr().err


def test_the_second_map_shares_nothing_with_the_first():
    for name in ("parity_original.py", "parity_original_config.py"):
        tree = ast.parse((Path(parity_original.__file__).parent / name).read_text(encoding="utf-8"))
        modules = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert {m for m in modules if m.startswith("ivl3_jax")} <= {"ivl3_jax.conversion.parity_original_config"}
