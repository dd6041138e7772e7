"""Labels against an implementation of the original's rules written here: for Qwen's kind, and for one with `<s>`."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ivl3_jax.data import ChatTemplate, Processor, Tokenizer
from tests.data.pictures import picture
from tests.data.talks import sample
from tests.data.test_processor import words
from tests.data.test_sentencepiece import train

IGNORE = -100


@pytest.fixture(scope="module")
def internlm(tmp_path_factory):
    return Tokenizer.from_directory(train(tmp_path_factory.mktemp("internlm")))


def as_original(encode, bos, turns, tiles):
    """ids and unshifted labels: every turn by itself; of an answer all but its role header and its last token."""
    ids, labels = ([bos], [IGNORE]) if bos is not None else ([], [])
    block = "<img>" + "<IMG_CONTEXT>" * 4 * tiles + "</img>"
    for role, text in turns:
        header = "<|im_start|>" + {"s": "system", "u": "user", "a": "assistant"}[role] + "\n"
        turn = encode(header + text.replace("<image>", block if role == "u" else "<image>") + "<|im_end|>\n")
        masked = len(encode(header)) if role == "a" else len(turn)
        ids += turn
        labels += [IGNORE] * masked + turn[masked:-1] + [IGNORE] if role == "a" else [IGNORE] * masked
    return ids, labels


@pytest.mark.parametrize("family", ["qwen", "internlm"])
@given(st.none() | words, st.lists(st.tuples(words, words), min_size=1, max_size=3), st.booleans())
@settings(max_examples=60, deadline=None)
def test_against_the_original_rules(tokenizer, internlm, family, system, pairs, seen):
    chosen = {"qwen": tokenizer, "internlm": internlm}[family]
    assert (chosen.bos_id is None) == (family == "qwen")
    turns = [("s", system)] if system is not None else []
    turns += [turn for question, answer in pairs for turn in (("u", question), ("a", answer))]
    if seen:
        turns[-2] = ("u", "<image>\n" + turns[-2][1])
    talk = sample(*turns, images=[picture(120, 60)] * seen)
    encoded = Processor(chosen, ChatTemplate(), 56, 4).encode(talk)
    ids, labels = as_original(chosen.encode, chosen.bos_id, turns, 3)
    assert encoded.tokens.tolist() == ids
    assert encoded.labels.tolist() == [*labels[1:], IGNORE]
    assert encoded.supervised.tolist() == [label != IGNORE for label in labels]


def test_a_block_is_tokenised_once_and_repeated(tokenizer, internlm):
    for chosen in (tokenizer, internlm):
        block = Processor(chosen, ChatTemplate(), 56, 4).block
        for counts in ([1], [13, 1, 40], [2, 2]):
            text = " x ".join(f"<|im_start|>user\n {block(count)} \n图{block(1)}y" for count in counts)
            tiles = np.zeros((sum(counts) + len(counts), 56, 56, 3), np.uint8)
            encoded = Processor(chosen, ChatTemplate(), 56, 4).encode_text(text, tiles)
            bos = [] if chosen.bos_id is None else [chosen.bos_id]
            assert encoded.tokens.tolist() == bos + chosen.encode(text)
