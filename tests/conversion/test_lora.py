"""Unmerged adapters: read as if merged, whole and sliced, and what broken ones are told."""

import json

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from safetensors.numpy import load_file

import ivl3_jax
from ivl3_jax.batch import empty_batch
from ivl3_jax.conversion.convert import convert
from ivl3_jax.conversion.reader import read_params
from tests.conversion.checkpoints import BFLOAT16, abstract, random_tensors, small_config, write_checkpoint
from tests.models.small import relative
from tests.tolerances import STACK

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
        # Sums of products in blocks may round another way than whole ones.
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
    np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-5)


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
        (lambda t, stem: t.pop(f"{stem}.lora_B.default.weight"), "has lora_A, but no lora_B"),
        (lambda t, stem: t.pop(f"{stem}.base_layer.weight"), "there is an adapter of .*, but not the weight itself"),
        (
            lambda t, stem: t.update({f"{stem}.lora_A.default.weight": np.zeros((3, 48), np.float32)}),
            r"lora_A \[3, 48\] and lora_B \[48, 4\] do not fit",
        ),
        (
            lambda t, stem: t.update({f"{stem}.lora_embedding_A.default": np.zeros((3, 48), np.float32)}),
            "is an adapter of a kind that cannot be merged",
        ),
        (
            lambda t, stem: t.update({f"{stem}.weight": t[f"{stem}.base_layer.weight"]}),
            "are the same tensor once adapters are merged",
        ),
    ],
    ids=["half", "no weight", "shape", "kind", "twice"],
)
def test_broken_adapters(change, words, tmp_path):
    config = small_config()
    unmerged, _ = with_adapters(random_tensors(config, layout="original"))
    change(unmerged, "language_model.base_model.model.model.layers.1.self_attn.q_proj")
    write_checkpoint(tmp_path, config, unmerged, "original")
    with pytest.raises(ValueError, match=words):
        read_params(tmp_path, abstract(config), config)


def test_merged_equals_unmerged_applied_by_peft(torch, transformers, tmp_path):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    config = small_config()
    d = config.decoder
    torch.manual_seed(0)
    qwen = transformers.Qwen2Config(
        hidden_size=d.width,
        num_hidden_layers=d.layers,
        num_attention_heads=d.heads,
        num_key_value_heads=d.kv_heads,
        head_dim=d.head_dim,
        intermediate_size=d.mlp,
        vocab_size=d.vocab,
        rms_norm_eps=d.norm_eps,
        rope_theta=d.rope_theta,
        tie_word_embeddings=False,
    )
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    lora = peft.LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(transformers.Qwen2ForCausalLM(qwen), lora).eval()
    tensors = {name: x for name, x in random_tensors(config, layout="original").items() if "language_model" not in name}
    tensors |= {f"language_model.{name}": x.detach().numpy() for name, x in model.state_dict().items()}
    write_checkpoint(tmp_path, config, tensors, "original")
    batch = empty_batch(1, 40, 0, 1, config.vision.image_size)
    batch.tokens[:], batch.segment_ids[:], batch.positions[:] = np.arange(40) % d.vocab, 1, np.arange(40)
    ours = np.asarray(ivl3_jax.load(tmp_path, "float32")(batch))
    with torch.no_grad():
        theirs = model(torch.from_numpy(batch.tokens).long()).logits.numpy()
    assert relative(ours, theirs) < STACK["float32"]
