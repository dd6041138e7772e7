"""The files beside a language model, with the tokens that InternVL adds to its tokenizer."""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tokenizers import AddedToken

from ivl3_jax.conversion.companions import GENERATION, SETTINGS, write_json
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, TURN_END, TURN_START
from ivl3_jax.data.tokenizer_files import (
    ADDED,
    MERGES,
    PIECES,
    VOCAB,
    WHOLE,
    Codec,
    LibraryCodec,
    read_json,
    read_tokenizer,
)
from ivl3_jax.data.tokenizer_training import GROUNDING

# In the order in which InternVL adds them, and so of their ids.
TOKENS = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *GROUNDING)
COPIED = (VOCAB, MERGES, PIECES, GENERATION)


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens add up to.

    Attributes:
        known: ids of the language model's own tokenizer; those of new tokens follow.
        size: ids in all. image_token_id: that of `<IMG_CONTEXT>`.
    """

    known: int
    size: int
    image_token_id: int


def read_vocabulary(source: Path) -> Vocabulary:
    """The ids that the tokenizer of a language model has, and those that it will have.

    Raises:
        FileNotFoundError, ValueError: there is no tokenizer, it cannot be read, or it lacks the tokens of turns.
    """
    codec, file = read_tokenizer(source)
    missing = [token for token in (TURN_START, TURN_END) if codec.token_to_id(token) is None]
    if missing:
        raise ValueError(f"{file}: lacks the tokens {' '.join(missing)}, which begin and end InternVL's turns")
    new, known = _new_tokens(codec), codec.get_vocab_size()
    numbers = {token: known + number for number, token in enumerate(new)}
    image = numbers.get(IMAGE_CONTEXT, codec.token_to_id(IMAGE_CONTEXT))
    assert image is not None  # it is new, or known
    return Vocabulary(known, known + len(new), image)


def write_tokenizer(source: Path, destination: Path) -> None:
    """Writes the tokenizer and generation files of a language model with the new tokens, which are special ones.

    Raises:
        ValueError: the new tokens cannot have the ids that follow the known ones.
    """
    codec, file = read_tokenizer(source)
    new, known = _new_tokens(codec), codec.get_vocab_size()
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, destination / name)
    fields = read_json(source / SETTINGS)
    if isinstance(codec, LibraryCodec):
        codec.tokenizer.add_special_tokens([_special(token) for token in new])
        for number, token in enumerate(new, known):
            if codec.token_to_id(token) != number:
                raise ValueError(
                    f"{file}: a token added behind its {known} gets the id {codec.token_to_id(token)}; its ids must "
                    "have no gaps"
                )
        codec.tokenizer.save(str(destination / WHOLE))
        added = codec.tokenizer.get_added_tokens_decoder()
        fields["added_tokens_decoder"] = _listed(added)
    else:
        added = {number: _special(token) for number, token in enumerate(new, known)}
        fields["added_tokens_decoder"] = fields.get("added_tokens_decoder", {}) | _listed(added)
    earlier = read_json(source / ADDED)
    write_json(destination / ADDED, earlier | {token.content: number for number, token in sorted(added.items())})
    write_json(destination / SETTINGS, fields)


def _new_tokens(codec: Codec) -> list[str]:
    return [token for token in TOKENS if codec.token_to_id(token) is None]


def _special(token: str) -> AddedToken:
    return AddedToken(token, special=True, normalized=False)


def _listed(tokens: Mapping[int, AddedToken]) -> dict[str, dict[str, object]]:
    """As tokenizer_config.json has them."""
    flags = ("lstrip", "normalized", "rstrip", "single_word", "special")
    return {
        str(number): {"content": token.content} | {flag: getattr(token, flag) for flag in flags}
        for number, token in sorted(tokens.items())
    }
