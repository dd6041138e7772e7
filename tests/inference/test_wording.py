"""Text that comes token by token: whole characters, and nothing of a stop string."""

import pytest

from ivl3_jax.data.tokenizer import Tokenizer
from ivl3_jax.inference.wording import Wording
from tests.models.small import checkpoint


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.from_directory(checkpoint())


def told(tokenizer, text, stop=()):
    wording = Wording(tokenizer, stop)
    pieces = []
    for token in tokenizer.encode(text):
        pieces.append(wording.add(token))
        if wording.stopped:
            break
    pieces.append(wording.end())
    return [piece for piece in pieces if piece], wording.stopped


def test_pieces_are_whole_characters(tokenizer):
    text = "zwölf 🙂 位 ok"
    pieces, stopped = told(tokenizer, text)
    assert "".join(pieces) == text and not stopped
    assert len(pieces) > 5 and not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize(
    ("stop", "expected"),
    [
        (["three"], "one two "),
        (["nothing of it"], "one two three two"),
        (["e tw"], "on"),
        (["wo th", "two"], "one "),
        (["two "], "one "),
        (["one"], ""),
        ([""], "one two three two"),
        (["two!"], "one two three two"),
    ],
)
def test_an_answer_ends_before_a_stop_string(tokenizer, stop, expected):
    pieces, stopped = told(tokenizer, "one two three two", stop)
    assert "".join(pieces) == expected
    assert stopped == (expected != "one two three two")


def test_what_may_begin_a_stop_string_is_held_back(tokenizer):
    wording = Wording(tokenizer, ["two three"])
    text = ""
    for token in tokenizer.encode("one two"):
        text += wording.add(token)
    assert text == "one "
    assert wording.end() == "two"


def test_nothing_is_told_after_a_stop(tokenizer):
    wording = Wording(tokenizer, ["b"])
    said = [wording.add(token) for token in tokenizer.encode("a b c d")]
    assert "".join(said) + wording.end() == "a "
