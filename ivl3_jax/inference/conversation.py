"""A conversation of several turns, each with images and videos of its own."""

import dataclasses
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from ivl3_jax.data.records import ImageSource, Message, Sample, VideoSource
from ivl3_jax.data.template import ChatTemplate, system_message
from ivl3_jax.inference.request import whole_number
from ivl3_jax.inference.sampling import GREEDY, Sampling

if TYPE_CHECKING:
    from ivl3_jax.inference.chat import Chat


@dataclass(frozen=True)
class Turn:
    """A question and its answer.

    Attributes:
        question: with `<image>` where an image stands, and each frame of a video as an image.
        answer: as far as it was told.
        images: their tiles, uint8 [t, size, size, 3] each, so that files may change or go.
    """

    question: str
    answer: str
    images: tuple[np.ndarray, ...] = ()


class Conversation:
    """Questions and answers that build on one another.

        talk = chat.conversation()
        talk.ask("What is written here?", images=["photo.jpg"])
        talk.ask("And in this one?", images=["other.jpg"])

    Every question is asked with all turns before it, images included. Marks of turns and images that an answer spells
    are no marks there, see `Processor.harmless`.

    Attributes:
        history: the turns so far. A question that could not be asked leaves it as it was. An answer that was left or
            interrupted stands there as far as it was told, and not at all if nothing was.
        processor: how prompts are made, by default the chat's.
    """

    def __init__(self, chat: "Chat") -> None:
        self._chat = chat
        self.processor = chat.processor
        self.history: tuple[Turn, ...] = ()

    @property
    def system(self) -> str | None:
        """The system message."""
        return self.processor.template.system

    def set_system(self, system: str | None) -> None:
        """Changes the system message, from the next question on; `system` as for `Chat`."""
        template = ChatTemplate(system_message(system, self._chat.published_system))
        self.processor = dataclasses.replace(self.processor, template=template)

    def undo(self) -> Turn:
        """Takes the last turn back, and returns it.

        Raises:
            ValueError: there is none.
        """
        if not self.history:
            raise ValueError("there is no turn to take back")
        last = self.history[-1]
        self.history = self.history[:-1]
        return last

    def reset(self) -> None:
        """Forgets all turns."""
        self.history = ()

    def ask(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] | None = (),
        videos: VideoSource | Sequence[VideoSource] | None = (),
        *,
        max_new_tokens: int = 1024,
        sampling: Sampling = GREEDY,
    ) -> str:
        """The answer as text; see `stream`."""
        return "".join(self.stream(question, images, videos, max_new_tokens=max_new_tokens, sampling=sampling))

    def stream(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] | None = (),
        videos: VideoSource | Sequence[VideoSource] | None = (),
        *,
        max_new_tokens: int = 1024,
        sampling: Sampling = GREEDY,
    ) -> Generator[str, None, None]:
        """The answer piece by piece, as it is generated.

        Args:
            question: may hold `<image>` and `<video>` where one belongs; otherwise they stand in front.
            images: of this turn: paths, PIL images or tiles, or a single one; None is none.
            videos: of this turn: paths or `Video`s, or a single one; None is none.
            max_new_tokens: the answer ends there, or at an end-of-sequence token of the checkpoint.

        Yields:
            Pieces of at least one character.

        Raises:
            ValueError: an argument is of another type, an image or video cannot be read, placeholders do not match, or
                the prompt is empty or too long.
        """
        if not isinstance(question, str):
            raise ValueError(f"the question is of type {type(question).__name__}; it must be a str")
        max_new_tokens = whole_number("max_new_tokens", max_new_tokens, least=1)
        shown = () if images is None else (images,) if isinstance(images, ImageSource) else tuple(images)
        moving = () if videos is None else (videos,) if isinstance(videos, VideoSource) else tuple(videos)
        if not question.strip() and not shown and not moving:
            raise ValueError("the question is empty and there is no image; ask something")
        asked = Sample((Message("user", question),), shown, videos=moving)
        asked = self.processor.opened(asked, self.processor.max_tiles)
        prompt = self.processor.encode_prompt(self._with_history(asked))
        told = []
        try:
            for piece in self._chat.answer(prompt, max_new_tokens, sampling):
                told.append(piece)
                yield piece
        except (GeneratorExit, KeyboardInterrupt):
            if told:
                self._remember(asked, told)
            raise
        self._remember(asked, told)

    def _with_history(self, asked: Sample) -> Sample:
        messages, images = [], []
        for turn in self.history:
            messages += [Message("user", turn.question), Message("assistant", self.processor.harmless(turn.answer))]
            images += turn.images
        return dataclasses.replace(asked, messages=(*messages, *asked.messages), images=(*images, *asked.images))

    def _remember(self, asked: Sample, told: list[str]) -> None:
        self.history = (*self.history, Turn(asked.messages[0].text, "".join(told), asked.images))
