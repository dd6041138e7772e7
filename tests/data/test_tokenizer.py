"""Tokenizers: round trips, special tokens, equality with transformers, and what a bad directory is told."""

import json
import shutil
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data import ChatTemplate, Message, Tokenizer
from ivl3_jax.data.tokenizer_training import SPECIALS, train_tokenizer, write_tokenizer_files

TEXTS = [
    "What number is written?",
    "  it's 12345,  you'll see\n\n\nthree\r\n lines\t here ",
    "图中写着什么数字？ é e\u0301 🙂👩‍👩‍👧 \x00 \ufeff",
    "<|im_start|>user\n<img><IMG_CONTEXT><IMG_CONTEXT></img>\nHow many?<|im_end|>\n<|im_start|>assistant\n",
    "a<ref>the cat</ref><box>[[12, 34, 56, 78]]</box> <|endoftext|><quad></quad> <|im_end|> <|im_end>",
    "",
]


def test_special_tokens_are_last_and_consecutive(trained):
    size = trained.get_vocab_size()
    assert [trained.token_to_id(token) for token in SPECIALS] == list(range(size - len(SPECIALS), size))
    assert SPECIALS[:6] == ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>")


def test_training_is_deterministic_and_respects_its_size():
    texts = ["one two three two three " * 5]
    assert train_tokenizer(texts, 280).to_str() == train_tokenizer(texts, 280).to_str()
    assert train_tokenizer(texts, 272).get_vocab_size() == 272
    with pytest.raises(ValueError, match="at least 268"):
        train_tokenizer(texts, 267)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_round_trip(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == unicodedata.normalize("NFC", text)


@given(st.text())
@settings(max_examples=200, deadline=None)
def test_bytes_of_tokens_are_the_text(tokenizer, text):
    """Also of tokens that are parts of a character."""
    found = b"".join(map(tokenizer.bytes_of, tokenizer.encode(text)))
    assert found == unicodedata.normalize("NFC", text).encode()


def test_bytes_of_special_tokens_and_of_none(tokenizer):
    assert tokenizer.bytes_of(tokenizer.id("<IMG_CONTEXT>")) == b"<IMG_CONTEXT>"
    assert tokenizer.bytes_of(len(tokenizer) + 7) == b""


def test_special_tokens_in_text(tokenizer):
    ids = tokenizer.encode("<img><IMG_CONTEXT></img>a<|im_end|>")
    assert ids[:3] == [tokenizer.id("<img>"), tokenizer.id("<IMG_CONTEXT>"), tokenizer.id("</img>")]
    assert tokenizer.decode(ids) == "a"
    assert tokenizer.decode(ids, skip_special=False) == "<img><IMG_CONTEXT></img>a<|im_end|>"


@pytest.mark.parametrize("text", TEXTS)
def test_ids_equal_transformers(directory, tokenizer, text):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    assert tokenizer.encode(text) == theirs(text)["input_ids"]
    assert theirs.video_token_id == len(tokenizer)  # past the vocabulary, as in the published files
    assert theirs.context_image_token_id == tokenizer.id("<IMG_CONTEXT>")
    assert (theirs.eos_token, theirs.pad_token) == ("<|im_end|>", "<|endoftext|>")


def test_chat_text_equals_transformers(directory):
    transformers = pytest.importorskip("transformers")
    theirs = transformers.AutoTokenizer.from_pretrained(directory)
    turns = [("system", "Be brief."), ("user", "How many?"), ("assistant", "Three.\n"), ("user", " And now? ")]
    for start in (0, 1):
        expected = theirs.apply_chat_template(
            [{"role": role, "content": text} for role, text in turns[start:]],
            tokenize=False,
            add_generation_prompt=True,
        )
        assert ChatTemplate().prompt([Message(*turn) for turn in turns[start:]]) == expected


def test_eos_ids_unite_the_file_and_the_turn_end(directory, tokenizer, tmp_path):
    assert tokenizer.eos_ids == (tokenizer.id("<|endoftext|>"), tokenizer.id("<|im_end|>"))
    copy = shutil.copytree(directory, tmp_path / "copy")
    (copy / "generation_config.json").unlink()
    assert Tokenizer.from_directory(copy).eos_ids == (tokenizer.id("<|im_end|>"),)
    (copy / "generation_config.json").write_text('{"eos_token_id": "no"}')
    with pytest.raises(ValueError, match=r"generation_config.json: eos_token_id is 'no'"):
        Tokenizer.from_directory(copy)


def test_eos_ids_of_every_file_and_level(directory, tmp_path):
    copy = shutil.copytree(directory, tmp_path / "copy")
    config = json.loads((copy / "config.json").read_text())
    places = {"eos_token_id": 3, "text_config": {"eos_token_id": [4, 5]}, "llm_config": {"eos_token_id": 6}}
    for name, stated in places.items():
        config[name] = config.get(name, {}) | stated if isinstance(stated, dict) else stated
    (copy / "config.json").write_text(json.dumps(config))
    (copy / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [7, -1, 10**6]})
    )  # two past the vocabulary
    settings = json.loads((copy / "tokenizer_config.json").read_text())
    ends = [3, 4, 5, 6, 7]
    for token, found in (
        ("<|endoftext|>", True),
        ({"content": "<|endoftext|>"}, True),
        ("<none>", False),
        (None, False),
    ):
        (copy / "tokenizer_config.json").write_text(json.dumps(settings | {"eos_token": token}))
        tokenizer = Tokenizer.from_directory(copy)
        named = [tokenizer.id("<|endoftext|>")] if found else []
        assert tokenizer.eos_ids == tuple(sorted([*ends, *named, tokenizer.id("<|im_end|>")]))
    config["llm_config"]["eos_token_id"] = [2.5]
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        ValueError, match=r"config.json: llm_config.eos_token_id is \[2.5\]; it must be an integer or a"
    ):
        Tokenizer.from_directory(copy)


def test_truncation_and_padding_of_the_file_are_off(trained, tmp_path):
    write_tokenizer_files(trained, tmp_path)
    content = json.loads((tmp_path / "tokenizer.json").read_text())
    content["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    assert len(Tokenizer.from_directory(tmp_path).encode("1 2 3 4 5 6 7 8")) > 3


def test_bos_where_the_config_asks_for_it(trained, tmp_path):
    write_tokenizer_files(trained, tmp_path)
    file = tmp_path / "tokenizer_config.json"
    file.write_text(json.dumps({"add_bos_token": True, "bos_token": {"content": "<|endoftext|>"}}))
    assert Tokenizer.from_directory(tmp_path).bos_id == trained.token_to_id("<|endoftext|>")
    file.write_text(json.dumps({"add_bos_token": True, "bos_token": "<s>"}))
    with pytest.raises(ValueError, match="bos_token '<s>' is no token"):
        Tokenizer.from_directory(tmp_path)


def test_bad_directories(directory, tmp_path):
    with pytest.raises(
        FileNotFoundError, match="has no tokenizer: neither tokenizer.json, nor vocab.json and merges.txt"
    ):
        Tokenizer.from_directory(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"tokenizer.json: not a tokenizer"):
        Tokenizer.from_directory(tmp_path)
    content = json.loads((directory / "tokenizer.json").read_text())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != "<img>"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"tokenizer.json: lacks the tokens <img>;"):
        Tokenizer.from_directory(tmp_path)
    with pytest.raises(ValueError, match="has no token '<nothing>'"):
        Tokenizer.from_directory(directory).id("<nothing>")
