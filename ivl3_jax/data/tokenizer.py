"""The tokenizer of a checkpoint."""

from collections.abc import Iterable
from pathlib import Path

import tokenizers

from ivl3_jax.data.tokenizer_files import PIECES, SETTINGS, Codec, LibraryCodec, read_json, read_tokenizer

IMAGE_START = "<img>"
IMAGE_CONTEXT = "<IMG_CONTEXT>"
IMAGE_END = "</img>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

REQUIRED = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, TURN_START, TURN_END)


class Tokenizer:
    """Text to ids and back; special tokens written in the text are recognised as such.

    Attributes:
        eos_ids: the ids that end an answer, ascending.
        bos_id: the id in front of every sequence, or None where the model family has none (Qwen has none).
        where: where the tokenizer came from, for error messages.
    """

    def __init__(
        self,
        tokenizer: Codec | tokenizers.Tokenizer,
        eos_ids: Iterable[int] = (),
        bos_id: int | None = None,
        where: str = "tokenizer",
    ):
        """Wraps a tokenizer.

        Args:
            tokenizer: it must know the image tokens and the chat tokens.
            eos_ids: further ids that end an answer; `<|im_end|>` is always one.
            bos_id: an id to put in front of every sequence.
            where: the file it came from.

        Raises:
            ValueError: a needed token is missing.
        """
        self._codec = LibraryCodec(tokenizer) if isinstance(tokenizer, tokenizers.Tokenizer) else tokenizer
        self.where = where
        missing = [token for token in REQUIRED if token not in self]
        if missing:
            raise ValueError(
                f"{where}: lacks the tokens {' '.join(missing)}; an InternVL tokenizer has all of {REQUIRED}"
            )
        self.eos_ids = tuple(sorted({*eos_ids, self.id(TURN_END)}))
        self.bos_id = bos_id

    @classmethod
    def from_directory(cls, directory: str | Path) -> "Tokenizer":
        """Reads the files of `tokenizer_files`; answers end at any token that a file of the directory names for it.

        Raises:
            FileNotFoundError: there is no tokenizer.
            ValueError: it cannot be read, or lacks a needed token.
        """
        tokenizer, file = read_tokenizer(directory)
        folder = Path(directory)
        bos = _bos_id(folder, tokenizer, file.name == PIECES)
        return cls(tokenizer, _eos_ids(folder, tokenizer), bos, str(file))

    def __len__(self) -> int:
        """The size of the vocabulary, special tokens included."""
        return self._codec.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing added in front or behind."""
        return self._codec.encode(text)

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids; special tokens are left out unless `skip_special` is False."""
        return self._codec.decode((int(i) for i in ids), skip_special)

    def bytes_of(self, number: int) -> bytes:
        """The bytes that a token stands for, of UTF-8 text, maybe a part of a character; b"" for an id of no token."""
        return self._codec.bytes_of(number)

    def id(self, token: str) -> int:
        """The id of one token.

        Raises:
            ValueError: the vocabulary has no such token.
        """
        found = self._codec.token_to_id(token)
        if found is None:
            raise ValueError(f"{self.where}: has no token {token!r}")
        return found

    def __contains__(self, token: str) -> bool:
        return self._codec.token_to_id(token) is not None


def _eos_ids(directory: Path, tokenizer: Codec) -> set[int]:
    """Every id that generation_config.json, config.json at any level, or tokenizer_config.json ends an answer with.

    The files of one checkpoint often disagree. An id or token past the vocabulary cannot be generated and is left out.
    """
    generation, config = directory / "generation_config.json", directory / "config.json"
    places = [(generation, "", read_json(generation)), (config, "", read_json(config))]
    for part in ("text_config", "llm_config"):
        if isinstance(inner := places[1][2].get(part), dict):
            places.append((config, f"{part}.", inner))
    ids: set[int] = set()
    for file, place, fields in places:
        found = fields.get("eos_token_id")
        stated = [] if found is None else found if isinstance(found, list) else [found]
        if not all(type(i) is int for i in stated):
            raise ValueError(f"{file}: {place}eos_token_id is {found!r}; it must be an integer or a list of integers")
        ids.update(i for i in stated if 0 <= i < tokenizer.get_vocab_size())
    token = read_json(directory / SETTINGS).get("eos_token")
    token = token.get("content") if isinstance(token, dict) else token
    named = tokenizer.token_to_id(token) if isinstance(token, str) else None
    return ids if named is None else ids | {named}


def _bos_id(directory: Path, tokenizer: Codec, of_pieces: bool) -> int | None:
    """The id of the token that tokenizer_config.json wants in front of sequences, None if none (Qwen).

    InternLM's class, the one of sentencepiece models, puts `<s>` in front where the file says nothing.
    """
    file = directory / SETTINGS
    settings = read_json(file)
    if not settings.get("add_bos_token", of_pieces):
        return None
    token = settings.get("bos_token", "<s>" if of_pieces else None)
    token = token.get("content") if isinstance(token, dict) else token
    found = tokenizer.token_to_id(token) if isinstance(token, str) else None
    if found is None:
        raise ValueError(f"{file}: add_bos_token is set, but bos_token {token!r} is no token")
    return found
