"""Adapters to directories and back, in both layouts: what is merged is the same bits whichever way it went."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from safetensors.numpy import load_file, save_file

import ivl3_jax
from ivl3_jax.layers.lora import STRIP, merge
from ivl3_jax.models.adapters import Lora, adapted, merged
from ivl3_jax.models.model import Model
from ivl3_jax.sharding.plan import ShardingPlan
from tests.conversion.checkpoints import BFLOAT16, small_config
from tests.models.adapted import EVERYWHERE, trained

SPECS = {
    "everywhere": EVERYWHERE,
    "decoder": {"decoder": Lora(4, alpha=3)},
    "some": {"decoder": Lora(3, targets=("q", "v", "down")), "vision": Lora(2, targets=("k", "up"))},
}


def small(specs="everywhere", family="qwen2", dtype="float32", plan=None):
    return trained(Model.init(small_config(family=family), plan, seed=1, param_dtype=dtype), SPECS[specs])


def assert_same(found, expected):
    """Parameters or tensors by name: dtypes, shapes and bits."""
    found, expected = (flatten_dict(tree, sep="/") for tree in (found, expected))
    assert found.keys() == expected.keys()
    for path, values in expected.items():
        assert found[path].dtype == values.dtype, path
        np.testing.assert_array_equal(found[path], values, err_msg=path)


@pytest.mark.parametrize(
    ("family", "dtype", "specs"),
    [("qwen2", "float32", "everywhere"), ("internlm2", "bfloat16", "everywhere"), ("internlm2", "float32", "some")],
)
@pytest.mark.parametrize("layout", ["original", pytest.param("hf", marks=pytest.mark.long)])
def test_every_way_gives_the_same_weights(layout, family, dtype, specs, tmp_path):
    one = small(specs, family, dtype)
    base, expected = ivl3_jax.without_adapters(one), merged(one).params
    ivl3_jax.save(one, tmp_path / "merged", layout=layout)
    assert_same(ivl3_jax.load(tmp_path / "merged", dtype).params, expected)

    ivl3_jax.save_adapter(one, tmp_path / "adapter", layout=layout)
    assert {file.name for file in (tmp_path / "adapter").iterdir()} == {
        "adapter_model.safetensors",
        "adapter_config.json",
    }
    back = ivl3_jax.load_adapter(base, tmp_path / "adapter")
    assert back.graphdef == one.graphdef
    assert_same(back.params, one.params)
    assert_same(merged(back).params, expected)

    if layout == "original":
        ivl3_jax.save_unmerged(one, tmp_path / "unmerged")
        assert_same(ivl3_jax.load(tmp_path / "unmerged", dtype).params, expected)


@pytest.mark.long
def test_where_it_lies_changes_no_bit(tmp_path):
    """A spread model writes the same files, and reads them slice by slice to the same weights."""
    plan = ShardingPlan.read("fsdp_tensor", {"fsdp": 2, "tensor": 2})
    one, spread = small(), small(plan=plan)
    for name, model in (("one", one), ("spread", spread)):
        ivl3_jax.save_adapter(model, tmp_path / f"adapter {name}")
        ivl3_jax.save_unmerged(model, tmp_path / f"unmerged {name}")
    for kind, file in (("adapter", "adapter_model.safetensors"), ("unmerged", "model.safetensors")):
        written = [(tmp_path / f"{kind} {name}" / file).read_bytes() for name in ("one", "spread")]
        assert written[0] == written[1]
    expected, loaded = merged(spread).params, ivl3_jax.load(tmp_path / "unmerged one", "float32", plan).params
    assert_same(loaded, expected)
    back = ivl3_jax.load_adapter(ivl3_jax.without_adapters(spread), tmp_path / "adapter one")
    assert_same(back.params, spread.params)
    assert jax.tree.map(lambda leaf: leaf.sharding, back.params) == jax.tree.map(lambda x: x.sharding, spread.params)


def test_float64(tmp_path):
    with jax.enable_x64(True):
        one = small(dtype="float64")
        ivl3_jax.save_unmerged(one, tmp_path / "unmerged")
        ivl3_jax.save_adapter(one, tmp_path / "adapter")
        assert_same(ivl3_jax.load(tmp_path / "unmerged", "float64").params, merged(one).params)
        assert_same(ivl3_jax.load_adapter(ivl3_jax.without_adapters(one), tmp_path / "adapter").params, one.params)


def test_the_config_of_an_adapter(tmp_path):
    config = small_config()
    ivl3_jax.save_adapter(small(), tmp_path / "hf")
    ivl3_jax.save_adapter(small(), tmp_path / "original", layout="original")
    fields = {name: json.loads((tmp_path / name / "adapter_config.json").read_text()) for name in ("hf", "original")}
    for found in fields.values():
        stated = (found["peft_type"], found["r"], found["lora_alpha"], found["bias"], found["lora_dropout"])
        assert stated == ("LORA", 4, 8, "none", 0)
    hf = {name: x.shape for name, x in load_file(tmp_path / "hf/adapter_model.safetensors").items()}
    vit = "base_model.model.model.vision_tower.encoder.layer.1.attention"
    assert hf[f"{vit}.k_proj.lora_A.weight"] == (2, 32) and hf[f"{vit}.k_proj.lora_B.weight"] == (32, 2)
    assert hf["base_model.model.model.language_model.layers.2.self_attn.k_proj.lora_B.weight"] == (16, 4)
    assert len(hf) == 2 * (6 * config.vision.layers + 2 + 7 * config.decoder.layers)
    # q, k and v of rank 2 are one qkv of rank 6 there, whose alpha / r is the same.
    tensors = load_file(tmp_path / "original/adapter_model.safetensors")
    a, b = (tensors[f"base_model.model.vision_model.encoder.layers.1.attn.qkv.lora_{half}.weight"] for half in "AB")
    assert a.shape == (6, 32) and b.shape == (96, 6)
    assert all(b[32 * i : 32 * i + 32, 2 * j : 2 * j + 2].any() == (i == j) for i in range(3) for j in range(3))
    pattern = r"vision_model\.encoder\.layers\.\d+\.attn\.qkv"
    assert fields["original"]["rank_pattern"][pattern] == 6 and fields["original"]["alpha_pattern"][pattern] == 12
    assert fields["original"]["rank_pattern"][r"mlp1\.1"] == 3 and fields["original"]["alpha_pattern"][r"mlp1\.1"] == 5


def test_the_form_of_internvl(tmp_path):
    one = small("some", "internlm2")
    ivl3_jax.save_unmerged(one, tmp_path / "out", dtype="bfloat16")
    fields = json.loads((tmp_path / "out/config.json").read_text())
    assert (fields["use_llm_lora"], fields["use_backbone_lora"]) == (6, 2)
    tensors = load_file(tmp_path / "out/model.safetensors")
    assert {x.dtype for x in tensors.values()} == {BFLOAT16}
    block = "language_model.base_model.model.model.layers.2"
    assert tensors[f"{block}.attention.wqkv.lora_A.default.weight"].shape == (6, 48)
    down = tensors[f"{block}.feed_forward.w2.lora_A.default.weight"]
    assert down.shape == (6, 80) and down[:3].any() and not down[3:].any()
    assert not tensors[f"{block}.attention.wo.lora_B.default.weight"].any()
    assert f"{block}.attention_norm.weight" in tensors and f"{block}.attention.wo.base_layer.weight" in tensors
    for part in ("qkv", "proj"):
        assert f"vision_model.base_model.model.encoder.layers.0.attn.{part}.base_layer.bias" in tensors


def test_only_the_decoder_is_wrapped(tmp_path):
    """Adapters of the projector, which InternVL never wraps, are merged."""
    model = Model.init(small_config(), seed=1)
    one = trained(model, {"projector": Lora(2), "decoder": Lora(4)})
    ivl3_jax.save_unmerged(one, tmp_path)
    fields, names = json.loads((tmp_path / "config.json").read_text()), load_file(tmp_path / "model.safetensors").keys()
    assert fields["use_llm_lora"] == 4 and "use_backbone_lora" not in fields
    assert "vision_model.encoder.layers.0.attn.qkv.weight" in names and "mlp1.1.weight" in names
    assert_same(ivl3_jax.load(tmp_path, "float32").params, merged(one).params)


def test_a_whole_adapter_of_one_layer_becomes_three(tmp_path):
    """qkv with one A, as InternVL and peft make it; and new adapters, whose B is zero, keep all of their A."""
    rng, config = np.random.default_rng(0), small_config()
    stem, tensors = "base_model.model.vision_model.encoder.layers.{}.attn.qkv.lora_{}.weight", {}
    for layer in range(config.vision.layers):
        tensors[stem.format(layer, "A")] = rng.standard_normal((4, 32), np.float32)
        tensors[stem.format(layer, "B")] = rng.standard_normal((96, 4), np.float32)
    model = Model.init(config, seed=1)
    for name, factor in (("trained", 1), ("new", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 6}))
        scaled = {key: x * factor if "lora_B" in key else x for key, x in tensors.items()}
        save_file(scaled, tmp_path / name / "adapter_model.safetensors")
        attention = ivl3_jax.load_adapter(model, tmp_path / name).params["vision"]["layers"]["attention"]
        for i, part in enumerate("qkv"):
            a, b = (np.asarray(attention[part][leaf])[1] for leaf in ("lora_a", "lora_b"))
            np.testing.assert_array_equal(a, tensors[stem.format(1, "A")].T)
            expected = tensors[stem.format(1, "B")][32 * i : 32 * i + 32].T.reshape(4, 4, 8)
            np.testing.assert_array_equal(b, factor * expected)
        assert "lora_a" not in attention["out"]


def test_merged_in_any_blocks():
    """The sum of each value has an order of its own, whatever is merged together with it."""
    rng = np.random.default_rng(0)
    weight, left, right = (rng.standard_normal(shape, np.float32) for shape in ((700, 230), (700, 9), (9, 230)))
    assert weight.size > 2 * STRIP
    whole = merge(weight, left, right, 1.7)
    np.testing.assert_allclose(whole, weight + 1.7 * left.astype(np.float64) @ right, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(merge(weight.T, right.T, left.T, 1.7).T, whole)
    rows, columns = slice(123, 130), slice(17, 200)
    np.testing.assert_array_equal(
        merge(weight[rows, columns], left[rows], right[:, columns], 1.7), whole[rows, columns]
    )
    assert merge(weight.astype(BFLOAT16), left, right, 1.0).dtype == np.float32
    assert merge(weight, left.astype(np.float64), right, 1.0).dtype == np.float64


def test_nothing_to_write_or_no_way_to(tmp_path):
    plain, one = Model.init(small_config()), small("decoder")
    for write in (ivl3_jax.save_adapter, ivl3_jax.save_unmerged):
        with pytest.raises(ValueError, match="the model has no adapters to write; save writes it as it is"):
            write(plain, tmp_path / "out")
    with pytest.raises(ValueError, match="layout is 'peft'; it must be one of hf, original"):
        ivl3_jax.save_adapter(one, tmp_path / "out", layout="peft")
    with pytest.raises(ValueError, match="dtype is 'int8'; it must be one of"):
        ivl3_jax.save_unmerged(one, tmp_path / "out", dtype="int8")
    with pytest.raises(
        ValueError, match=r"adapter of decoder/.* has alpha / r = 0.75; InternVL's .* knows alpha = 2 r"
    ):
        ivl3_jax.save_unmerged(one, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full/file").touch()
    with pytest.raises(FileExistsError, match="exists and is not empty"):
        ivl3_jax.save_adapter(one, tmp_path / "full")


def written(tmp_path, change=None, **fields):
    """The adapter of the decoder, with its tensors changed, or fields of its config."""
    ivl3_jax.save_adapter(small("decoder"), tmp_path / "adapter")
    file, config = tmp_path / "adapter/adapter_model.safetensors", tmp_path / "adapter/adapter_config.json"
    tensors = load_file(file)
    if change is not None:
        change(tensors)
    save_file(tensors, file)
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
    return tmp_path / "adapter"


STEM = "base_model.model.model.language_model.layers.1.self_attn.q_proj"


@pytest.mark.parametrize(
    ("change", "fields", "words"),
    [
        (lambda t: t.pop(f"{STEM}.lora_B.weight"), {}, r"q_proj has lora_A \[4, 48\]; it must have \[r, in\] and"),
        (
            lambda t: t.update({f"{STEM}.lora_B.weight": np.zeros((48, 3), np.float32)}),
            {},
            r"q_proj has lora_A \[4, 48\], lora_B \[48, 3\]; it must",
        ),
        (
            lambda t: t.update({f"{STEM}.lora_B.weight": np.zeros((40, 4), np.float32)}),
            {},
            r"lora_A \[4, 48\] and lora_B \[40, 4\], .* of another weight than this model's \[48, 48\]",
        ),
        (
            lambda t: t.update({"base_model.model.lm_head.weight": np.zeros((4, 4), np.float32)}),
            {},
            r"lm_head.weight \[4, 4\] is no lora_A or lora_B of a linear layer",
        ),
        (
            lambda t: t.update(
                {f"base_model.model.lm_head.lora_{x}.weight": np.zeros((4, 4), np.float32) for x in "AB"}
            ),
            {},
            "there is an adapter of lm_head; those of linear layers of this model's blocks",
        ),
        (None, {"use_dora": True}, "use_dora is True, which cannot be merged here"),
        (None, {"r": 8}, r"r of .* is 8, but its lora_A has 4 rows"),
        (
            None,
            {"alpha_pattern": {r".*layers\.1\.self_attn\.q_proj": 5}},
            r"alpha / r of decoder/layers/attention/q is 0.75 in .*, 1.25 in .*; it must be the same in all layers",
        ),
    ],
)
def test_an_adapter_that_cannot_be_loaded(change, fields, words, tmp_path):
    with pytest.raises(ValueError, match=words):
        ivl3_jax.load_adapter(Model.init(small_config()), written(tmp_path, change, **fields))


def test_an_adapter_with_layers_left_out_and_of_smaller_rank(tmp_path):
    def change(tensors):
        for half in "AB":
            del tensors[f"{STEM}.lora_{half}.weight"]
            name = f"{STEM.replace('layers.1', 'layers.2')}.lora_{half}.weight"
            tensors[name] = np.ascontiguousarray(tensors[name][:2] if half == "A" else tensors[name][:, :2])

    pattern = {
        "rank_pattern": {r".*layers\.2\.self_attn\.q_proj": 2},
        "alpha_pattern": {r".*2\.self_attn\.q_proj": 1.5},
    }
    q = ivl3_jax.load_adapter(Model.init(small_config()), written(tmp_path, change, **pattern)).params
    a, b = (np.asarray(q["decoder"]["layers"]["attention"]["q"][leaf]) for leaf in ("lora_a", "lora_b"))
    assert not a[1].any() and not b[1].any()
    assert a[0].all() and a[2, :, :2].all() and not a[2, :, 2:].any() and not b[2, 2:].any()


def test_files_that_are_missing(tmp_path):
    model = Model.init(small_config())
    directory = written(tmp_path)
    (directory / "adapter_model.safetensors").rename(directory / "adapter_model.bin")
    with pytest.raises(FileNotFoundError, match="adapter_model.safetensors does not exist; pickles, as .* not opened"):
        ivl3_jax.load_adapter(model, directory)
    (directory / "adapter_config.json").unlink()
    with pytest.raises(FileNotFoundError, match="adapter_config.json does not exist; an adapter has it beside"):
        ivl3_jax.load_adapter(model, directory)


def test_onto_a_model_that_has_some(tmp_path):
    with pytest.raises(ValueError, match="has adapters already"):
        ivl3_jax.load_adapter(small(), written(tmp_path))


def test_a_new_adapter_goes_on_as_it_was(tmp_path):
    model = Model.init(small_config(), seed=1)
    new = adapted(model, {"decoder": Lora(4)})
    ivl3_jax.save_adapter(new, tmp_path)
    assert_same(ivl3_jax.load_adapter(model, tmp_path).params, new.params)
