"""Turns to ids and labels. An image block stands with a single context id until its segment is expanded.

Tokenised whole, a block of 3,000 context tokens would take longer than the text around it.
"""

import re
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np

from ivl3_jax.data.template import Segment
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, Tokenizer
from ivl3_jax.data.units import Text

BLOCK = IMAGE_START + IMAGE_CONTEXT + IMAGE_END

# m ids, and which of them are trained on, bool [m].
Turn: TypeAlias = tuple[list[int], np.ndarray]

_RUN = re.compile(f"(?:{re.escape(IMAGE_CONTEXT)})+")


def tokenise(tokenizer: Tokenizer, segment: Segment) -> Turn:
    """The ids of a turn; of an answer they are trained on from behind the role header to `<|im_end|>`.

    The header has as many ids as it has by itself (InternVL, `preprocess_internvl2_5`).
    """
    ids = tokenizer.encode(segment.text)
    supervised = np.zeros(len(ids), bool)
    if segment.supervised:
        # The line break behind the answer is one token in the vocabulary of every InternVL.
        supervised[len(tokenizer.encode(segment.header)) : -1] = True
    return ids, supervised


def joined(turns: Sequence[Turn]) -> Turn:
    """Turns one behind the other."""
    return [i for ids, _ in turns for i in ids], np.concatenate([supervised for _, supervised in turns])


def folded(text: str) -> tuple[str, list[int]]:
    """A text with each run of context tokens as one of them, and how many each run had."""
    runs = [len(run[0]) // len(IMAGE_CONTEXT) for run in _RUN.finditer(text)]
    return _RUN.sub(IMAGE_CONTEXT, text), runs


def text_of(tokenizer: Tokenizer, turn: Turn, sizes: Sequence[int]) -> Text:
    """A segment of these ids, with `<s>` in front where the tokenizer has one.

    Args:
        sizes: how many visual tokens each context id stands for.

    Raises:
        ValueError: there are more or fewer context ids.
    """
    ids, supervised = np.array(turn[0], np.int32), turn[1]
    if tokenizer.bos_id is not None:
        ids, supervised = np.insert(ids, 0, tokenizer.bos_id), np.insert(supervised, 0, False)
    blocks = np.flatnonzero(ids == tokenizer.id(IMAGE_CONTEXT))
    if len(blocks) != len(sizes):
        raise ValueError(
            f"{len(blocks)} image blocks among the tokens of {len(sizes)} images; the tokenizer {tokenizer.where} does "
            f"not keep {IMAGE_CONTEXT} whole"
        )
    return Text(ids, supervised, blocks, np.array(sizes, np.int64))
