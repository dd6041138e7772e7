"""Tokenizers kept as a sentencepiece model, InternLM's: read by its own library, and translated for transformers."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import tokenizers
from sentencepiece import SentencePieceProcessor, sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

SPACE = "\u2581"  # what the library writes for a space

# What a translation must encode alike before it is handed out, beside every piece of its own vocabulary.
PROBES = (
    "What is written here?  Two  spaces,\n\n\ttabs\r\nand 12,345.67 digits; it's naïve — 图中写着什么？ 🙂 \u0001",
    " leading, trailing ",
    "aaaaaaaaaaaa ---------- ==== ababababa",
    "def f(x):\n    return [x ** 2 for _ in range(10)]\n",
)


class SentencePieceTokenizer:
    """A sentencepiece model and the tokens beside it, which are found first, the longest at each place.

    Every stretch of text between two of them is the model's, by itself, as in the Python tokenizers of Llama and
    InternLM. A token beside the model may take the id of one of its unused pieces.
    """

    def __init__(self, file: Path, added: Mapping[int, AddedToken]) -> None:
        """`added`: tokens by their ids; the model's own control pieces are special tokens too.

        Raises:
            ValueError: the file is no sentencepiece model.
        """
        self._file = file
        try:
            self._model = SentencePieceProcessor(model_file=str(file))
        except Exception as error:  # the library raises RuntimeError, or what protobuf does
            raise ValueError(f"{file}: not a sentencepiece model ({error})") from error
        own = (i for i in range(self._size) if self._model.is_control(i) or self._model.is_unknown(i))
        control = {i: AddedToken(self._model.id_to_piece(i), special=True, normalized=False) for i in own}
        self._added = dict(sorted((control | dict(added)).items()))
        self._ids = {token.content: number for number, token in self._added.items()}
        self._order = sorted(self._added, key=lambda number: -len(self._added[number].content))
        self._pattern = re.compile("|".join(_pattern(self._added[number]) for number in self._order) or "(?!)")

    @property
    def _size(self) -> int:
        return self._model.get_piece_size()

    def get_vocab_size(self) -> int:
        return max(self._size, *(number + 1 for number in self._added), 0)

    def token_to_id(self, token: str) -> int | None:
        if token in self._ids:
            return self._ids[token]
        number = self._model.piece_to_id(token)
        known = number not in self._added and self._model.id_to_piece(number) == token
        return number if known else None

    def encode(self, text: str) -> list[int]:
        """The ids of a text, with nothing added in front or behind."""
        ids, at = [], 0
        for match in self._pattern.finditer(text):
            ids += [*self._model.encode(text[at : match.start()]), self._order[(match.lastindex or 0) - 1]]
            at = match.end()
        return ids + self._model.encode(text[at:])

    def decode(self, ids: Iterable[int], skip_special: bool) -> str:
        """The text of ids; those that stand for nothing, such as rows that pad a vocabulary, give none."""
        text, stretch = "", []
        for number in ids:
            if number in self._added:
                token = self._added[number]
                text += self._model.decode(stretch) + ("" if token.special and skip_special else token.content)
                stretch = []
            elif number < self._size:
                stretch.append(number)
        return text + self._model.decode(stretch)

    def bytes_of(self, number: int) -> bytes:
        if number in self._added or number >= self._size:
            return self.decode([number], skip_special=False).encode()
        piece = self._model.id_to_piece(number)
        # A byte's piece is "<0xE4>".
        return bytes.fromhex(piece[3:5]) if self._model.is_byte(number) else piece.replace(SPACE, " ").encode()

    def translate(self, bos: str | None) -> tokenizers.Tokenizer:
        """The same tokenizer for the `tokenizers` library, which transformers reads without sentencepiece.

        Args:
            bos: a token to be put in front of every text when special tokens are asked for.

        Raises:
            ValueError: it cannot be said in the other library's terms: not a BPE model, ids with gaps, or a text that
                the two would encode differently.
        """
        proto = sentencepiece_model_pb2.ModelProto.FromString(self._model.serialized_model_proto())
        if proto.trainer_spec.model_type != sentencepiece_model_pb2.TrainerSpec.BPE:
            raise ValueError(f"{self._file}: only a BPE model of sentencepiece can be translated to `tokenizers`")
        names = [self._added[i].content if i in self._added else p.piece for i, p in enumerate(proto.pieces)]
        kinds = sentencepiece_model_pb2.ModelProto.SentencePiece
        pieces = [piece for i, piece in enumerate(proto.pieces) if i not in self._added]
        whole = [piece.piece for piece in pieces if piece.type == kinds.USER_DEFINED]
        model = models.BPE(
            vocab={name: number for number, name in enumerate(names)},
            merges=_merges({piece.piece: piece.score for piece in pieces if piece.type == kinds.NORMAL}),
            unk_token=names[self._model.unk_id()],
            fuse_unk=True,
            byte_fallback=proto.trainer_spec.byte_fallback,
            ignore_merges=bool(whole),
        )
        translated = tokenizers.Tokenizer(model)
        spec = proto.normalizer_spec
        translated.normalizer = _normalizer(spec)
        if whole:  # pieces that no merge makes, and none crosses
            one_of = "|".join(map(re.escape, sorted(whole, key=len, reverse=True)))
            translated.pre_tokenizer = pre_tokenizers.Split(Regex(one_of), behavior="isolated")
        strip = [decoders.Strip(content=" ", left=1)] if spec.add_dummy_prefix else []
        steps = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
        translated.decoder = decoders.Sequence(steps)
        for number, token in self._added.items():
            translated.add_tokens([token])
            if translated.token_to_id(token.content) != number:
                raise ValueError(
                    f"{self._file}: {token.content!r} has the id {number}, but `tokenizers` numbers it "
                    f"{translated.token_to_id(token.content)}; ids beyond the model's {self._size} must have no gaps"
                )
        if bos is not None:
            translated.post_processor = processors.TemplateProcessing(
                single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, self._ids[bos])]
            )
        self._compare(translated)
        return translated

    def _compare(self, translated: tokenizers.Tokenizer) -> None:
        pieces = (self._model.id_to_piece(i).replace(SPACE, " ") for i in range(self._size) if i not in self._added)
        for text in (*PROBES, *(text for piece in pieces for text in (piece, f"a{piece} b"))):
            ours, theirs = self.encode(text), translated.encode(text, add_special_tokens=False).ids
            if ours != theirs:
                raise ValueError(
                    f"{self._file}: cannot be translated to `tokenizers`: {text!r} would become {theirs[:20]} instead "
                    f"of {ours[:20]}"
                )


def _pattern(token: AddedToken) -> str:
    return r"\s*" * token.lstrip + f"({re.escape(token.content)})" + r"\s*" * token.rstrip


def _merges(scores: Mapping[str, float]) -> list[tuple[str, str]]:
    """Every pair of pieces that makes a third, those of the highest score first."""
    found = [
        (-score, piece[:cut], piece[cut:])
        for piece, score in scores.items()
        for cut in range(1, len(piece))
        if piece[:cut] in scores and piece[cut:] in scores
    ]
    return [(left, right) for _, left, right in sorted(found, key=lambda merge: merge[0])]


def _normalizer(spec: sentencepiece_model_pb2.NormalizerSpec) -> normalizers.Normalizer:
    steps: list[normalizers.Normalizer] = []
    if spec.precompiled_charsmap:
        steps.append(normalizers.Precompiled(spec.precompiled_charsmap))
    if spec.remove_extra_whitespaces:
        # Spaces alone; `Strip` would take every kind of white space.
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if spec.add_dummy_prefix:
        steps.append(normalizers.Prepend(SPACE))
    return normalizers.Sequence([*steps, normalizers.Replace(" ", SPACE)])
