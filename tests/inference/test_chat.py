"""Questions and answers as text, in Python and on the command line."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

import ivl3_jax
from ivl3_jax.cli.main import main
from ivl3_jax.inference.sampling import Sampling
from tests.models.small import checkpoint


@pytest.fixture(scope="module")
def chat():
    return ivl3_jax.Chat(ivl3_jax.load(checkpoint()))


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    file = tmp_path_factory.mktemp("pictures") / "a.png"
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file)
    return file


@pytest.fixture
def answering(chat, monkeypatch):
    """A function that makes the model answer with given tokens."""

    def fix(tokens):
        monkeypatch.setattr(chat.generator, "stream", lambda *_: iter([np.array([token]) for token in tokens]))

    return fix


def test_answers_are_pieces_of_one_text(chat, picture):
    pieces = list(chat.stream("How many?", [picture], max_new_tokens=12))
    assert "".join(pieces) == chat.ask("How many?", [picture], max_new_tokens=12) != ""
    assert chat.ask("How many?", [Image.open(picture)], max_new_tokens=12) == "".join(pieces)
    assert chat.ask("How many?", max_new_tokens=12) != "".join(pieces)


def test_sampling_follows_the_seed(chat):
    first, again, other = (chat.ask("Who?", max_new_tokens=12, sampling=Sampling(3.0, seed=seed)) for seed in (0, 0, 1))
    assert first == again != other


def test_an_answer_ends_at_the_end_token(chat, answering):
    tokenizer = chat.processor.tokenizer
    answering([*tokenizer.encode("three"), tokenizer.id("<|im_end|>"), *tokenizer.encode("more")])
    assert chat.ask("How many?") == "three"


def test_characters_of_several_bytes_come_whole(chat, answering):
    text = "zwölf 🙂 位 ok"
    tokens = chat.processor.tokenizer.encode(text)
    assert len(tokens) > len(text) / 2
    answering(tokens)
    pieces = list(chat.stream("How many?"))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces) and {"🙂", "位"} <= {piece.strip() for piece in pieces}


def test_a_character_cut_off_by_the_limit_is_shown_as_such(chat, answering):
    tokens = chat.processor.tokenizer.encode("ok 🙂")
    answering(tokens[:-1])
    assert chat.ask("How many?").startswith("ok") and chat.ask("How many?").endswith("\ufffd")


def test_pieces_are_never_empty_nor_decoded_from_the_beginning(chat, answering, monkeypatch):
    tokenizer = chat.processor.tokenizer
    text = "one two 🙂 three 位 " * 20
    tokens = [tokenizer.id("<img>"), *tokenizer.encode(text)]
    answering(tokens)
    seen, decode = [], tokenizer.decode
    monkeypatch.setattr(tokenizer, "decode", lambda ids: seen.append(len(ids)) or decode(ids))
    pieces = list(chat.stream("How many?"))
    assert "".join(pieces) == text and all(pieces)
    assert max(seen) < 16 < len(tokens)


def test_a_leading_space_is_kept_where_the_decoder_drops_the_first(chat, answering, monkeypatch):
    """As SentencePiece's decoders do."""
    words = ["▁one", "▁two", "s", "", "▁three"]
    answering(range(len(words)))

    def decode(ids):
        return "".join(words[i] for i in ids).replace("▁", " ").removeprefix(" ")

    monkeypatch.setattr(chat.processor.tokenizer, "decode", decode)
    monkeypatch.setattr(chat.processor.tokenizer, "eos_ids", ())
    assert list(chat.stream("How many?")) == ["one", " two", "s", " three"]


def test_one_image_needs_no_list(chat, picture):
    expected = chat.ask("How many?", [picture], max_new_tokens=4)
    for image in (picture, str(picture), Image.open(picture)):
        assert chat.ask("How many?", image, max_new_tokens=4) == expected


