"""InternLM's tokenizer: the sentencepiece library's own ids, tokens beside it, and its translation for transformers."""

import io
import json
import re

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st

from ivl3_jax.data import Tokenizer
from ivl3_jax.data.tokenizer import REQUIRED
from ivl3_jax.data.tokenizer_files import LibraryCodec, read_pieces
from tests.data.test_tokenizer import TEXTS

WORDS = (
    "the picture shows a number that is written below the word there are seven digits and it is easy to see them all "
    "图 中 写 着 什 么 数 字 what is written here how many digits are there in the image"
)
SENTENCES = [" ".join(WORDS.split()[i : i + 9]) + f" {i * 37}!" for i in range(len(WORDS.split()))] * 3
RUNS = [*TEXTS, *("a" * n + " " + "=" * n for n in range(1, 12)), "ababababa babab", "  two   and three    spaces  "]


def train(directory, **options):
    """tokenizer.model and the settings beside it: two tokens with ids of unused pieces, the others behind."""
    model = io.BytesIO()
    settings = {
        "vocab_size": 420,
        "model_type": "bpe",
        "byte_fallback": True,
        "remove_extra_whitespaces": False,
        "normalization_rule_name": "identity",
        "user_defined_symbols": ["[UNUSED_1]", "[UNUSED_2]"],
    }
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES), model_writer=model, minloglevel=2, **settings | options
    )
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "tokenizer.model").write_bytes(model.getvalue())
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    size = pieces.get_piece_size()
    numbers = {"<|im_start|>": pieces.piece_to_id("[UNUSED_1]"), "<|im_end|>": pieces.piece_to_id("[UNUSED_2]")}
    beside = [token for token in (*REQUIRED, "<ref>", "</ref>") if token not in numbers]
    decoder = {
        str(n): {"content": token, "special": True}
        for token, n in (numbers | {token: size + i for i, token in enumerate(beside)}).items()
    }
    (directory / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": decoder}))
    return directory


@pytest.fixture(scope="module", params=[True, False], ids=["dummy prefix", "no prefix"])
def pieces(request, tmp_path_factory):
    return train(tmp_path_factory.mktemp("pieces"), add_dummy_prefix=request.param)


def expected_ids(directory, text):
    """The ids as InternLM's Python code finds them: split at added tokens, then the library on every stretch."""
    model = sentencepiece.SentencePieceProcessor(model_file=str(directory / "tokenizer.model"))
    decoder = json.loads((directory / "tokenizer_config.json").read_text())["added_tokens_decoder"]
    added = {fields["content"]: int(n) for n, fields in decoder.items()} | {"<s>": 1, "</s>": 2, "<unk>": 0}
    longest_first = sorted(added, key=len, reverse=True)
    ids = []
    for part in re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text):
        ids += [added[part]] if part in added else model.encode(part)
    return ids


@pytest.mark.parametrize("text", RUNS)
def test_ids_equal_the_library(pieces, text):
    assert Tokenizer.from_directory(pieces).encode(text) == expected_ids(pieces, text)


def test_tokens_and_sizes(pieces):
    tokenizer = Tokenizer.from_directory(pieces)
    model = sentencepiece.SentencePieceProcessor(model_file=str(pieces / "tokenizer.model"))
    assert len(tokenizer) == model.get_piece_size() + 5
    assert tokenizer.bos_id == model.bos_id() == 1
    assert tokenizer.id("<|im_end|>") == model.piece_to_id("[UNUSED_2]") in tokenizer.eos_ids
    assert "[UNUSED_2]" not in tokenizer
    assert "no such piece" not in tokenizer
    assert tokenizer.id("▁the" if "▁the" in tokenizer else "the") == model.encode("see the")[-1]
    assert tokenizer.where.endswith("tokenizer.model")


def test_decoding(pieces):
    tokenizer = Tokenizer.from_directory(pieces)
    text = "<|im_start|>user\nwhat is here<|im_end|>"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids, skip_special=False) == text
    assert tokenizer.decode(ids) == "user\nwhat is here"
    assert tokenizer.decode([*ids, len(tokenizer) + 7]) == tokenizer.decode(ids)  # a row that pads the vocabulary
    for text in RUNS:
        assert tokenizer.decode(tokenizer.encode(text), skip_special=False) == text


KINDS = {
    "plain": {},
    "no prefix": {"add_dummy_prefix": False},
    "pieces of its own": {"user_defined_symbols": ["[UNUSED_1]", "[UNUSED_2]", "\n", "\t\t", "▁▁▁", "<code>"]},
    "normalised": {"normalization_rule_name": "nmt_nfkc", "remove_extra_whitespaces": True},
}


@pytest.fixture(scope="module", params=KINDS)
def both(request, tmp_path_factory):
    codec = read_pieces(train(tmp_path_factory.mktemp("translated"), **KINDS[request.param]))
    return codec, LibraryCodec(codec.translate("<s>"))


@given(
    st.one_of(
        st.text(),
        st.text("ab =\n-\t"),
        st.lists(st.sampled_from([*WORDS.split(), *REQUIRED, "<code>", "  "])).map(" ".join),
    )
)
@example("\x85")
@example(" a  \x85 b ")
@settings(max_examples=400, deadline=None)
def test_the_translation_gives_the_same_ids(both, text):
    pieces, translated = both
    assert translated.encode(text) == pieces.encode(text)


@given(st.one_of(st.text(), st.text("ab =\n-\t🙂図")))
@settings(max_examples=200, deadline=None)
def test_bytes_of_tokens_are_the_text(both, text):
    """With the space that some models put in front; also of characters that have no piece, whose bytes have."""
    pieces, translated = both
    ids = pieces.encode(text)
    found = [codec.bytes_of(number) for codec in both for number in ids]
    assert found[: len(ids)] == found[len(ids) :]
    if pieces.decode(ids, skip_special=False) == text:
        assert b"".join(found[: len(ids)]).decode() in (text, f" {text}")


def test_transformers_opens_the_translation(pieces, tmp_path):
    transformers = pytest.importorskip("transformers")
    codec = read_pieces(pieces)
    codec.translate("<s>").save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    for text in RUNS:
        assert theirs(text)["input_ids"] == [1, *codec.encode(text)]
        assert theirs(text, add_special_tokens=False)["input_ids"] == codec.encode(text)
        if "<" not in text:  # behind a token beside the model, Llama's fast tokenizers show the prefix as a space
            assert theirs.decode(codec.encode(text)) == text


def test_what_cannot_be_translated(tmp_path):
    with pytest.raises(ValueError, match=r"tokenizer.model: only a BPE model of sentencepiece"):
        read_pieces(train(tmp_path / "unigram", model_type="unigram", vocab_size=350)).translate(None)
    directory = train(tmp_path / "gap")
    file = directory / "tokenizer_config.json"
    fields = json.loads(file.read_text())
    fields["added_tokens_decoder"]["900"] = {"content": "<quad>", "special": True}
    file.write_text(json.dumps(fields))
    assert Tokenizer.from_directory(directory).id("<quad>") == 900
    with pytest.raises(ValueError, match="'<quad>' has the id 900.*must have no gaps"):
        read_pieces(directory).translate(None)


def test_bad_files(tmp_path):
    directory = train(tmp_path / "bad")
    (directory / "tokenizer.model").write_bytes(b"nothing")
    with pytest.raises(ValueError, match="tokenizer.model: not a sentencepiece model"):
        Tokenizer.from_directory(directory)
