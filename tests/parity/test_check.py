"""Tiny models of both styles, tied and untied: everything `ivl3 parity` compares, in both precisions."""

from itertools import product

import jax
import numpy as np
import pytest

from ivl3_jax.cli.main import main
from ivl3_jax.conversion import parity
from ivl3_jax.conversion.checkpoint import load
from ivl3_jax.hf_config import read_config
from tests.parity.reference import tiny
from tests.tolerances import FLOAT64_STOCK

parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)

DAILY = [("300m", False, "float64"), ("6b", True, "float32")]
EVERY = [
    pytest.param(*case, marks=() if case in DAILY else pytest.mark.long)
    for case in product(("300m", "6b"), (False, True), ("float32", "float64"))
]


@pytest.mark.slow
@pytest.mark.parametrize(("style", "tied", "dtype"), EVERY)
def test_every_tensor_and_gradient(style, tied, dtype):
    with jax.enable_x64(dtype == "float64"):
        report = parity.check(tiny(style, tied), dtype=dtype, with_gradients=True)
    assert report.ok, report.verdict
    config = read_config(tiny(style, tied))
    assert config.decoder.tie_embeddings == tied
    compared = {(d.kind, d.name) for d in report.differences}
    parameters = {name for kind, name in compared if kind == "gradient"} - {"loss"}
    assert len(parameters) == len(jax.tree.leaves(load(tiny(style, tied)).params))
    assert {name for kind, name in compared if kind == "in place"} == {*parity_reference.ORDER, "logits"}
    layers = [d for d in report.differences if d.kind == "alone" and d.name == "vision/layers/mlp"]
    assert [d.layer for d in layers] == [0, 1, 2]


@pytest.mark.parametrize("tokens", [pytest.param(100, marks=pytest.mark.long), 600])
def test_internlm_within_and_beyond_its_trained_length(tokens):
    directory = tiny("300m", decoder="llama")
    decoder = read_config(directory).decoder
    assert (decoder.family, decoder.max_positions, decoder.longest_row) == ("internlm2", 200, 1200)
    report = parity.check(directory, with_gradients=True, tokens=tokens, tiles=2)
    assert report.ok, report.verdict


@pytest.mark.parametrize("style", ["300m", "6b"])
def test_float64_beside_the_reference_as_it_is(style, torch, transformers):
    """transformers computes norms, softmax and rope in float32 whatever the model's dtype."""
    directory = tiny(style)
    config = read_config(directory)
    batch = parity.example_batch(config)
    assert batch.tokens.shape[1] - 3 * config.tile_tokens >= 500
    stock = transformers.InternVLForConditionalGeneration.from_pretrained(
        directory, dtype=torch.float64, attn_implementation="eager"
    )
    with torch.no_grad():
        inputs = parity_reference.inputs_from_batch(batch, config, "float64")
        theirs = stock.eval()(**inputs, use_cache=False).logits.numpy()
    with jax.enable_x64(True):
        ours = np.asarray(load(directory, "float64")(batch))
    assert ours.dtype == theirs.dtype == np.float64
    relative = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    assert 1e-10 < relative < FLOAT64_STOCK  # the lower bound: the stock model does round inside


def test_the_command_says_equal(capsys, tmp_path):
    assert main(["parity", str(tiny("6b")), "--tokens", "40", "--tiles", "1", "--output", str(tmp_path / "out")]) == 0
    assert "equal within tolerance" in capsys.readouterr().out
    assert {file.name for file in (tmp_path / "out").iterdir()} == {"parity.md", "parity.json", "parity.png"}


@pytest.mark.parametrize(
    ("path", "layer", "first"),
    [("vision/layers/mlp/down/kernel", 1, "vision/layers/mlp[1]"), ("decoder/norm/scale", None, "decoder/norm")],
)
def test_the_command_names_what_differs(path, layer, first, monkeypatch, capsys):
    def altered(*given):
        model = load(*given)
        *parents, leaf = path.split("/")
        tree = model.params
        for name in parents:
            tree = tree[name]
        tree[leaf] = tree[leaf].at[(0,) if layer is None else (layer, 0, 0)].add(0.5)
        return model

    monkeypatch.setattr(parity, "load", altered)
    assert main(["parity", str(tiny("6b")), "--tokens", "40", "--tiles", "1"]) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "NOT equal" in shown and f"the first is {first} (alone)" in shown
