"""What one checkpoint makes of conversations: their tokens and their tiles."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np

from ivl3_jax.config import InternVLConfig
from ivl3_jax.data.encoded import Encoded, Positions, segments_of
from ivl3_jax.data.faults import Fault, at
from ivl3_jax.data.images import choose_grid, image_size, tiles_of
from ivl3_jax.data.pixels import Finish, check_square, decode_visuals, leave
from ivl3_jax.data.positions import plain_positions
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, ImageSource, Message, Pair, Sample, Video
from ivl3_jax.data.template import ChatTemplate, turn
from ivl3_jax.data.text import BLOCK, Turn, folded, joined, text_of, tokenise
from ivl3_jax.data.tile_bounds import FEWEST, MOST, tile_bounds
from ivl3_jax.data.tokenizer import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, REQUIRED, Tokenizer
from ivl3_jax.data.units import Frame, Picture, Text, Unit, Visual, tile_count
from ivl3_jax.data.video import Choose, choose_frames, spread, video_tiles
from ivl3_jax.data.visuals import open_visuals, spell_out
from ivl3_jax.hf_config import read_config

LONGEST = 1 << 20  # characters of a sample; tokenising takes up to 900 bytes of memory for each

# These would make visual positions or forge turns; `<video>` has an id past the embedding in `-hf` tokenizers.
RESERVED = (*REQUIRED, VIDEO_PLACEHOLDER)


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
        pad_to_square: makes one tile of every image, filled up to a square instead of distorted. That is the original
            with `dynamic_image_size` off and `pad2square` on; with dynamic tiles its `pad2square` does nothing.

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
    positions: Positions = plain_positions
    pad_to_square: bool = False

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

    def measure(
        self, sample: Sample | Pair, max_tiles: int | None = None, choose: Callable[[Video], Choose] = spread
    ) -> Unit:
        """Tokenises a conversation or a pair; of images only headers are read, and frames of videos are only counted.

        Args:
            sample: of a conversation every assistant turn is trained on, and there has to be one; of a pair the two
                answers alone.
            max_tiles: instead of `self.max_tiles`. Either is shared out, max(1, max_tiles // images) for each image,
                as the original trains. A frame of a video has one tile.
            choose: which frames of a video are looked at.

        Raises:
            Fault: the sample is faulty; the message begins with `sample.where`.
            ValueError: the tokenizer does not fit the model.
        """
        try:
            self._check_length(sample)
            share = max(1, (self.max_tiles if max_tiles is None else max_tiles) // max(1, len(sample.images)))
            self._check_texts(sample.messages)
            messages, visuals = open_visuals(
                sample,
                lambda image: self._look(image, share),
                lambda video: [Frame(video.path, index) for index in choose_frames(video.path, choose(video))],
            )
            turns = [tokenise(self.tokenizer, turn) for turn in self.template.segments(spell_out(messages, BLOCK))]
            if isinstance(sample, Pair):
                prompt = joined(turns)[0]
                before = prompt, np.zeros(len(prompt), bool)
                parts = [joined([before, answer]) for answer in self._answers(sample)]
            elif any(message.role == "assistant" for message in messages):
                parts = [joined(turns)]
            else:
                raise Fault("empty", "has no assistant turn, so there is nothing to train on; at least one is needed")
            sizes = [tile_count(visual) * self.tile_tokens for visual in visuals]
            texts = tuple(self._text(part, sizes) for part in parts)
            return Unit(texts, visuals, sample.source, sample.where)
        except ValueError as error:
            raise at(sample.where, error) from error

    def at_most(self, unit: Unit, max_tiles: int) -> Unit:
        """The unit with at most so many tiles in the grid of each image that is not cut yet."""
        fewer = [
            self._picture(visual.source, visual.size, max_tiles) if isinstance(visual, Picture) else visual
            for visual in unit.visuals
        ]
        return unit.with_visuals(fewer, self.tile_tokens)

    def tiles(self, visuals: Sequence[Visual], finish: Finish = leave) -> np.ndarray:
        """The tiles of what was measured, uint8 [t, size, size, 3]; see `decode_visuals`."""
        return decode_visuals(visuals, self.tile_size, self.pad_to_square, finish)

    def encode(self, sample: Sample, max_tiles: int | None = None) -> Encoded:
        """Encodes a conversation for training: one segment with shifted labels.

        Arguments and errors are those of `measure`; an image may also be found damaged.
        """
        unit = self.measure(sample, max_tiles)
        try:
            (segment,) = segments_of(unit, self.tiles(unit.visuals), self.positions)
        except ValueError as error:
            raise at(sample.where, error) from error
        return segment

    def encode_prompt(self, sample: Sample, max_tiles: int | None = None) -> Encoded:
        """Encodes a conversation that the assistant is to continue, ending in the assistant's role header.

        Args:
            sample: its last turn must be the user's.
            max_tiles: of one image, by default `self.max_tiles` for every image, as the `-hf` processor does.

        Returns:
            One segment without labels.

        Raises:
            Fault: the sample is faulty; the message begins with `sample.where`.
        """
        try:
            self._check_length(sample)
            opened = self.opened(sample, self.max_tiles if max_tiles is None else max_tiles)
            images: tuple[np.ndarray, ...] = opened.images
            sizes = [len(tiles) * self.tile_tokens for tiles in images]
            text = self._untrained(self.template.prompt(spell_out(opened.messages, BLOCK)), sizes)
            unit = Unit((text,), images, sample.source, sample.where)
            (segment,) = segments_of(unit, self.stack(images), self.positions)
        except ValueError as error:
            raise at(sample.where, error) from error
        return segment

    def opened(self, sample: Sample, max_tiles: int) -> Sample:
        """The sample with its images cut into tiles, and its videos into frames of one tile each.

        Placeholders are added where there are none, and `<video>` gives way to a line with `<image>` for each frame.
        What comes out can be opened again, which changes nothing.

        Args:
            max_tiles: of one image.

        Raises:
            Fault: an image or a video cannot be read, placeholders do not match, or a special token is in a text.
        """
        self._check_texts(sample.messages)
        messages, images = open_visuals(
            sample,
            lambda image: self.tiles([self._look(image, max_tiles)]),
            lambda video: video_tiles(video, self.tile_size)[:, None],
        )
        return dataclasses.replace(sample, messages=messages, images=images, videos=())

    def encode_text(self, text: str, tiles: np.ndarray) -> Encoded:
        """Encodes a prompt that was already spelled out, image blocks included (see `block`), as it is.

        Args:
            tiles: uint8 [t, size, size, 3], of all blocks in order.

        Raises:
            ValueError: the blocks do not match the tiles.
        """
        text, runs = folded(text)
        if sum(runs) != len(tiles) * self.tile_tokens:
            raise ValueError(f"{sum(runs)} visual positions for {len(tiles)} tiles of {self.tile_tokens} tokens")
        (segment,) = segments_of(Unit((self._untrained(text, runs),), (tiles,)), tiles, self.positions)
        return segment

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
            Fault: an image's tiles are of another shape or dtype.
        """
        for tiles in images:
            self._check_tiles(tiles)
        return np.concatenate([np.zeros((0, self.tile_size, self.tile_size, 3), np.uint8), *images])

    def _look(self, image: ImageSource, max_tiles: int) -> Visual:
        if isinstance(image, np.ndarray):
            self._check_tiles(image)
            return image
        return self._picture(image, image_size(image), max_tiles)

    def _picture(self, image: ImageSource, size: tuple[int, int], max_tiles: int) -> Picture:
        if self.pad_to_square:
            check_square(image, size)
            return Picture(image, size, (1, 1), 1)
        grid = choose_grid(*size, min(self.min_tiles, max_tiles), max_tiles, self.tile_size)
        return Picture(image, size, grid, tiles_of(grid, self.thumbnail))

    def _check_tiles(self, tiles: np.ndarray) -> None:
        if tiles.ndim != 4 or tiles.shape[1:] != (self.tile_size, self.tile_size, 3) or tiles.dtype != np.uint8:
            raise Fault(
                "image",
                f"an image was given as an array {tiles.dtype} {list(tiles.shape)}; tiles must be uint8 [tiles, "
                f"{self.tile_size}, {self.tile_size}, 3], and anything else a path or a PIL image",
            )

    @staticmethod
    def _check_length(sample: Sample | Pair) -> None:
        answers = (sample.chosen, sample.rejected) if isinstance(sample, Pair) else ()
        characters = sum(map(len, (*(message.text for message in sample.messages), *answers)))
        if characters > LONGEST:
            raise Fault("tokens", f"has {characters} characters of text; at most {LONGEST} are tokenised at a time")

    def _check_texts(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self._check_text(message)

    def _check_text(self, message: Message) -> None:
        for token in RESERVED:
            if token == VIDEO_PLACEHOLDER and message.role == "user":
                continue  # there it stands for a video
            if token in message.text and token in self.tokenizer:
                raise Fault(
                    "placeholder",
                    f"the {message.role} turn contains the special token {token} literally; write "
                    f"{IMAGE_PLACEHOLDER} where an image belongs, and otherwise spell the token differently",
                )

    def _answers(self, pair: Pair) -> Iterator[Turn]:
        if pair.messages[-1].role != "user":
            raise Fault("line", f"the prompt's last turn is the {pair.messages[-1].role}'s; it must be the user's")
        answers = Message("assistant", pair.chosen), Message("assistant", pair.rejected)
        self._check_texts(answers)
        return (tokenise(self.tokenizer, turn(answer)) for answer in answers)

    def _untrained(self, text: str, sizes: Sequence[int]) -> Text:
        ids = self.tokenizer.encode(text)
        return self._text((ids, np.zeros(len(ids), bool)), sizes)

    def _text(self, part: Turn, sizes: Sequence[int]) -> Text:
        """A segment whose image blocks have so many visual tokens each."""
        text = text_of(self.tokenizer, part, sizes)
        # Here and not over the whole tokenizer: published ones have a `<video>` past the table that no text reaches.
        if self.vocab is not None and (largest := int(text.ids.max(initial=0))) >= self.vocab:
            raise ValueError(
                f"the token {self.tokenizer.decode([largest], skip_special=False)!r} has the id {largest} in "
                f"{self.tokenizer.where}, but the model's vocabulary ends before {self.vocab}; use its own tokenizer"
            )
        return text
