"""The original layout: what it holds, said a second time in plain numpy, and round trips through both layouts."""

import json

import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file

import ivl3_jax
from ivl3_jax.cli.main import main
from ivl3_jax.conversion.convert import convert
from ivl3_jax.conversion.reader import read_params, resolve_tying
from ivl3_jax.conversion.writer import write_params
from ivl3_jax.hf_config import read_config
from ivl3_jax.original_config import from_original, to_original
from tests.conversion.checkpoints import BFLOAT16, abstract, random_tensors, small_config, write_checkpoint
from tests.conversion.test_round_trip import assert_same

ALL = [
    (style, family, tied)
    for style in ("300m", "6b")
    for family in ("qwen2", "internlm2", "internlm3")
    for tied in (False, True)
]


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["f32", "bf16"])
@pytest.mark.parametrize(("style", "family", "tied"), ALL)
def test_bit_equal(style, family, tied, dtype, tmp_path):
    config = small_config(style, tied, family)
    tensors = random_tensors(config, dtype, layout="original")
    write_checkpoint(tmp_path / "in", config, tensors, "original")
    assert read_config(tmp_path / "in") == config
    params = read_params(tmp_path / "in", abstract(config, dtype), config)
    write_params(params, config, tmp_path / "out", layout="original", copy_from=tmp_path / "in")
    assert read_config(tmp_path / "out") == config
    assert_same(load_file(tmp_path / "out" / "model.safetensors"), tensors)


@pytest.mark.parametrize(("style", "family", "tied"), ALL)
def test_through_the_other_layout(style, family, tied, tmp_path):
    config = small_config(style, tied, family)
    tensors = random_tensors(config)
    directory = write_checkpoint(tmp_path / "hf", config, tensors)
    for layout in ("original", "hf"):
        model = ivl3_jax.load(directory, "float32")
        directory = tmp_path / f"as {layout}"
        ivl3_jax.save(model, directory, layout=layout)
    assert_same(load_file(directory / "model.safetensors"), tensors)
    assert read_config(directory) == config


@pytest.mark.parametrize(("style", "family", "tied"), ALL)
def test_convert_there_and_back(style, family, tied, tmp_path):
    """Every tensor in its own dtype; what becomes one tensor has one."""
    config = small_config(style, tied, family)
    tensors = random_tensors(config, BFLOAT16)
    tensors = {name: x.astype(np.float32) if x.ndim == 1 and "proj" not in name else x for name, x in tensors.items()}
    write_checkpoint(tmp_path / "hf", config, tensors)
    told = []
    convert(tmp_path / "hf", tmp_path / "original", layout="original", report=lambda *what: told.append(what))
    total = sum(x.nbytes for x in tensors.values())
    assert told[-1] == ("writing", total, total)
    assert sorted(told) == told
    assert convert(tmp_path / "original", tmp_path / "back", layout="hf", max_shard_bytes=50_000) == config
    index = json.loads((tmp_path / "back" / "model.safetensors.index.json").read_text())
    found = {}
    for name in set(index["weight_map"].values()):
        found |= load_file(tmp_path / "back" / name)
    assert_same(found, tensors)


def test_parts_of_one_tensor_must_agree_in_dtype(tmp_path):
    config = small_config()
    tensors = random_tensors(config)
    name = "model.vision_tower.encoder.layer.1.attention.k_proj.weight"
    tensors[name] = tensors[name].astype(BFLOAT16)
    write_checkpoint(tmp_path / "in", config, tensors)
    with pytest.raises(
        ValueError, match=r"become one tensor, .*layers.1.attn.qkv.weight, but have the dtypes bfloat16"
    ):
        convert(tmp_path / "in", tmp_path / "out", layout="original")
    assert not (tmp_path / "out").exists()
    convert(tmp_path / "in", tmp_path / "out", layout="original", dtype="float32")


