"""Samples to token segments and tiles, and segments to a Batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ivl3_jax.batch import IGNORE, Batch, empty_batch
from ivl3_jax.config import InternVLConfig
from ivl3_jax.data.encoded import Encoded, loss_weight, shift_labels
from ivl3_jax.data.images import tile_image
from ivl3_jax.data.positions import plain_positions
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, ImageSource, Message, Sample
from ivl3_jax.data.template import ChatTemplate
from ivl3_jax.data.tile_bounds import FEWEST, MOST, tile_bounds
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, REQUIRED, Tokenizer
from ivl3_jax.data.video import video_tiles
from ivl3_jax.data.visuals import open_visuals, spell_out
from ivl3_jax.hf_config import read_config

# These would make visual positions or forge turns; `<video>` has an id past the embedding in `-hf` tokenizers.
RESERVED = (*REQUIRED, VIDEO_PLACEHOLDER)

_NOTHING = Sample(())


@dataclass(frozen=True)
class Processor:
    """Encodes conversations for one checkpoint.

    Attributes:
        tokenizer, template: how text becomes tokens.
        tile_size: height and width of a tile in pixels.
        tile_tokens: visual tokens of one tile.
        min_tiles, max_tiles: bounds of an image's grid, the thumbnail not counted.
        thumbnail: whether an image of several tiles is followed by a thumbnail of the whole.
        vocab: rows of the model's embedding table, which no token may pass; None does not check.
        positions: which tokens are visual, bool [n], to their rope positions, float32 [n]; see data/positions.py.

    Raises:
        ValueError: the template's system message has a special token.
    """

    tokenizer: Tokenizer
    template: ChatTemplate
    tile_size: int
    tile_tokens: int
    min_tiles: int = FEWEST
    max_tiles: int = MOST
    thumbnail: bool = True
    vocab: int | None = None
    positions: Callable[[np.ndarray], np.ndarray] = plain_positions

    def __post_init__(self) -> None:
        if self.template.system is not None:
            self._check_text(Message("system", self.template.system))

    @classmethod
    def from_directory(
        cls, directory: str | Path, template: ChatTemplate | None = None, config: InternVLConfig | None = None
    ) -> Self:
        """Reads a checkpoint directory in either layout.

        Its tokenizer is needed, and config.json unless `config` is given instead. generation_config.json gives further
        eos ids; the tile bounds come from preprocessor_config.json, or the `image_processor` part of
        processor_config.json, or the original layout's config.json, else they are 1 and 12.

        Raises:
            FileNotFoundError: config.json or the tokenizer is missing.
            ValueError: a file is malformed, or two files disagree; the message names them.
        """
        directory = Path(directory)
        stated = "the model's config" if config else str(directory / "config.json")
        config = config or read_config(directory)
        tokenizer = Tokenizer.from_directory(directory)
        if tokenizer.id(IMAGE_CONTEXT) != config.image_token_id:
            raise ValueError(
                f"{stated}: image_token_id is {config.image_token_id}, but in {tokenizer.where} "
                f"{IMAGE_CONTEXT} has the id {tokenizer.id(IMAGE_CONTEXT)}; they must be equal"
            )
        size, vocab = config.vision.image_size, config.decoder.vocab
        bounds = tile_bounds(directory, size, config.tile_tokens)
        return cls(tokenizer, template or ChatTemplate(), size, config.tile_tokens, *bounds, vocab=vocab)

    def encode(self, sample: Sample, max_tiles: int | None = None) -> Encoded:
        """Encodes a conversation for training.

        Args:
            sample: at least one assistant turn; every assistant turn is trained on.
            max_tiles: of one image; by default `self.max_tiles` shared out, max(1, max_tiles // images), as the
                original trains. A frame of a video has one tile.

        Returns:
            One segment with shifted labels.

        Raises:
            ValueError: the sample is faulty; the message begins with `sample.where`.
        """
        try:
            share = max(1, self.max_tiles // max(1, len(sample.images))) if max_tiles is None else max_tiles
            messages, tiles = self._expand(sample, share)
            if not any(message.role == "assistant" for message in messages):
                raise ValueError("has no assistant turn, so there is nothing to train on; at least one is needed")
            tokens, supervised = [], []
            for segment in self.template.segments(messages):
                ids = self.tokenizer.encode(segment.text)
                tokens += ids
                if segment.supervised:
                    header = len(self.tokenizer.encode(segment.header))
                    # The line break behind the answer is one token in the vocabulary of every InternVL.
                    supervised += [header <= i < len(ids) - 1 for i in range(len(ids))]
                else:
                    supervised += [False] * len(ids)
            return self._encoded(sample, tokens, supervised, tiles)
        except ValueError as error:
            raise _at(sample, error) from error

    def encode_prompt(self, sample: Sample, max_tiles: int | None = None) -> Encoded:
        """Encodes a conversation that the assistant is to continue, ending in the assistant's role header.

        Args:
            sample: its last turn must be the user's.
            max_tiles: of one image, by default `self.max_tiles` for every image, as the `-hf` processor does.

        Returns:
            One segment without labels.

        Raises:
            ValueError: the sample is faulty; the message begins with `sample.where`.
        """
        try:
            messages, tiles = self._expand(sample, self.max_tiles if max_tiles is None else max_tiles)
            return self.encode_text(self.template.prompt(messages), tiles, sample)
        except ValueError as error:
            raise _at(sample, error) from error

    def collate(
        self, rows: Sequence[Sequence[Encoded]], tokens: int, tiles: int, segments: int, weighting: str = "square"
    ) -> Batch:
        """Lays segments side by side into rows of static shape.

        Args:
            rows: the segments of each row, in order; a row may be empty.
            tokens, tiles, segments: S, T and G, the room in each row.
            weighting: loss weight of a token in a segment of x trained tokens: "token" 1, "sample" 1/x,
                "square" 1/sqrt(x).

        Returns:
            A Batch of numpy arrays, [len(rows), ...].

        Raises:
            ValueError: a row overflows, or the weighting is unknown.
        """
        batch = empty_batch(len(rows), tokens, tiles, segments, self.tile_size)
        for row, members in enumerate(rows):
            for what, used, room in (
                ("tokens", sum(map(len, members)), tokens),
                ("tiles", sum(len(member.tiles) for member in members), tiles),
                ("segments", len(members), segments),
            ):
                if used > room:
                    names = ", ".join(member.where or "?" for member in members)
                    raise ValueError(f"row {row} ({names}) needs {used} {what}, but has room for {room}")
            start = tile = 0
            for index, member in enumerate(members):
                here = np.s_[row, start : start + len(member)]
                weight = loss_weight(int(member.supervised.sum()), weighting)
                visual = member.visual_index
                batch.tokens[here] = member.tokens
                batch.labels[here] = member.labels
                batch.segment_ids[here] = index + 1
                batch.positions[here] = member.positions
                batch.loss_weights[here] = np.where(member.labels == IGNORE, 0, weight)
                batch.visual_index[here] = np.where(visual < 0, -1, visual + tile * self.tile_tokens)
                batch.tiles[row, tile : tile + len(member.tiles)] = member.tiles
                batch.source_id[row, index] = member.source
                start, tile = start + len(member), tile + len(member.tiles)
        return batch

    def opened(self, sample: Sample, max_tiles: int) -> Sample:
        """The sample with its images cut into tiles, and its videos into frames of one tile each.

        Placeholders are added where there are none, and `<video>` gives way to a line with `<image>` for each frame.
        What comes out can be opened again, which changes nothing.

        Args:
            max_tiles: of one image.

        Raises:
            ValueError: an image or a video cannot be read, placeholders do not match, or a special token is in a text.
        """
        for message in sample.messages:
            self._check_text(message)
        bounds = (min(self.min_tiles, max_tiles), max_tiles)
        return open_visuals(
            sample,
            lambda image: self._tiles(image, *bounds),
            lambda video: video_tiles(video, self.tile_size),
        )

    def encode_text(self, text: str, tiles: np.ndarray, sample: Sample = _NOTHING) -> Encoded:
        """Encodes a prompt that was already spelled out, image blocks included (see `block`), as it is.

        Args:
            tiles: uint8 [t, size, size, 3], of all blocks in order. sample: whose source and place are noted.

        Raises:
            ValueError: the blocks do not match the tiles.
        """
        tokens = self.tokenizer.encode(text)
        return self._encoded(sample, tokens, [False] * len(tokens), tiles)

    def harmless(self, text: str) -> str:
        """An answer as it may stand in a later prompt: reserved tokens in it with a space, "< img>", are only text."""
        for token in RESERVED:
            if token in self.tokenizer:
                text = text.replace(token, f"{token[0]} {token[1:]}")
        return text

    def block(self, tiles: int) -> str:
        """How an image of so many tiles is spelled."""
        return IMAGE_START + IMAGE_CONTEXT * (self.tile_tokens * tiles) + IMAGE_END

    def stack(self, images: Sequence[np.ndarray]) -> np.ndarray:
        """The tiles of all images in one array, uint8 [t, size, size, 3].

        Raises:
            ValueError: an image's tiles are of another shape or dtype.
        """
        for tiles in images:
            self._check_tiles(tiles)
        return np.concatenate([np.zeros((0, self.tile_size, self.tile_size, 3), np.uint8), *images])

    def _tiles(self, image: ImageSource, min_tiles: int, max_tiles: int) -> np.ndarray:
        if isinstance(image, np.ndarray):
            self._check_tiles(image)
            return image
        return tile_image(image, self.tile_size, min_tiles, max_tiles, self.thumbnail)

    def _check_tiles(self, tiles: np.ndarray) -> None:
        if tiles.ndim != 4 or tiles.shape[1:] != (self.tile_size, self.tile_size, 3) or tiles.dtype != np.uint8:
            raise ValueError(
                f"an image was given as an array {tiles.dtype} {list(tiles.shape)}; tiles must be uint8 [tiles, "
                f"{self.tile_size}, {self.tile_size}, 3], and anything else a path or a PIL image"
            )

    def _expand(self, sample: Sample, max_tiles: int) -> tuple[list[Message], np.ndarray]:
        """Messages whose placeholders are spelled out as image tokens, and the tiles [t, size, size, 3] behind them."""
        opened = self.opened(sample, max_tiles)
        images: tuple[np.ndarray, ...] = opened.images
        return spell_out(opened.messages, [self.block(len(tiles)) for tiles in images]), self.stack(images)

    def _check_text(self, message: Message) -> None:
        for token in RESERVED:
            if token == VIDEO_PLACEHOLDER and message.role == "user":
                continue  # there it stands for a video
            if token in message.text and token in self.tokenizer:
                raise ValueError(
                    f"the {message.role} turn contains the special token {token} literally; write "
                    f"{IMAGE_PLACEHOLDER} where an image belongs, and otherwise spell the token differently"
                )

    def _encoded(self, sample: Sample, tokens: list[int], supervised: list[bool], tiles: np.ndarray) -> Encoded:
        if self.tokenizer.bos_id is not None:
            tokens, supervised = [self.tokenizer.bos_id, *tokens], [False, *supervised]
        ids, mask = np.array(tokens, np.int32), np.array(supervised, bool)
        # Here and not over the whole tokenizer: published ones have a `<video>` past the table that no text reaches.
        if self.vocab is not None and (largest := max(tokens, default=0)) >= self.vocab:
            raise ValueError(
                f"the token {self.tokenizer.decode([largest], skip_special=False)!r} has the id {largest} in "
                f"{self.tokenizer.where}, but the model's vocabulary ends before {self.vocab}; use its own tokenizer"
            )
        visual = ids == self.tokenizer.id(IMAGE_CONTEXT)
        if visual.sum() != len(tiles) * self.tile_tokens:
            raise ValueError(
                f"{visual.sum()} visual positions for {len(tiles)} tiles of {self.tile_tokens} tokens; the tokenizer "
                f"{self.tokenizer.where} does not keep {IMAGE_CONTEXT} whole"
            )
        return Encoded(
            tokens=ids,
            labels=shift_labels(ids, mask),
            supervised=mask,
            tiles=tiles,
            visual_index=np.where(visual, np.cumsum(visual) - 1, -1).astype(np.int32),
            positions=self.positions(visual),
            source=sample.source,
            where=sample.where,
        )


def _at(sample: Sample, error: ValueError) -> ValueError:
    return ValueError(f"{sample.where}: {error}" if sample.where else str(error))
