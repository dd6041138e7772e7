"""Adapters that peft itself made, merged here and applied there."""

import jax
import numpy as np
import pytest

import ivl3_jax
from ivl3_jax.batch import empty_batch
from ivl3_jax.conversion.reader import read_params
from ivl3_jax.hf_config import read_config
from tests.conversion.checkpoints import abstract, modules, random_tensors, small_config, write_checkpoint
from tests.models.small import relative
from tests.parity.reference import tiny
from tests.tolerances import STACK

save_file = pytest.importorskip("safetensors.torch", reason="PyTorch is not installed", exc_type=ImportError).save_file

peft = pytest.importorskip("peft", reason="peft is not installed")

RANK = 4
TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LORA = {"r": RANK, "lora_alpha": 2 * RANK, "target_modules": TARGETS, "init_lora_weights": False}

# Options of peft beside LORA, the adapter's name, the dtype of the base, and whether adapter_config.json is there.
CASES = {
    "as InternVL": ({}, "default", "float32", False),
    "bfloat16 base": ({}, "default", "bfloat16", False),
    "another name": ({}, "mine", "float32", False),
    "alpha": ({"lora_alpha": 3}, "default", "float32", True),
    "alpha, bfloat16 base": ({"lora_alpha": 3}, "mine", "bfloat16", True),
    "rsLoRA": ({"use_rslora": True}, "default", "float32", True),
    "biases": ({"bias": "all"}, "default", "float32", True),
    "patterns": (
        {
            "rank_pattern": {"q_proj": 2, r"model\.layers\.1\.mlp\..*": 6, "^model.layers.0.mlp.up_proj": 3},
            "alpha_pattern": {"layers.0.self_attn.k_proj": 5, "o_proj": 1, "proj": 99},
        },
        "default",
        "float32",
        True,
    ),
}


def qwen(transformers, d):
    return transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
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
    )


@pytest.mark.parametrize("case", CASES)
def test_merged_equals_unmerged_applied_by_peft(case, torch, transformers, tmp_path):
    """The decoder alone is wrapped, as InternVL's fine-tuning does it."""
    options, adapter, dtype, with_config = CASES[case]
    config = small_config()
    d = config.decoder
    torch.manual_seed(0)
    lora = peft.LoraConfig(**LORA | options)
    model = peft.get_peft_model(qwen(transformers, d).to(getattr(torch, dtype)), lora, adapter).eval()
    with torch.no_grad():
        for name, x in model.named_parameters():
            if name.endswith("bias"):
                x.normal_()
    vision = random_tensors(config, layout="original").items()
    tensors = {name: torch.from_numpy(x) for name, x in vision if "language_model" not in name}
    tensors |= {f"language_model.{name}": x for name, x in model.state_dict().items()}
    write_checkpoint(tmp_path, config, {}, "original")
    save_file(tensors, tmp_path / "model.safetensors")
    if with_config:
        model.peft_config[adapter].save_pretrained(tmp_path)
    batch = empty_batch(1, 40, 0, 1, config.vision.image_size)
    batch.tokens[:], batch.segment_ids[:], batch.positions[:] = np.arange(40) % d.vocab, 1, np.arange(40)
    ours = np.asarray(ivl3_jax.load(tmp_path, "float32")(batch))
    with torch.no_grad():
        theirs = model.float()(torch.from_numpy(batch.tokens).long()).logits.numpy()
    assert relative(ours, theirs) < STACK["float32"]


@pytest.mark.parametrize("layout", ["hf", "original"])
def test_the_whole_model_wrapped(layout, torch, transformers, tmp_path):
    """`base_model.model.` in front of every name."""
    config = small_config()
    if layout == "hf":
        whole, config = transformers.InternVLForConditionalGeneration.from_pretrained(tiny()), read_config(tiny())
    else:
        whole = modules(torch, random_tensors(config, layout="original"))
    lora = peft.LoraConfig(**LORA | {"lora_alpha": 3, "target_modules": TARGETS + ["fc1", "qkv", "linear_1"]})
    torch.manual_seed(0)
    model = peft.get_peft_model(whole, lora)
    state = {name: x.clone() for name, x in model.state_dict().items()}
    assert all(name.startswith("base_model.model.") for name in state)
    assert sum("lora_A" in name for name in state) > 7 * config.decoder.layers
    write_checkpoint(tmp_path / "lora", config, {}, layout)
    save_file(state, tmp_path / "lora" / "model.safetensors")
    model.peft_config["default"].save_pretrained(tmp_path / "lora")
    write_checkpoint(tmp_path / "merged", config, {}, layout)
    save_file(model.merge_and_unload().state_dict(), tmp_path / "merged" / "model.safetensors")
    found, expected = (read_params(tmp_path / name, abstract(config), config) for name in ("lora", "merged"))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5), found, expected)
