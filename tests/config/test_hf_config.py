"""config.json of the `-hf` layout, both ways."""

import copy
import json

import pytest

from ivl3_jax.config import PRESETS, InternVLConfig
from ivl3_jax.hf_config import from_hf, read_config, to_hf
from ivl3_jax.original_config import to_original
from ivl3_jax.written_fields import with_dtype

FIELDS = to_hf(InternVLConfig.preset("InternVL3-1B"))


def edited(place, value=None):
    """FIELDS with one field, named by dots, set or (None) removed."""
    fields = copy.deepcopy(FIELDS)
    *parents, name = place.split(".")
    section = fields
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[name]
    else:
        section[name] = value
    return fields


@pytest.mark.parametrize("size", PRESETS)
def test_published_sizes_round_trip(size, tmp_path):
    config = InternVLConfig.preset(size)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    assert read_config(tmp_path) == config


@pytest.mark.parametrize("size", PRESETS)
def test_transformers_reads_and_writes_the_same(size, transformers, tmp_path):
    config = InternVLConfig.preset(size)
    (tmp_path / "config.json").write_text(json.dumps(to_hf(config)))
    transformers.AutoConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "theirs")
    assert read_config(tmp_path / "theirs") == config


REQUIRED = [
    "model_type", "vision_config", "text_config", "downsample_ratio", "image_token_id", "vision_feature_layer",
    *(f"vision_config.{name}" for name in (
        "num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size", "image_size", "patch_size",
        "norm_type", "layer_norm_eps", "use_qk_norm", "attention_bias")),
    *(f"text_config.{name}" for name in (
        "model_type", "num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads",
        "intermediate_size", "vocab_size", "max_position_embeddings", "rms_norm_eps")),
]  # fmt: skip


@pytest.mark.parametrize("place", REQUIRED)
def test_a_missing_field_is_named(place):
    with pytest.raises(ValueError) as error:
        from_hf(edited(place), "some/config.json")
    assert str(error.value).startswith(f"some/config.json: {place} is missing")


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("model_type", "internvl_chat", "model_type is 'internvl_chat'; supported: 'internvl'"),
        ("text_config.model_type", "gpt2", "text_config.model_type is 'gpt2'; supported: 'qwen2' or 'llama'"),
        ("text_config.hidden_act", "gelu", "text_config.hidden_act is 'gelu'; supported: 'silu'"),
        ("text_config.use_sliding_window", True, "text_config.use_sliding_window is True; supported: False"),
        ("vision_config.hidden_act", "relu", "vision_config.hidden_act is 'relu'; supported: 'gelu'"),
        ("vision_config.use_mean_pooling", False, "vision_config.use_mean_pooling is False; supported: True"),
        ("vision_config.image_size", [448, 336], "vision_config.image_size is [448, 336]; it must be one whole number"),
        ("vision_config.norm_type", "group_norm", "VisionConfig.norm is 'group_norm'; it must be one of"),
        ("vision_config.num_attention_heads", 15, "VisionConfig.width is 1024; it must be a multiple of heads"),
        ("vision_config.hidden_size", "1024", "vision_config.hidden_size is '1024'; it must be a whole number"),
        ("vision_config.num_hidden_layers", 2.5, "vision_config.num_hidden_layers is 2.5; it must be a whole number"),
        ("text_config.num_attention_heads", 0, "num_attention_heads is 0; it must be a whole number of at least 1"),
        ("text_config.max_position_embeddings", "32k", "text_config.max_position_embeddings is '32k'"),
        ("image_token_id", "<IMG_CONTEXT>", "image_token_id is '<IMG_CONTEXT>'; it must be a whole number"),
        ("vision_config", [], "vision_config is []; it must be a JSON object"),
        ("vision_feature_select_strategy", "full", "vision_feature_select_strategy is 'full'; supported: 'default'"),
        ("vision_feature_layer", [-1, -2], "vision_feature_layer is [-1, -2]; it must be a whole number"),
        ("vision_feature_layer", 99, "InternVLConfig.select_layer is 99; with 24 ViT layers"),
        ("downsample_ratio", 0.4, "downsample_ratio is 0.4; it must be one over a whole number, as 0.5"),
        ("text_config.num_key_value_heads", 4, "DecoderConfig.heads is 14; it must be a multiple of kv_heads"),
        ("text_config.rope_parameters", {"rope_type": "yarn"}, "text_config.rope type is 'yarn'; supported: default"),
        ("vision_config.drop_path_rate", "x", "vision_config.drop_path_rate is 'x'; it must be a finite number"),
        ("vision_config.layer_norm_eps", float("nan"), "vision_config.layer_norm_eps is nan; it must be a finite"),
        ("vision_config.initializer_range", 10**400, "it must be a finite number"),
        ("vision_config.image_size", [[32], [32]], "vision_config.image_size is [[32], [32]]; it must be one whole"),
        ("vision_config.image_size", [], "vision_config.image_size is []; it must be one whole number or two equal"),
        ("vision_config.use_qk_norm", "no", "vision_config.use_qk_norm is 'no'; it must be true or false"),
        ("vision_config.attention_bias", "x", "vision_config.attention_bias is 'x'; it must be true or false"),
        ("text_config.head_dim", 32.0, "text_config.head_dim is 32.0; it must be a whole number of at least 1"),
        ("text_config.rms_norm_eps", "1e-6", "text_config.rms_norm_eps is '1e-6'; it must be a finite number"),
        ("text_config.rope_scaling", 3, "text_config.rope_scaling is 3; it must be a JSON object"),
        ("text_config.rope_parameters", "x", "text_config.rope_parameters is 'x'; it must be a JSON object"),
        ("text_config.rope_parameters", {"rope_theta": "x"}, "text_config.rope_theta is 'x'; it must be a finite"),
        ("text_config.rope_parameters", {"factor": []}, "text_config.factor is []; it must be a finite number"),
        ("text_config.rope_parameters", {"rope_type": "dynamic"}, "text_config.rope factor is missing"),
        ("text_config.partial_rotary_factor", 0.5, "text_config.partial_rotary_factor is 0.5; supported: 1"),
        ("text_config.rope_parameters", {"partial_rotary_factor": 0.5}, "text_config.partial_rotary_factor is 0.5"),
        ("text_config.layer_types", ["full_attention", "sliding_attention"], "supported: 'full_attention' for every"),
        ("text_config.layer_types", "full_attention", "text_config.layer_types is 'full_attention'"),
        ("text_config.original_max_position_embeddings", 4096, "is 4096; supported: 32768 or None (the same as"),
        ("text_config.rope_parameters", {"original_max_position_embeddings": 4096}, "is 4096; supported: 32768"),
        ("text_config.num_hidden_layers", 10**9, "num_hidden_layers is 1000000000; it must be at most 1000"),
        ("vision_config.num_hidden_layers", 10**9, "vision_config.num_hidden_layers is 1000000000; it must be at most"),
        ("text_config.internlm_family", "internlm4", "internlm_family is 'internlm4'; supported: 'internlm2' or"),
        ("tie_word_embeddings", "false", "tie_word_embeddings is 'false'; it must be true or false"),
        ("downsample_ratio", True, "downsample_ratio is True; it must be a finite number"),
    ],
)
def test_an_unsupported_value_is_named(place, value, message):
    with pytest.raises(ValueError) as error:
        from_hf(edited(place, value), "some/config.json")
    assert message in str(error.value) and "some/config.json" in str(error.value)