def test_the_command(tmp_path, capsys):
    config = small_config(family="internlm2")
    source = write_checkpoint(tmp_path / "in", config, random_tensors(config, layout="original"), "original")
    assert main(["convert", str(source), str(tmp_path / "out")]) == 0
    assert "in the hf layout" in capsys.readouterr().out
    assert read_config(tmp_path / "out") == config
    assert main(["convert", str(source), str(tmp_path / "out")]) == 1
    assert "exists and is not empty" in capsys.readouterr().err
    assert main(["convert", str(source), str(tmp_path / "new"), "--layout", "gguf"]) == 2
    assert "hf" in capsys.readouterr().err


def expected(t, config):
    """Some of our parameters by plain numpy from original tensors."""
    v, d = config.vision, config.decoder
    D, G = v.width, d.heads // d.kv_heads
    found = {}
    for n, name in enumerate("qkv"):
        stack = [t[f"vision_model.encoder.layers.{i}.attn.qkv.weight"][n * D : (n + 1) * D].T for i in range(v.layers)]
        found[f"vision/layers/attention/{name}/kernel"] = np.stack(stack).reshape(v.layers, D, v.heads, v.head_dim)
        if v.qkv_bias:
            stack = [t[f"vision_model.encoder.layers.{i}.attn.qkv.bias"][n * D : (n + 1) * D] for i in range(v.layers)]
            found[f"vision/layers/attention/{name}/bias"] = np.stack(stack).reshape(v.layers, v.heads, v.head_dim)
    block = "language_model.model.layers.{}."
    if d.family == "internlm2":
        wqkv = np.stack([t[block.format(i) + "attention.wqkv.weight"] for i in range(d.layers)])
        wqkv = wqkv.reshape(d.layers, d.kv_heads, G + 2, d.head_dim, d.width).transpose(0, 4, 1, 2, 3)
        found["decoder/layers/attention/q/kernel"] = wqkv[:, :, :, :G].reshape(d.layers, d.width, d.heads, d.head_dim)
        found["decoder/layers/attention/k/kernel"] = wqkv[:, :, :, G]
        found["decoder/layers/attention/v/kernel"] = wqkv[:, :, :, G + 1]
        names = "feed_forward.w1", "feed_forward.w3", "feed_forward.w2"
    else:
        q = np.stack([t[block.format(i) + "self_attn.q_proj.weight"].T for i in range(d.layers)])
        found["decoder/layers/attention/q/kernel"] = q.reshape(d.layers, d.width, d.heads, d.head_dim)
        names = "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"
    for ours, theirs in zip(("gate", "up", "down"), names, strict=True):
        stack = [t[f"{block.format(i)}{theirs}.weight"].T for i in range(d.layers)]
        found[f"decoder/layers/mlp/{ours}/kernel"] = np.stack(stack)
    patch = t["vision_model.embeddings.patch_embedding.weight"]
    found["vision/patch/kernel"] = patch.transpose(2, 3, 1, 0).reshape(-1, D)
    found["projector/norm/scale"], found["projector/up/bias"] = t["mlp1.0.weight"], t["mlp1.1.bias"]
    return found


@pytest.mark.parametrize(("style", "family", "tied"), ALL)
def test_against_plain_numpy(style, family, tied, tmp_path):
    config = small_config(style, tied, family)
    tensors = random_tensors(config, layout="original")
    write_checkpoint(tmp_path, config, tensors, "original")
    params = flatten_dict(read_params(tmp_path, abstract(config), config), sep="/")
    for path, values in expected(tensors, config).items():
        np.testing.assert_array_equal(np.asarray(params[path]), values, err_msg=path)


def test_what_the_source_says_beyond_ours_is_kept(tmp_path):
    config = small_config()
    source = write_checkpoint(tmp_path / "in", config, random_tensors(config, layout="original"), "original")
    fields = json.loads((source / "config.json").read_text())
    del fields["img_context_token_id"]
    fields |= {"auto_map": {"AutoModel": "modeling.X"}, "max_dynamic_patch": 6}
    fields["llm_config"] |= {"bos_token_id": 7, "torch_dtype": "float32"}
    fields["vision_config"]["torch_dtype"] = "float32"
    (source / "config.json").write_text(json.dumps(fields))
    (source / "modeling.py").write_text("# the user's own\n")
    model = ivl3_jax.load(source, "float32")
    ivl3_jax.save(model, tmp_path / "out", layout="original")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == fields | {"torch_dtype": "float32"}
    assert (tmp_path / "out" / "modeling.py").read_text() == "# the user's own\n"
    ivl3_jax.save(model, tmp_path / "hf", layout="hf")
    assert not (tmp_path / "hf" / "modeling.py").exists()


