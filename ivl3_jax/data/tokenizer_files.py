"""The files in which checkpoints keep a tokenizer.

`tokenizer.json` says everything. Without it, Qwen's older files do, `vocab.json` and `merges.txt`, or InternLM's
sentencepiece model, `tokenizer.model`; the tokens beside them are in `added_tokens.json` and in
`tokenizer_config.json`, whose `added_tokens_decoder` also says which of them are special.
"""

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from ivl3_jax.data.sentencepiece_tokenizer import SPACE, SentencePieceTokenizer

# How Qwen2 cuts text into words: contractions, letters, single digits, punctuation, line breaks, spaces.
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
WHOLE, VOCAB, MERGES, PIECES = "tokenizer.json", "vocab.json", "merges.txt", "tokenizer.model"
ADDED, SETTINGS = "added_tokens.json", "tokenizer_config.json"

# What byte-level BPE writes for each byte: what prints is itself, the others are what follows 255, in order (GPT-2).
_PRINTED = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
_OTHERS = [byte for byte in range(256) if byte not in _PRINTED]
BYTES = {chr(byte): byte for byte in _PRINTED} | {chr(256 + n): byte for n, byte in enumerate(_OTHERS)}


class Codec(Protocol):
    """Text to ids and back, by whichever library."""

    def get_vocab_size(self) -> int: ...

    def token_to_id(self, token: str) -> int | None: ...

    def encode(self, text: str) -> list[int]: ...

    def decode(self, ids: Iterable[int], skip_special: bool) -> str: ...

    def bytes_of(self, number: int) -> bytes: ...


class LibraryCodec:
    """A tokenizer of the `tokenizers` library, which neither truncates nor pads."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self.tokenizer = tokenizer
        self.get_vocab_size, self.token_to_id = tokenizer.get_vocab_size, tokenizer.token_to_id
        self._byte_level = tokenizer.decoder is not None and b"ByteLevel" in tokenizer.decoder.__getstate__()

    def encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int], skip_special: bool) -> str:
        return self.tokenizer.decode(list(ids), skip_special_tokens=skip_special)

    def bytes_of(self, number: int) -> bytes:
        piece = self.tokenizer.id_to_token(number) or ""
        if self._byte_level:
            known = all(character in BYTES for character in piece)
            return bytes(BYTES[character] for character in piece) if known else piece.encode()
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)  # where there is no piece for a character
        return bytes.fromhex(byte[1]) if byte else piece.replace(SPACE, " ").encode()


def read_tokenizer(directory: str | Path) -> tuple[Codec, Path]:
    """A directory's tokenizer, and the file that stands for it in messages.

    Raises:
        FileNotFoundError: none of the files is there.
        ValueError: a file cannot be read, or two of them contradict each other.
    """
    directory = Path(directory)
    file = directory / WHOLE
    if file.is_file():
        try:
            return LibraryCodec(tokenizers.Tokenizer.from_file(str(file))), file
        except Exception as error:  # the library raises bare Exception
            raise ValueError(
                f"{file}: not a tokenizer that `tokenizers` {tokenizers.__version__} reads ({error})"
            ) from error
    if (directory / VOCAB).is_file() and (directory / MERGES).is_file():
        return LibraryCodec(_from_merges(directory)), directory / VOCAB
    if (directory / PIECES).is_file():
        return read_pieces(directory), directory / PIECES
    raise FileNotFoundError(
        f"{directory}: has no tokenizer: neither {WHOLE}, nor {VOCAB} and {MERGES}, nor {PIECES}. transformers writes "
        "the first: AutoTokenizer.from_pretrained(directory).save_pretrained(directory)"
    )


def read_pieces(directory: Path) -> SentencePieceTokenizer:
    """The tokenizer that a directory's sentencepiece model and its added tokens make."""
    return SentencePieceTokenizer(directory / PIECES, _added_tokens(directory))


def byte_level_bpe(model: models.BPE) -> tokenizers.Tokenizer:
    """Qwen2's tokenizer around a vocabulary and its merges."""
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file, or an empty one if there is no such file.

    Raises:
        ValueError: the file is not a JSON object.
    """
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: not valid JSON ({error})") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file}: holds a JSON {type(found).__name__}; it must be an object")
    return found


def _from_merges(directory: Path) -> tokenizers.Tokenizer:
    try:
        model = models.BPE.from_file(str(directory / VOCAB), str(directory / MERGES))
    except Exception as error:  # as above
        raise ValueError(
            f"{directory / VOCAB}, {directory / MERGES}: not a vocabulary and its merges ({error})"
        ) from error
    tokenizer = byte_level_bpe(model)
    for number, token in sorted(_added_tokens(directory).items()):
        # The library numbers added tokens itself, one after the other, and leaves those alone that it knows already.
        tokenizer.add_tokens([token])
        given = tokenizer.token_to_id(token.content)
        if given != number:
            raise ValueError(
                f"{directory}: {token.content!r} is to have the id {number}, but after those before it gets {given}; "
                f"{VOCAB}, {ADDED} and {SETTINGS} do not belong together"
            )
    return tokenizer


def _added_tokens(directory: Path) -> dict[int, AddedToken]:
    """The tokens beside the vocabulary by their ids; those of added_tokens.json alone are special."""
    found: dict[int, AddedToken] = {}
    file = directory / ADDED
    for content, number in read_json(file).items():
        if type(number) is not int:
            raise ValueError(f"{file}: {content!r} has the id {number!r}; it must be a whole number")
        found[number] = AddedToken(content, special=True, normalized=False)
    file = directory / SETTINGS
    stated = read_json(file).get("added_tokens_decoder", {})
    if not isinstance(stated, dict):
        raise ValueError(f"{file}: added_tokens_decoder is a {type(stated).__name__}; it must be an object")
    for number, fields in stated.items():
        if not number.isdigit() or not isinstance(fields, dict) or not isinstance(fields.get("content"), str):
            raise ValueError(f"{file}: added_tokens_decoder[{number!r}] is {fields!r}; it must be an id's token")
        flags = {name: bool(fields.get(name)) for name in ("special", "normalized", "lstrip", "rstrip", "single_word")}
        known = found.get(int(number))
        if known is not None and known.content != fields["content"]:
            raise ValueError(
                f"{file}: the id {number} is {fields['content']!r}, but {known.content!r} in {ADDED}; they must agree"
            )
        found[int(number)] = AddedToken(fields["content"], **flags)
    return found
