"""The tables and the writer against transformers itself."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file

from ivl3_jax.config import PRESETS, InternVLConfig
from ivl3_jax.conversion.names import parameters
from ivl3_jax.conversion.reader import read_params, resolve_tying
from ivl3_jax.conversion.writer import write_params
from ivl3_jax.hf_config import read_config, to_hf
from tests.conversion.checkpoints import BFLOAT16, abstract
from tests.parity.reference import tiny

pytestmark = pytest.mark.usefixtures("transformers")

ALL = [(style, tied) for style in ("300m", "6b") for tied in (False, True)]


@pytest.mark.parametrize("size", PRESETS)
def test_names_and_shapes_of_all_sizes(size, torch, transformers, tmp_path):
    """Names, shapes and the number of parameters, without allocating any."""
    config = InternVLConfig.preset(size)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    with torch.device("meta"):
        model = transformers.InternVLForConditionalGeneration(transformers.AutoConfig.from_pretrained(tmp_path))
    theirs = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    ours = {name: parameter.layout.their_shape for parameter in parameters(config) for name in parameter.tensors}
    assert ours == theirs
    assert sum(int(np.prod(p.shape)) for p in parameters(config)) == model.num_parameters()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("style", "tied"), ALL)
def test_transformers_opens_what_we_write(style, tied, dtype, torch, transformers, tmp_path):
    source = tiny(style, tied, dtype=dtype)
    config = read_config(source)
    assert config.decoder.tie_embeddings == tied
    params = read_params(source, abstract(config, BFLOAT16 if dtype == "bfloat16" else np.float32), config)
    write_params(params, config, tmp_path / "out", max_shard_bytes=400_000, copy_from=source)

    load = transformers.InternVLForConditionalGeneration.from_pretrained
    first = load(source)
    second, report = load(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert second.dtype == getattr(torch, dtype)
    assert (second.lm_head.weight is second.model.language_model.embed_tokens.weight) == tied
    a, b = first.state_dict(), second.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name
    processor = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert processor.convert_tokens_to_ids("<IMG_CONTEXT>") == config.image_token_id


@pytest.mark.parametrize("style", ["300m", "6b"])
def test_a_base_model(style, torch, transformers, tmp_path):
    """Names of InternVLModel, which has no output projection: those of its state, and those that it saves."""
    load = transformers.InternVLForConditionalGeneration.from_pretrained
    whole = load(tiny(style, tied=True))
    whole.model.save_pretrained(tmp_path / "saved")
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "config.json").write_text((tmp_path / "saved" / "config.json").read_text())
    state = {name: tensor.numpy() for name, tensor in whole.model.state_dict().items()}
    assert "language_model.layers.0.mlp.up_proj.weight" in state and "language_model.norm.weight" in state
    save_file(state, tmp_path / "state" / "model.safetensors", metadata={"format": "pt"})
    config = read_config(tiny(style, tied=True))
    expected = read_params(tiny(style, tied=True), abstract(config), config)
    for name in ("saved", "state"):
        _, report = load(tmp_path / name, output_loading_info=True)
        assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        assert read_config(tmp_path / name) == config
        jax.tree.map(np.testing.assert_array_equal, read_params(tmp_path / name, abstract(config), config), expected)


def test_default_tying_of_transformers_is_seen_through(tmp_path):
    """A config.json that says nothing, or wrongly that the model is tied, beside an lm_head of its own."""
    source = tiny("300m", False)
    fields = json.loads((source / "config.json").read_text())
    fields["tie_word_embeddings"] = fields["text_config"]["tie_word_embeddings"] = True
    (tmp_path / "config.json").write_text(json.dumps(fields))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    config = read_config(tmp_path)
    assert config.decoder.tie_embeddings and not resolve_tying(tmp_path, config).decoder.tie_embeddings
