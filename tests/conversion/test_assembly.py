"""`ivl3 assemble`: a published ViT, a published language model and a fresh projector in one checkpoint."""

import json

import jax
import numpy as np
import pytest
from safetensors.numpy import load_file

import ivl3_jax
from ivl3_jax.cli.main import main
from ivl3_jax.conversion.assembled_tokenizer import TOKENS
from ivl3_jax.conversion.assembly import assemble
from ivl3_jax.conversion.convert import convert
from ivl3_jax.data import Tokenizer
from ivl3_jax.models.model import Model
from tests.conversion.published import write_internlm3, write_qwen_tokenizer, write_vit
from tests.conversion.test_round_trip import assert_same
from tests.training.runs import write_data, write_recipe

HEAD, TABLE = "language_model.lm_head.weight", "language_model.model.embed_tokens.weight"


@pytest.fixture(scope="module", params=["tied", "untied"])
def qwen(request, transformers, torch, tmp_path_factory):
    """A language model of transformers' own, whose table is longer than its tokenizer; that, and the model."""
    directory = tmp_path_factory.mktemp("qwen") / "Qwen2.5-tiny"
    known = write_qwen_tokenizer(directory)
    torch.manual_seed(0)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(
            hidden_size=48,
            num_hidden_layers=3,
            num_attention_heads=6,
            num_key_value_heads=2,
            intermediate_size=80,
            vocab_size=known + 30,
            max_position_embeddings=512,
            tie_word_embeddings=request.param == "tied",
            bos_token_id=known - 3,
            eos_token_id=known - 3,
        )
    )
    model.to(torch.bfloat16).save_pretrained(directory, max_shard_size="60KB")
    assert len(list(directory.glob("*.safetensors"))) > 1
    return directory, known, model


def original(directory, out):
    """Every tensor of a checkpoint under its name in the original layout."""
    convert(directory, out, layout="original")
    return load_file(out / "model.safetensors")


def test_tensors_are_those_of_the_sources(qwen, torch, tmp_path):
    directory, known, model = qwen
    vit, eyes = write_vit(tmp_path / "InternViT-tiny", shards=2)
    config = assemble(eyes, directory, tmp_path / "out", seed=7)
    assert config.decoder.vocab == known + len(TOKENS) and not config.decoder.tie_embeddings
    found = original(tmp_path / "out", tmp_path / "original")
    assert {tensor.dtype.name for tensor in found.values()} == {"bfloat16"}
    projector = {name: found.pop(name) for name in list(found) if name.startswith("mlp1.")}
    assert len(projector) == 6

    # As the authors' code does it: transformers' own resizing, then the mean for the rows of the new tokens.
    model = type(model).from_pretrained(directory, dtype=torch.float32)
    resized = model.resize_token_embeddings(known + len(TOKENS))
    assert resized.weight.shape[0] == config.decoder.vocab
    expected = {f"language_model.{name}": value for name, value in model.state_dict().items()}
    head = expected.pop("language_model.lm_head.weight")
    mean = head[: -len(TOKENS)].mean(dim=0).to(torch.bfloat16).float().numpy()
    rows = found.pop(HEAD)
    np.testing.assert_array_equal(rows[:known].astype(np.float32), head[:known].numpy())
    for row in rows[known:].astype(np.float32):
        np.testing.assert_allclose(row, mean, rtol=2**-8, atol=1e-9)
    assert_same(
        {name: value.astype(np.float32) for name, value in found.items()},
        {name: value.detach().numpy() for name, value in expected.items()}
        | {f"vision_model.{name}": value.astype(np.float32) for name, value in vit.items()},
    )