@pytest.mark.parametrize("name", ["drop_path_rate", "layer_scale_init_value", "initializer_range"])
def test_null_is_no_number(name):
    fields = copy.deepcopy(FIELDS)
    fields["vision_config"][name] = None
    with pytest.raises(ValueError, match=f"vision_config.{name} is None; it must be a finite number"):
        from_hf(fields)


def test_what_published_files_state_without_effect():
    fields = copy.deepcopy(FIELDS)
    fields["text_config"] |= {"sliding_window": 32768, "max_window_layers": 21, "use_sliding_window": False}
    fields["text_config"] |= {"layer_types": ["full_attention"] * 24, "partial_rotary_factor": 1.0}
    fields["text_config"]["rope_parameters"] |= {"original_max_position_embeddings": 32768}
    assert from_hf(fields) == from_hf(FIELDS)
    fields["text_config"] |= dict.fromkeys(("layer_types", "partial_rotary_factor", "sliding_window"))
    assert from_hf(fields) == from_hf(FIELDS)


def test_the_dtype_is_stated_at_every_level():
    for write, text in ((to_hf, "text_config"), (to_original, "llm_config")):
        fields = write(InternVLConfig.preset("InternVL3-1B"))
        fields |= {"dtype": "float32", text: fields[text] | {"dtype": "float32", "torch_dtype": "float32"}}
        found = with_dtype(fields, "bfloat16")
        assert [part["torch_dtype"] for part in (found, found["vision_config"], found[text])] == ["bfloat16"] * 3
        assert "dtype" not in found | found[text]
        assert found.keys() - {"torch_dtype"} == fields.keys() - {"dtype"}


def test_head_dim_may_be_left_to_the_width():
    fields = copy.deepcopy(FIELDS)
    fields["text_config"]["head_dim"] = None
    assert from_hf(fields) == from_hf(edited("text_config.head_dim")) == from_hf(FIELDS)


def test_rope_is_found_in_either_place():
    old = edited("text_config.rope_parameters")
    old["text_config"] |= {"rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0}}
    assert from_hf(old) == from_hf(FIELDS) == InternVLConfig.preset("InternVL3-1B")
    none = edited("text_config.rope_parameters")
    del none["text_config"]["rope_theta"]
    with pytest.raises(ValueError, match=r"text_config\.rope_theta is missing, there and in rope_parameters"):
        from_hf(none)


@pytest.mark.parametrize(("outer", "inner", "tied"), [(True, False, True), (None, True, True), (False, True, False)])
def test_tying_is_read_from_outside_first(outer, inner, tied):
    fields = edited("tie_word_embeddings", outer)
    fields["text_config"]["tie_word_embeddings"] = inner
    assert from_hf(fields).decoder.tie_embeddings is tied


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"config\.json does not exist; a checkpoint directory holds"):
        read_config(tmp_path)
    for content in (b"{", b'{"model_type": "\xe9"}', b"[" * 100_000):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json is not valid JSON"):
            read_config(tmp_path)
    with pytest.raises(NotADirectoryError, match=r"config\.json is not a directory; a checkpoint is one"):
        read_config(tmp_path / "config.json")
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config\.json: the file is \[\]; it must be a JSON object"):
        read_config(tmp_path)
