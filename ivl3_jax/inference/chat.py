"""Asking a model about images and videos."""

import dataclasses
import functools
from collections.abc import Collection, Iterator, Sequence

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.positions import checked_delta, v2pe_positions
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import ImageSource, VideoSource
from ivl3_jax.data.template import ChatTemplate, published_system, system_message
from ivl3_jax.inference.conversation import Conversation
from ivl3_jax.inference.engine import Engine
from ivl3_jax.inference.request import Limits, Request
from ivl3_jax.inference.sampling import GREEDY, Sampling
from ivl3_jax.inference.wording import Wording
from ivl3_jax.models.model import Model


class Chat:
    """Answers questions about images and videos with a loaded checkpoint.

        chat = ivl3_jax.Chat(ivl3_jax.load("InternVL3-1B-hf"))
        print(chat.ask("What is written here?", images=["photo.jpg"]))

    Every question is a conversation of its own; `conversation` begins one that remembers. What was asked before is not
    computed again: images and beginnings of prompts are kept while there is room.
    """

    def __init__(
        self,
        model: Model,
        *,
        processor: Processor | None = None,
        system: str | None = "published",
        visual_delta: float | None = None,
        limits: Limits | None = None,
        int8: Collection[str] = (),
    ) -> None:
        """Takes the decoder's layers apart, see `Engine`.

        Args:
            processor: by default that of the directory the model was loaded from.
            system: the system message. "published" is what the published code of the directory's layout does:
                `INTERNVL_SYSTEM` in the original layout, none in `-hf`. "internvl" is `INTERNVL_SYSTEM` in either,
                "none" or None is none, and anything else is the message itself.
            visual_delta: the step between positions of visual tokens, from 1/256 to 1 (V2PE, see `v2pe_positions`),
                with dynamic NTK off as in its reference code; None for plain positions.
            limits, int8: of the engine.

        Raises:
            ValueError: the model was not loaded from a directory, and no processor is given; or an argument cannot be.
        """
        if processor is None:
            if model.source is None:
                raise ValueError("the model was not loaded from a directory; give the processor that belongs to it")
            published = published_system(model.source)
            processor = Processor.from_directory(model.source, ChatTemplate(system_message(system, published)))
        elif system != "published":
            raise ValueError("give the system message to the processor's ChatTemplate, or leave the processor out")
        else:
            published = processor.template.system
        if visual_delta is not None:
            delta = checked_delta(visual_delta)
            processor = dataclasses.replace(processor, positions=functools.partial(v2pe_positions, delta=delta))
            model = model.with_plain_rope()
        self.processor, self.published_system = processor, published
        self.engine = Engine(model, limits, int8)

    def conversation(self) -> Conversation:
        """A conversation that remembers its turns, with their images."""
        return Conversation(self)

    def ask(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] | None = (),
        videos: VideoSource | Sequence[VideoSource] | None = (),
        *,
        max_new_tokens: int = 1024,
        sampling: Sampling = GREEDY,
    ) -> str:
        """The answer as text; see `Conversation.stream`."""
        return "".join(self.stream(question, images, videos, max_new_tokens=max_new_tokens, sampling=sampling))

    def stream(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] | None = (),
        videos: VideoSource | Sequence[VideoSource] | None = (),
        *,
        max_new_tokens: int = 1024,
        sampling: Sampling = GREEDY,
    ) -> Iterator[str]:
        """The answer piece by piece, as it is generated; see `Conversation.stream`."""
        alone = self.conversation()
        return alone.stream(question, images, videos, max_new_tokens=max_new_tokens, sampling=sampling)

    def answer(self, prompt: Encoded, max_new_tokens: int, sampling: Sampling = GREEDY) -> Iterator[str]:
        """The continuation of an encoded prompt, in pieces of at least one character, up to a stop token."""
        tokenizer = self.processor.tokenizer
        wording = Wording(tokenizer)
        for said in self.engine.stream(Request(prompt, max_new_tokens, sampling, stop=frozenset(tokenizer.eos_ids))):
            if said.token is not None and (piece := wording.add(said.token)):
                yield piece
        if rest := wording.end():
            yield rest
