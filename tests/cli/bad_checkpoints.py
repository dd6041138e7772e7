"""The mistakes of docs/bad-input.md in directories, their configuration and their weights, as `bad_input` has them."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save_file

CASES: dict[str, Callable[[Path], list[str]]] = {}
QUESTION = "How many digits?"


def case(name):
    def add(function):
        assert name not in CASES
        CASES[name] = function
        return function

    return add


def edit(file, **fields):
    """Sets fields of a JSON file, by dots; None removes one."""
    content = json.loads(file.read_text())
    for path, value in fields.items():
        *parents, last = path.split("__")
        inner = content
        for parent in parents:
            inner = inner[parent]
        if value is None:
            del inner[last]
        else:
            inner[last] = value
    file.write_text(json.dumps(content))


def tensors(directory, change):
    """Lets `change` alter the dictionary of tensors of a single-file checkpoint."""
    file = directory / "model.safetensors"
    found = load_file(file)
    change(found)
    save_file(found, file, metadata={"format": "pt"})


def convert(work, source="model"):
    return ["convert", str(work / source), str(work / "out")]


def ask(work, *inputs, source="model"):
    return ["chat", str(work / source), *map(str, inputs), "--max-new-tokens", "2"]


# Directories and their configuration


@case("no such checkpoint")
def _(work):
    return convert(work, "nowhere")


@case("a file instead of a checkpoint")
def _(work):
    return ask(work, QUESTION, source="model/model.safetensors")


@case("no config.json")
def _(work):
    (work / "model/config.json").unlink()
    return convert(work)


@case("config.json is not JSON")
def _(work):
    (work / "model/config.json").write_text('{"model_type": "internvl",')
    return convert(work)


@case("another kind of model")
def _(work):
    edit(work / "model/config.json", model_type="llava")
    return convert(work)


@case("unknown decoder")
def _(work):
    edit(work / "model/config.json", text_config__model_type="mamba")
    return convert(work)


@case("unknown decoder, original layout")
def _(work):
    edit(work / "original/config.json", llm_config__architectures=["PhiForCausalLM"])
    return convert(work, "original")


@case("a field is missing")
def _(work):
    edit(work / "model/config.json", text_config__hidden_size=None)
    return convert(work)


@case("a field has the wrong type")
def _(work):
    edit(work / "model/config.json", vision_config__num_hidden_layers="three")
    return convert(work)


@case("more layers than any model has")
def _(work):
    edit(work / "model/config.json", text_config__num_hidden_layers=10**9)
    return convert(work)


@case("heads rotated in part")
def _(work):
    edit(work / "model/config.json", text_config__partial_rotary_factor=0.5)
    return convert(work)


@case("layers with sliding windows")
def _(work):
    edit(work / "model/config.json", text_config__layer_types=["full_attention", "sliding_attention"])
    return convert(work)


@case("dynamic rope without its factor")
def _(work):
    edit(work / "original/config.json", llm_config__rope_scaling={"type": "dynamic"})
    return convert(work, "original")


@case("another chat template, original layout")
def _(work):
    edit(work / "original/config.json", template="internlm2-chat")
    return convert(work, "original")


@case("images padded to squares")
def _(work):
    edit(work / "original/config.json", pad2square=True)
    return convert(work, "original")


@case("a peft adapter instead of a checkpoint")
def _(work):
    (work / "adapter").mkdir()
    (work / "adapter/adapter_model.safetensors").touch()
    return convert(work, "adapter")


@case("an unfinished checkpoint")
def _(work):
    (work / "model/unfinished.json").write_text("{}")
    return ask(work, QUESTION)


# Weights


@case("no weights")
def _(work):
    (work / "model/model.safetensors").unlink()
    return convert(work)


@case("weights as pickles only")
def _(work):
    (work / "model/model.safetensors").rename(work / "model/pytorch_model.bin")
    return convert(work)


@case("a Git LFS pointer")
def _(work):
    (work / "model/model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n")
    return convert(work)


@case("truncated weights")
def _(work):
    file = work / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    return ask(work, QUESTION)


@case("tensors that share bytes")
def _(work):
    fields = {name: {"dtype": "F32", "shape": [2], "data_offsets": [at, at + 8]} for name, at in (("a", 0), ("b", 4))}
    header = json.dumps(fields).encode()
    (work / "model/model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    return convert(work)


@case("bytes behind the last tensor")
def _(work):
    with (work / "model/model.safetensors").open("ab") as file:
        file.write(bytes(4))
    return convert(work)


@case("a corrupt header")
def _(work):
    file = work / "model/model.safetensors"
    file.write_bytes((100).to_bytes(8, "little") + b"?" * 200)
    return convert(work)


@case("a tensor of integers")
def _(work):
    tensors(work / "model", lambda t: t.update({"lm_head.weight": t["lm_head.weight"].astype(np.int8)}))
    return convert(work)


@case("a missing tensor")
def _(work):
    tensors(work / "model", lambda t: t.pop("model.language_model.norm.weight"))
    return convert(work)


@case("the output projection alone is missing")
def _(work):
    tensors(work / "original", lambda t: t.pop("language_model.lm_head.weight"))
    return convert(work, "original")


@case("a surplus tensor")
def _(work):
    tensors(work / "model", lambda t: t.update({"model.language_model.extra": np.zeros(3, np.float32)}))
    return convert(work)


@case("a tensor of another shape")
def _(work):
    tensors(work / "model", lambda t: t.update({"lm_head.weight": np.zeros((7, 64), np.float32)}))
    return convert(work)


@case("two tensors for one name")
def _(work):
    tensors(work / "model", lambda t: t.update({"language_model.lm_head.weight": t["lm_head.weight"]}))
    return convert(work)


def adapt(work, **parts):
    """An adapter of one weight of `original`: what follows `lora_` in a name, with __ for dots, and the shapes."""

    def change(t):
        name = "language_model.base_model.model.model.layers.0.self_attn.q_proj"
        t[f"{name}.base_layer.weight"] = t.pop("language_model.model.layers.0.self_attn.q_proj.weight")
        for part, shape in parts.items():
            t[f"{name}.lora_{part.replace('__', '.')}.weight"] = np.zeros(shape, np.float32)

    tensors(work / "original", change)
    return convert(work, "original")


@case("half a LoRA adapter")
def _(work):
    return adapt(work, A__default=(2, 64))


@case("adapters of two names")
def _(work):
    return adapt(work, A__new=(2, 64), B__new=(128, 2), A__old=(2, 64), B__old=(128, 2))


@case("a DoRA adapter")
def _(work):
    return adapt(work, A__default=(2, 64), B__default=(128, 2), magnitude_vector__default=(64,))


@case("an adapter_config.json that cannot be followed")
def _(work):
    fields = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "fan_in_fan_out": True}
    (work / "original/adapter_config.json").write_text(json.dumps(fields))
    return adapt(work, A__default=(2, 64), B__default=(128, 2))


@case("an adapter_config.json of other weights")
def _(work):
    (work / "original/adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16}))
    return adapt(work, A__default=(2, 64), B__default=(128, 2))


@case("weights that differ from SHA256SUMS")
def _(work):
    file = work / "model/model.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"?")
    return convert(work)


@case("a corrupt index")
def _(work):
    (work / "sharded/model.safetensors.index.json").write_text("{")
    return convert(work, "sharded")


@case("an index without weight_map")
def _(work):
    edit(work / "sharded/model.safetensors.index.json", weight_map=None)
    return convert(work, "sharded")


@case("an index that points elsewhere")
def _(work):
    edit(work / "sharded/model.safetensors.index.json", weight_map={"lm_head.weight": "../secret.safetensors"})
    return convert(work, "sharded")


@case("an index that is wrong")
def _(work):
    edit(work / "sharded/model.safetensors.index.json", weight_map__ghost="model-00001-of-00004.safetensors")
    return convert(work, "sharded")


@case("an index that lacks a tensor")
def _(work):
    file = work / "sharded/model.safetensors.index.json"
    content = json.loads(file.read_text())
    del content["weight_map"]["lm_head.weight"]
    file.write_text(json.dumps(content))
    return convert(work, "sharded")


@case("a missing shard")
def _(work):
    (work / "sharded/model-00002-of-00004.safetensors").unlink()
    return convert(work, "sharded")


@case("shards without an index")
def _(work):
    (work / "sharded/model.safetensors.index.json").unlink()
    return ask(work, QUESTION, source="sharded")