def test_published_fields_stay_readable(tmp_path):
    config = small_config()
    fields = to_original(config) | {"pad2square": False, "image_fold": None, "template": "internvl2_5"}
    fields["llm_config"] |= {"sliding_window": 32768, "max_window_layers": 21, "use_sliding_window": False}
    assert from_original(fields, config.image_token_id) == config


def test_the_authors_code_is_named():
    """As in the published files, for `trust_remote_code`."""
    model = "modeling_internvl_chat.InternVLChatModel"
    assert to_original(small_config())["auto_map"] == {
        "AutoConfig": "configuration_internvl_chat.InternVLChatConfig",
        "AutoModel": model,
        "AutoModelForCausalLM": model,
    }


def test_an_unequal_projection_unties(tmp_path):
    tied = small_config(tied=True)
    tensors = random_tensors(small_config(), layout="original")
    write_checkpoint(tmp_path, tied, tensors, "original")
    assert resolve_tying(tmp_path, read_config(tmp_path)) == small_config()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"ps_version": "v1"}, "ps_version is 'v1'; supported: 'v2'"),
        ({"downsample_ratio": 0.4}, "downsample_ratio is 0.4; it must be one over a whole number"),
        (
            {"llm_config": {"architectures": ["LlamaForCausalLM"]}},
            "it must be a list of one of Qwen2ForCausalLM, InternLM2",
        ),
        ({"template": "internlm2-chat"}, "template is 'internlm2-chat'; supported: 'internvl2_5'"),
        ({"image_fold": 2}, "image_fold is 2; supported: None or 0"),
        ({"pad2square": True}, "pad2square is True; supported: False"),
        ({"llm_config": {"partial_rotary_factor": 0.5}}, "llm_config.partial_rotary_factor is 0.5; supported: 1"),
        ({"llm_config": {"rope_scaling": {"type": "dynamic"}}}, "llm_config.rope factor is missing"),
        ({"llm_config": {"num_hidden_layers": 10**9}}, "llm_config.num_hidden_layers is 1000000000; it must be at"),
        ({"llm_config": {"architectures": 3}}, "llm_config.architectures is 3; it must be a list of one of"),
        ({"llm_config": {"architectures": [["Qwen2ForCausalLM"]]}}, "it must be a list of one of"),
        ({"llm_config": {"hidden_size": None}}, "llm_config.hidden_size is None; it must be a whole number"),
        ({"vision_config": {"norm_type": "batch_norm"}}, "batch_norm"),
        ({"vision_config": 3}, "vision_config is 3; it must be a JSON object"),
    ],
)
def test_bad_config(change, words):
    fields = to_original(small_config())
    for name, value in change.items():
        fields[name] = fields[name] | value if isinstance(value, dict) else value
    with pytest.raises(ValueError, match="the file.json: .*" + words.replace("[", r"\[")) as caught:
        from_original(fields, 100, "the file.json")
    assert "the file.json" in str(caught.value)


def test_the_image_token_must_be_known(tmp_path):
    config = small_config(family="internlm2")
    write_checkpoint(tmp_path, config, random_tensors(config, layout="original"), "original")
    (tmp_path / "added_tokens.json").unlink()
    fields = json.loads((tmp_path / "config.json").read_text())
    assert fields.pop("img_context_token_id") == 100
    (tmp_path / "config.json").write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="no tokenizer file says which id <IMG_CONTEXT> has"):
        read_config(tmp_path)
    fields = {"added_tokens_decoder": {"100": {"content": "<IMG_CONTEXT>"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(fields))
    assert read_config(tmp_path) == config