@pytest.mark.parametrize(
    ("question", "tokens", "message"),
    [
        (None, 8, "the question is of type NoneType; it must be a str"),
        (b"Who?", 8, "the question is of type bytes"),
        ("Who?", 0, "max_new_tokens is 0; it must be a whole number of at least 1"),
        ("Who?", 2.5, "max_new_tokens is 2.5; it must be"),
        ("Who?", True, "max_new_tokens is True; it must be"),
        ("caf\udce9", 8, "text of the user message has the lone surrogate"),
    ],
)
def test_arguments_of_other_types_are_refused(question, tokens, message, chat):
    with pytest.raises(ValueError, match=message):
        chat.ask(question, max_new_tokens=tokens)


@pytest.mark.parametrize("question", ["", "  \n"])
def test_an_empty_question_alone_is_refused(question, chat):
    with pytest.raises(ValueError, match="the question is empty and there is no image"):
        chat.ask(question)


def test_images_that_do_not_fit(chat, picture, tmp_path):
    with pytest.raises(ValueError, match="2 <image> placeholders for 1 images"):
        chat.ask("<image> and <image>?", [picture])
    with pytest.raises(ValueError, match="1 <image> placeholders for 0 images"):
        chat.ask("What is in <image>?")
    with pytest.raises((ValueError, OSError), match=r"no\.png"):
        chat.ask("What?", [tmp_path / "no.png"])
    (tmp_path / "text.png").write_text("not an image")
    with pytest.raises(ValueError, match=r"text\.png"):
        chat.ask("What?", [tmp_path / "text.png"])


def test_too_long(chat):
    with pytest.raises(ValueError, match="together they pass the 512 positions that the model takes"):
        chat.ask("Why? " * 20, max_new_tokens=480)


def test_where_the_processor_comes_from(chat):
    model = ivl3_jax.load(checkpoint())
    with pytest.raises(ValueError, match="give the processor that belongs to it"):
        ivl3_jax.Chat(dataclasses.replace(model, source=None))
    with pytest.raises(ValueError, match="system message"):
        ivl3_jax.Chat(model, processor=chat.processor, system="Be brief.")
    spoken = ivl3_jax.Chat(model, system="Be brief.")
    assert spoken.ask("Who?", max_new_tokens=8) != chat.ask("Who?", max_new_tokens=8)


def test_the_command_answers(chat, picture, capsys):
    options = ["--max-new-tokens", "12"]
    assert main(["chat", str(checkpoint()), str(picture), "How many?", *options]) == 0
    assert capsys.readouterr().out == chat.ask("How many?", [picture], max_new_tokens=12) + "\n"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "a directory and a question are needed"),
        (["DIR"], 2, "are required"),
        (["DIR", "no.png", "What?"], 2, "there is no image file 'no.png'; the order is: ivl3 chat DIRECTORY [IMAGE"),
        (["DIR", "PICTURE"], 2, "the question is missing"),
        (["DIR", "What?", "--temprature", "1"], 2, "unrecognized arguments: --temprature"),
        (["DIR", "What?", "--temperature", "warm"], 2, "invalid float value: 'warm'"),
        (["DIR", "What?", "--top-p", "2"], 1, "top_p is 2.0; it must be above 0 and at most 1"),
        (["DIR", "What?", "--max-new-tokens", "0"], 1, "max_new_tokens is 0; it must be a whole number of at least 1"),
        (["PICTURE", "What?"], 1, "a.png is not a directory; a checkpoint is one"),
        (["nowhere", "What?"], 1, "nowhere/config.json does not exist"),
        (["DIR", "<image>?"], 1, "1 <image> placeholders for 0 images"),
    ],
)
def test_the_command_complains_in_one_line(arguments, code, message, picture, capsys):
    known = {"DIR": str(checkpoint()), "PICTURE": str(picture)}
    assert main(["chat", *(known.get(argument, argument) for argument in arguments)]) == code
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert [line for line in error.splitlines() if line.startswith("ivl3: error: ")] == error.splitlines()[-1:]
