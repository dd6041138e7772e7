"""Our adapters in peft, and peft's here: the same logits, gradients and merged weights."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import ivl3_jax
from ivl3_jax.conversion import parity
from ivl3_jax.conversion.adapter_tensors import half_layouts, linear_layers
from ivl3_jax.hf_config import read_config
from ivl3_jax.models.adapters import Lora, merged
from ivl3_jax.models.model import Model
from tests.conversion.checkpoints import modules, random_tensors, small_config, write_checkpoint
from tests.models.adapted import EVERYWHERE, adapter_gradients, trained
from tests.models.small import relative
from tests.parity.reference import tiny
from tests.tolerances import GRADIENT, STACK

peft = pytest.importorskip("peft", reason="peft is not installed")
parity_reference = pytest.importorskip("ivl3_jax.conversion.parity_reference", exc_type=ImportError)

CASES = [
    ("300m", "llama", "float32"),
    pytest.param("300m", "qwen2", "float64", marks=pytest.mark.long),
    pytest.param("6b", "qwen2", "float32", marks=pytest.mark.long),
]


def their_gradients(model, config, sizes):
    """Gradients of A and B by the paths of ours; `sizes` are ranks by component."""
    grads = {name: x.grad.numpy() for name, x in model.named_parameters() if x.grad is not None}
    found = {}
    for layer in linear_layers(config, "hf"):
        (path,), (kernel,) = layer.paths, layer.kernels
        layouts = half_layouts(kernel.layout, sizes[path.split("/")[0]].rank)
        for leaf, half, layout in zip(("lora_a", "lora_b"), "AB", layouts, strict=True):
            theirs = grads.pop(f"base_model.model.{layer.name}.lora_{half}.default.weight")
            found.setdefault(f"{path}/{leaf}", []).append(layout.to_ours(theirs))
    assert not grads  # of the adapters alone
    return {path: np.stack(x) if "/layers/" in path else x[0] for path, x in found.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("style", "decoder", "dtype"), CASES)
def test_ours_in_peft(style, decoder, dtype, torch, transformers, tmp_path):
    """Logits, loss and gradients unmerged; logits merged by peft, and of what `save` merged."""
    source, config = tiny(style, decoder=decoder), read_config(tiny(style, decoder=decoder))
    batch = parity.example_batch(config, tokens=500, tiles=3)
    inputs = parity_reference.inputs_from_batch(batch, config, dtype)
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        one = trained(ivl3_jax.load(source, dtype))
        ivl3_jax.save_adapter(one, tmp_path / "adapter")
        ivl3_jax.save(one, tmp_path / "merged")
        logits, (loss, gradients) = np.asarray(one(batch)), adapter_gradients(one, batch)
        assert relative(logits, ivl3_jax.load(source, dtype)(batch)) > 0.05

    reference = parity_reference.load_reference(source, dtype)
    model = peft.PeftModel.from_pretrained(reference, tmp_path / "adapter", is_trainable=True)
    theirs = parity_reference.loss(model, inputs, batch.labels, batch.loss_weights)
    theirs.backward()
    assert loss == pytest.approx(theirs.item(), rel=STACK[dtype])
    expected = their_gradients(model, config, EVERYWHERE)
    assert gradients.keys() == expected.keys() and len(expected) == 30
    over = {path: relative(gradients[path], values) for path, values in expected.items()}
    assert {path: error for path, error in over.items() if error >= GRADIENT[dtype]} == {}

    with torch.no_grad():
        assert relative(logits, model(**inputs, use_cache=False).logits.numpy()) < STACK[dtype]
        by_peft = model.merge_and_unload()
        assert relative(logits, by_peft(**inputs, use_cache=False).logits.numpy()) < STACK[dtype]
        opened = parity_reference.load_reference(tmp_path / "merged", dtype)
        assert relative(logits, opened(**inputs, use_cache=False).logits.numpy()) < STACK[dtype]


@pytest.mark.parametrize("options", [{}, {"layers_to_transform": [0, 2]}, {"use_rslora": True, "lora_alpha": 3}])
def test_theirs_here(options, torch, transformers, tmp_path):
    """An adapter that peft made and wrote, of several ranks, onto the model that we opened."""
    config = read_config(tiny())
    torch.manual_seed(0)
    lora = peft.LoraConfig(
        r=4,
        **{"lora_alpha": 8} | options,
        target_modules=["q_proj", "v_proj", "o_proj", "down_proj", "fc1", "projection_layer"],
        rank_pattern={"fc1": 2, "down_proj": 6},
        init_lora_weights=False,
    )
    model = peft.get_peft_model(parity_reference.load_reference(tiny()), lora)
    model.save_pretrained(tmp_path / "adapter")
    batch = parity.example_batch(config, tokens=500, tiles=3)
    with torch.no_grad():
        inputs = parity_reference.inputs_from_batch(batch, config)
        theirs = model.eval()(**inputs, use_cache=False).logits.numpy()
    base = ivl3_jax.load(tiny(), "float32")
    one = ivl3_jax.load_adapter(base, tmp_path / "adapter")
    assert relative(one(batch), theirs) < STACK["float32"] < relative(base(batch), theirs)
    assert relative(merged(one)(batch), theirs) < STACK["float32"]


@pytest.mark.parametrize("family", ["qwen2", "internlm2"])
def test_ours_onto_original_modules(family, torch, tmp_path):
    """peft finds every module by the names of the remote code, `qkv` and `wqkv` with three adapters in one."""
    config = small_config(family=family)
    tensors = random_tensors(config, layout="original")
    one = trained(ivl3_jax.load(write_checkpoint(tmp_path / "base", config, tensors, "original"), "float32"))
    ivl3_jax.save_adapter(one, tmp_path / "adapter", layout="original")
    ivl3_jax.save(one, tmp_path / "merged", layout="original")
    model = peft.PeftModel.from_pretrained(modules(torch, tensors), tmp_path / "adapter")
    found, expected = model.merge_and_unload().state_dict(), load_file(tmp_path / "merged/model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-5, atol=1e-5, err_msg=name)


# The modules that InternVL's fine-tuning wraps, by the class of the decoder.
INTERNVL_TARGETS = {
    "qwen2": [f"self_attn.{name}_proj" for name in "qkvo"] + [f"mlp.{name}_proj" for name in ("gate", "down", "up")],
    "internlm2": ["attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2", "feed_forward.w3"],
    "vision": ["attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2"],
}


@pytest.mark.parametrize("family", ["qwen2", "internlm2"])
def test_the_form_of_internvl_fits_its_wrapped_model(family, torch, tmp_path):
    """Decoder and ViT wrapped as InternVL's code does, by the ranks in config.json: it has these keys and no others."""
    config = small_config(family=family)
    one = trained(Model.init(config, seed=1), {"vision": Lora(2), "projector": Lora(3), "decoder": Lora(4)})
    ivl3_jax.save_unmerged(one, tmp_path / "unmerged")
    ivl3_jax.save(one, tmp_path / "merged", layout="original")
    fields = json.loads((tmp_path / "unmerged/config.json").read_text())
    expected = load_file(tmp_path / "merged/model.safetensors")
    model = modules(torch, random_tensors(config, layout="original"))
    for part, rank, targets in (
        ("vision_model", fields["use_backbone_lora"], INTERNVL_TARGETS["vision"]),
        ("language_model", fields["use_llm_lora"], INTERNVL_TARGETS[family]),
    ):
        lora = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=targets, lora_dropout=0.05)
        setattr(model, part, peft.get_peft_model(getattr(model, part), lora))
    tensors = load_file(tmp_path / "unmerged/model.safetensors")
    model.load_state_dict({name: torch.from_numpy(x) for name, x in tensors.items()}, strict=True)
    for part in ("vision_model", "language_model"):
        setattr(model, part, getattr(model, part).merge_and_unload())
    found = model.state_dict()
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name].numpy(), values, rtol=1e-5, atol=1e-5, err_msg=name)


@pytest.mark.parametrize("family", ["qwen2", "internlm2"])
def test_theirs_of_original_modules_here(family, torch, tmp_path):
    """One A for the whole of `qkv` and `wqkv`, written by peft."""
    config = small_config(family=family)
    tensors = random_tensors(config, layout="original")
    base = ivl3_jax.load(write_checkpoint(tmp_path / "base", config, tensors, "original"), "float32")
    torch.manual_seed(0)
    targets = INTERNVL_TARGETS["vision"] + INTERNVL_TARGETS[family] + ["mlp1.1"]
    lora = peft.LoraConfig(r=4, lora_alpha=6, target_modules=targets, init_lora_weights=False)
    model = peft.get_peft_model(modules(torch, tensors), lora)
    model.save_pretrained(tmp_path / "adapter")
    expected = model.merge_and_unload().state_dict()
    one = ivl3_jax.load_adapter(base, tmp_path / "adapter")
    ivl3_jax.save(one, tmp_path / "merged", layout="original")
    found = load_file(tmp_path / "merged/model.safetensors")
    assert found.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values.numpy(), rtol=1e-5, atol=1e-5, err_msg=name)
