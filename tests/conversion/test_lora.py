"""Unmerged adapters: read as if merged, whole and sliced, and what broken ones are told."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

from ivl3_jax.conversion.convert import convert
from ivl3_jax.conversion.reader import read_params
from ivl3_jax.hf_config import to_hf
from tests.conversion.checkpoints import BFLOAT16, abstract, random_tensors, small_config, write_checkpoint

RANK = 4
ADAPTED = ("attn.qkv", "mlp.fc1", "self_attn.q_proj", "mlp.down_proj", "attention.wqkv", "feed_forward.w2")


def with_adapters(tensors):
    """The tensors under the names of peft with adapters of some weights, and those weights merged by plain numpy."""
    rng = np.random.default_rng(9)
    unmerged, merged = {}, dict(tensors)
    for name, x in tensors.items():
        inside = name.replace("language_model.", "language_model.base_model.model.", 1)
        inside = inside.replace("vision_model.", "vision_model.base_model.model.", 1)
        stem = inside.removesuffix(".weight")
        if not name.endswith(tuple(f"{part}.weight" for part in ADAPTED)):
            adapted = name.endswith(tuple(f"{part}.bias" for part in ADAPTED))
            unmerged[inside.replace(".bias", ".base_layer.bias") if adapted else inside] = x
            continue
        a = rng.standard_normal((RANK, x.shape[1]), np.float32).astype(x.dtype)
        b = rng.standard_normal((x.shape[0], RANK), np.float32).astype(x.dtype)
        unmerged |= {
            f"{stem}.base_layer.weight": x,
            f"{stem}.lora_A.default.weight": a,
            f"{stem}.lora_B.default.weight": b,
        }
        wide = [part.astype(np.float32) for part in (x, b, a)]
        merged[name] = (wide[0] + 2 * (wide[1] @ wide[2])).astype(x.dtype)
    return unmerged, merged


@pytest.mark.parametrize("dtype", [np.float32, BFLOAT16], ids=["f32", "bf16"])
@pytest.mark.parametrize("family", ["qwen2", "internlm2"])
def test_read_as_if_merged(family, dtype, tmp_path):
    config = small_config(family=family)
    unmerged, merged = with_adapters(random_tensors(config, dtype, layout="original"))
    assert sum("lora_A" in name for name in unmerged) == 2 * config.vision.layers + 2 * config.decoder.layers
    write_checkpoint(tmp_path / "lora", config, unmerged, "original")
    write_checkpoint(tmp_path / "merged", config, merged, "original")
    found, expected = (
        flatten_dict(read_params(tmp_path / name, abstract(config, dtype), config), sep="/")
        for name in ("lora", "merged")
    )
    for path, value in expected.items():
        one, other = (np.asarray(x).astype(np.float32) for x in (found[path], value))
        # numpy's product sums in another order.
        np.testing.assert_allclose(one, other, rtol=1e-6 if dtype == np.float32 else 1e-2, atol=1e-5, err_msg=path)


def test_slices_of_merged_weights(tmp_path):
    config = small_config()
    unmerged, _ = with_adapters(random_tensors(config, layout="original"))
    write_checkpoint(tmp_path, config, unmerged, "original")
    whole = read_params(tmp_path, abstract(config), config)
    mesh = jax.make_mesh((2, 2), ("a", "b"), axis_types=(AxisType.Auto,) * 2)
    tree = abstract(config)
    leaf = tree["decoder"]["layers"]["mlp"]["down"]["kernel"]
    sharding = NamedSharding(mesh, PartitionSpec(None, "a", "b"))
    tree["decoder"]["layers"]["mlp"]["down"]["kernel"] = jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)
    sliced = read_params(tmp_path, tree, config)
    one, other = (np.asarray(params["decoder"]["layers"]["mlp"]["down"]["kernel"]) for params in (sliced, whole))
    np.testing.assert_array_equal(one, other)


def test_converted_it_is_merged(tmp_path):
    config = small_config()
    unmerged, merged = with_adapters(random_tensors(config, layout="original"))
    source = write_checkpoint(tmp_path / "lora", config, unmerged, "original")
    fields = json.loads((source / "config.json").read_text()) | {"use_llm_lora": RANK, "use_backbone_lora": RANK}
    (source / "config.json").write_text(json.dumps(fields))
    convert(source, tmp_path / "out", layout="original")
    found = load_file(tmp_path / "out" / "model.safetensors")
    assert found.keys() == merged.keys()
    for name, value in merged.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, atol=1e-5, err_msg=name)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["use_llm_lora"] == fields["use_backbone_lora"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t, stem: t.update({f"{stem}.lora_B.other.weight": np.zeros((48, 4), np.float32)}),
            "holds the adapters default, other, and which",
        ),
        (lambda t, stem: t.pop(f"{stem}.lora_B.default.weight"), "has lora_A, but no lora_B"),
        (lambda t, stem: t.pop(f"{stem}.base_layer.weight"), "there is an adapter of .*, but not the weight itself"),
        (
            lambda t, stem: t.update({f"{stem}.lora_A.default.weight": np.zeros((3, 48), np.float32)}),
            r"lora_A \[3, 48\] and lora_B \[48, 4\] do not fit",
        ),
        (
            lambda t, stem: t.update({f"{stem}.lora_embedding_A.default": np.zeros((3, 48), np.float32)}),
            "is part of an adapter that cannot be merged here",
        ),
        (
            lambda t, stem: t.update({f"{stem}.weight": t[f"{stem}.base_layer.weight"]}),
            "are the same tensor once adapters are merged",
        ),
    ],
    ids=["several", "half", "no weight", "shape", "kind", "twice"],
)
def test_broken_adapters(change, words, tmp_path):
    config = small_config()
    unmerged, _ = with_adapters(random_tensors(config, layout="original"))
    change(unmerged, "language_model.base_model.model.model.layers.1.self_attn.q_proj")
    write_checkpoint(tmp_path, config, unmerged, "original")
    with pytest.raises(ValueError, match=words):
        read_params(tmp_path, abstract(config), config)


def test_rounded_once(tmp_path):
    """A base in bfloat16 is merged in float32, and rounded only if the result is to be narrower."""
    config = small_config()
    unmerged, _ = with_adapters(random_tensors(config, BFLOAT16, layout="original"))
    source = write_checkpoint(tmp_path / "lora", config, unmerged, "original")
    wide = {name: x.astype(np.float32) for name, x in unmerged.items()}
    stem = "language_model.base_model.model.model.layers.1.mlp.down_proj"
    weight, a, b = (wide[f"{stem}.{part}.weight"] for part in ("base_layer", "lora_A.default", "lora_B.default"))
    expected = weight + 2 * b @ a
    for layout, name in (
        ("original", "language_model.model.layers.1.mlp.down_proj.weight"),
        ("hf", "model.language_model.layers.1.mlp.down_proj.weight"),
    ):
        for dtype in ("float32", None):
            convert(source, tmp_path / f"{layout} {dtype}", layout=layout, dtype=dtype)
        found = load_file(tmp_path / f"{layout} float32" / "model.safetensors")[name]
        np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
        rounded = load_file(tmp_path / f"{layout} None" / "model.safetensors")[name]
        np.testing.assert_array_equal(rounded, found.astype(BFLOAT16))
    params = flatten_dict(read_params(source, abstract(config), config), sep="/")
    np.testing.assert_allclose(params["decoder/layers/mlp/down/kernel"][1], expected.T, rtol=1e-6, atol=1e-6)


CONFIG = {"peft_type": "LORA", "r": RANK, "lora_alpha": 3, "use_dora": False, "rank_pattern": {}, "alpha_pattern": None}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"use_dora": True}, "use_dora is True, which cannot be merged here"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out is True, which cannot"),
        ({"lora_bias": True}, "lora_bias is True, which cannot"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save is .*lm_head.*, which cannot"),
        ({"peft_type": "LOHA"}, "peft_type is 'LOHA'; supported: 'LORA'"),
        ({"r": 8}, r"r of .* is 8, but its lora_A has 4 rows"),
        ({"rank_pattern": {"q_proj": 2}}, r"r of model.layers.0.self_attn.q_proj is 2, but its lora_A has 4 rows"),
        ({"r": "four"}, "r is 'four'; it must be a whole number of at least 1"),
        ({"lora_alpha": None}, "lora_alpha is None; it must be a finite number"),
        ({"use_rslora": "yes"}, "use_rslora is 'yes'; it must be true or false"),
        ({"alpha_pattern": {"q_proj": "x"}}, r"alpha_pattern.q_proj is 'x'; it must be a finite number"),
        ({"alpha_pattern": ["q_proj"]}, "alpha_pattern is .*; it must be a JSON object"),
        ({"alpha_pattern": {"q_(proj": 3}}, r"alpha_pattern has 'q_\(proj', no regular expression"),
    ],
)
def test_an_adapter_config_that_cannot_be_followed(fields, words, tmp_path):
    config = small_config()
    unmerged, _ = with_adapters(random_tensors(config, layout="original"))
    write_checkpoint(tmp_path, config, unmerged, "original")
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    read_params(tmp_path, abstract(config), config)
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG | fields))
    with pytest.raises(ValueError, match=f"adapter_config.json: {words}"):
        read_params(tmp_path, abstract(config), config)


@pytest.mark.parametrize("with_config", [True, False])
@pytest.mark.parametrize(
    ("name", "how"),
    [("safetensors", r"ivl3_jax.save\(ivl3_jax.load_adapter\("), ("bin", r"merge_and_unload\(\).*BASE opened by")],
)
def test_an_adapter_without_its_model(name, how, with_config, tmp_path):
    (tmp_path / f"adapter_model.{name}").touch()
    (tmp_path / "adapter_config.json").write_text(json.dumps(CONFIG))
    if with_config:
        (tmp_path / "config.json").write_text(json.dumps(to_hf(small_config(tied=True))))
    with pytest.raises(FileNotFoundError, match=rf"adapter \(adapter_model.{name}\) without .*{how}"):
        convert(tmp_path, tmp_path / "out", layout="hf")
