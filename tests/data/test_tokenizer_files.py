"""Qwen's older tokenizer files: the same ids as tokenizer.json gives, and what wrong ones are told."""

import json
import shutil

import pytest

from ivl3_jax.data import Processor, Tokenizer
from ivl3_jax.data.tokenizer_training import SPECIALS
from ivl3_jax.hf_config import read_config
from ivl3_jax.original_config import to_original
from tests.data.test_tokenizer import TEXTS


@pytest.fixture
def older(trained, directory, tmp_path):
    """The directory with vocab.json, merges.txt and added_tokens.json instead of tokenizer.json, as the 1B has them."""
    copy = shutil.copytree(directory, tmp_path / "older")
    (copy / "tokenizer.json").unlink()
    (copy / "tokenizer_config.json").unlink()
    trained.model.save(str(copy))
    (copy / "added_tokens.json").write_text(json.dumps({token: trained.token_to_id(token) for token in SPECIALS}))
    return copy


def with_settings(directory, decoder):
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    return directory


@pytest.mark.parametrize("text", TEXTS)
def test_the_same_ids(older, tokenizer, text):
    found = Tokenizer.from_directory(older)
    assert len(found) == len(tokenizer)
    assert found.encode(text) == tokenizer.encode(text)
    assert found.decode(found.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert found.where.endswith("vocab.json")


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers(older, text):
    transformers = pytest.importorskip("transformers")
    added = json.loads((older / "added_tokens.json").read_text())
    decoder = {str(number): {"content": token, "special": True} for token, number in added.items()}
    (older / "added_tokens.json").unlink()
    with_settings(older, decoder)
    theirs = transformers.Qwen2Tokenizer.from_pretrained(older)
    assert Tokenizer.from_directory(older).encode(text) == theirs(text)["input_ids"]


def test_what_is_not_special_stays_in_the_text(older, trained):
    number = trained.token_to_id("<ref>")
    with_settings(older, {str(number): {"content": "<ref>", "special": False}})
    found = Tokenizer.from_directory(older)
    assert found.encode("<ref>") == [number]
    assert found.decode([number]) == "<ref>"
    assert found.decode([number + 1]) == ""


def test_an_original_directory(older, directory):
    config = read_config(directory)
    (older / "preprocessor_config.json").write_text(json.dumps({"size": 448, "do_center_crop": True}))
    fields = to_original(config)
    del fields["img_context_token_id"]
    (older / "config.json").write_text(json.dumps(fields | {"max_dynamic_patch": 5}))
    assert read_config(older) == config
    assert (processor := Processor.from_directory(older)).max_tiles == 5
    assert processor.tokenizer.id("<IMG_CONTEXT>") == config.image_token_id
    for field, value, words in (
        ("use_thumbnail", False, "use_thumbnail is False; only true can be used"),
        ("max_dynamic_patch", 0, "min_dynamic_patch is 1 and max_dynamic_patch 0; they must be integers"),
    ):
        (older / "config.json").write_text(json.dumps(fields | {field: value}))
        with pytest.raises(ValueError, match=f"config.json: {words}"):
            Processor.from_directory(older)


def test_bad_files(older, trained):
    added = json.loads((older / "added_tokens.json").read_text())

    def complaint(content):
        (older / "added_tokens.json").write_text(json.dumps(content))
        with pytest.raises(ValueError, match=".") as caught:
            Tokenizer.from_directory(older)
        return str(caught.value)

    assert "'<ref>' has the id 'x'; it must be a whole number" in complaint(added | {"<ref>": "x"})
    gap = {token: number + 1 for token, number in added.items()}
    assert "is to have the id" in complaint(gap)
    assert "do not belong together" in complaint(gap)
    with_settings(older, {"-1": {"content": "a"}})
    assert "added_tokens_decoder['-1'] is {'content': 'a'}; it must be an id's token" in complaint({})
    with_settings(older, {str(trained.token_to_id("<ref>")): {"content": "<fer>"}})
    assert "but '<ref>' in added_tokens.json; they must agree" in complaint({"<ref>": trained.token_to_id("<ref>")})
    (older / "merges.txt").write_text("a b c\n")
    assert "not a vocabulary and its merges" in complaint({})