def test_transformers_opens_it(qwen, transformers, tmp_path):
    directory, known, _ = qwen
    _, eyes = write_vit(tmp_path / "vit")
    assemble(eyes, directory, tmp_path / "out")
    load = transformers.InternVLForConditionalGeneration.from_pretrained
    model, report = load(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert model.get_input_embeddings().weight.shape[0] == known + len(TOKENS)
    assert model.lm_head.weight is not model.get_input_embeddings().weight
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.convert_tokens_to_ids(list(TOKENS)) == list(range(known, known + len(TOKENS)))
    assert tokenizer.eos_token == "<|im_end|>"
    ours = Tokenizer.from_directory(tmp_path / "out")
    text = "<|im_start|>user\n<img><IMG_CONTEXT></img>\nHow many digits?<|im_end|>\n<ref>3</ref>"
    assert tokenizer(text)["input_ids"] == ours.encode(text)
    assert ours.decode(ours.encode(text)) == "user\n\nHow many digits?\n3"
    assert ours.eos_ids == (known - 3, known - 1)
    fields = json.loads((tmp_path / "out" / "config.json").read_text())
    assert fields["eos_token_id"] == known - 3 and fields["image_token_id"] == known + 2
    assert "ViT of `vit`, decoder of `Qwen2.5-tiny`" in (tmp_path / "out" / "README.md").read_text()


def test_a_step_is_trained_from_it(qwen, tmp_path, capsys):
    directory, _, _ = qwen
    _, eyes = write_vit(tmp_path / "vit")
    out = tmp_path / "assembled"
    command = ["assemble", "--vision", str(eyes), "--decoder", str(directory), "--output", str(out), "--seed", "3"]
    assert main(command) == 0
    assert "2 ViT layers and 3 decoder layers" in capsys.readouterr().out
    model = ivl3_jax.load(out)
    fresh = Model.init(model.config, seed=3).params["projector"]
    rounded = jax.tree.map(lambda leaf: leaf.astype("bfloat16").astype("float32"), fresh)
    jax.tree.map(np.testing.assert_array_equal, model.params["projector"], rounded)
    recipe = write_recipe(
        tmp_path / "recipe.yaml",
        write_data(tmp_path),
        model={"checkpoint": str(out), "drop_path": 0.0},
        train={"steps": 1, "warmup_steps": 0, "vision": {"train": False}, "decoder": {"train": False}},
        data={"max_tiles": 4, "tokens": 300},
    )
    assert main(["train", "--config", str(recipe)]) == 0
    after = ivl3_jax.load(tmp_path / "run" / "checkpoint").params
    assert all((a != b).any() for a, b in zip(*map(jax.tree.leaves, (after["projector"], rounded)), strict=True))
    for name in ("vision", "decoder"):
        jax.tree.map(np.testing.assert_array_equal, after[name], model.params[name])


def test_internlm3(tmp_path):
    """A sentencepiece tokenizer; and a table that is longer than it by more than the new tokens."""
    vit, eyes = write_vit(tmp_path / "vit", "6b", layers=4)
    tensors, directory = write_internlm3(tmp_path / "internlm3")
    config = assemble(eyes, directory, tmp_path / "out", vision_layers=3)
    assert (config.decoder.family, config.vision.layers) == ("internlm3", 3)
    ids = [Tokenizer.from_directory(tmp_path / "out").id(token) for token in TOKENS]
    assert ids == list(range(config.decoder.vocab - len(TOKENS), config.decoder.vocab))
    assert config.image_token_id == ids[2]
    found = original(tmp_path / "out", tmp_path / "original")
    for name, value in tensors.items():
        if name not in ("lm_head.weight", "model.embed_tokens.weight"):
            np.testing.assert_array_equal(found[f"language_model.{name}"], value)
    np.testing.assert_array_equal(found[TABLE], tensors["model.embed_tokens.weight"][: config.decoder.vocab])
    kept = {name: value for name, value in vit.items() if "layers.3." not in name}
    assert len(kept) < len(vit)
    assert_same({name: v for name, v in found.items() if name.startswith("vision")},
                {f"vision_model.{name}": value for name, value in kept.items()})  # fmt: skip


def test_rows_that_the_table_lacks_are_drawn(qwen, transformers, torch, tmp_path):
    directory, known, model = qwen
    _, eyes = write_vit(tmp_path / "vit")
    short = tmp_path / "short"
    model = type(model).from_pretrained(directory)
    model.resize_token_embeddings(known)
    model.save_pretrained(short)
    for file in directory.glob("*token*"):
        (short / file.name).write_bytes(file.read_bytes())
    rows = []
    for seed in (0, 0, 1):
        out = tmp_path / f"out{len(rows)}"
        assemble(eyes, short, out, seed=seed)
        rows.append(load_file(out / "model.safetensors")["model.language_model.embed_tokens.weight"][known:])
    np.testing.assert_array_equal(rows[0], rows[1])
    assert (rows[0] != rows[2]).mean() > 0.9
    assert rows[0].astype(np.float64).std() == pytest.approx(0.02, rel=0.2)  # the config's initializer_range


def edited(directory, name, **fields):
    file = directory / name
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


MISTAKES = {
    "the ViT is a whole model": (
        lambda vit, llm: edited(vit, "config.json", architectures=["InternVLChatModel"]),
        "vit/config.json: architectures is ['InternVLChatModel']; supported: ['InternVisionModel']",
    ),
    "a field of the ViT": (
        lambda vit, llm: edited(vit, "config.json", hidden_size="wide"),
        "vit/config.json: hidden_size is 'wide'; it must be a whole number of at least 1",
    ),
    "another decoder": (
        lambda vit, llm: edited(llm, "config.json", architectures=["MambaForCausalLM"]),
        "internlm3/config.json: architectures is ['MambaForCausalLM']; it must be a list of one of Qwen2ForCausalLM",
    ),
    "layers that config.json does not know": (
        lambda vit, llm: edited(vit, "config.json", num_hidden_layers=1),
        "vit does not fit its config.json. Tensors without a place in the model, 14: encoder.layers.1.",
    ),
    "a larger tokenizer than table": (
        lambda vit, llm: edited(llm, "config.json", vocab_size=100),
        "internlm3/config.json: vocab_size is 100, but the tokenizer beside it has 420 tokens",
    ),
    "no tokenizer": (lambda vit, llm: (llm / "tokenizer.model").unlink(), "internlm3: has no tokenizer"),
    "no turns": (
        lambda vit, llm: edited(llm, "tokenizer_config.json", added_tokens_decoder={}),
        "internlm3/tokenizer.model: lacks the tokens <|im_start|> <|im_end|>",
    ),
    "no ViT": (lambda vit, llm: (vit / "model.safetensors").unlink(), "vit holds no weights"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes(name, tmp_path, capsys):
    make, message = MISTAKES[name]
    (_, vit), (_, llm) = write_vit(tmp_path / "vit"), write_internlm3(tmp_path / "internlm3")
    make(vit, llm)
    arguments = ["--vision", str(vit), "--decoder", str(llm), "--output", str(tmp_path / "out")]
    assert main(["assemble", *arguments]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_more_layers_than_there_are(tmp_path, capsys):
    _, vit = write_vit(tmp_path / "vit")
    arguments = ["--vision", str(vit), "--decoder", str(vit), "--output", str(tmp_path / "out")]
    assert main(["assemble", *arguments, "--vision-layers", "3"]) == 1
    assert "config.json: num_hidden_layers is 2, but 3 are to be taken; valid: 1 to 2" in capsys.readouterr().err
    assert main(["assemble", *arguments[:4]]) == 2
    assert "output must be given" in capsys.readouterr().err
