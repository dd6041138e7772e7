"""Asking a model about pictures."""

import os
from collections.abc import Iterator, Sequence

from PIL import Image

from ivl3_jax.data.images import ImageSource
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import Message, Sample
from ivl3_jax.data.template import ChatTemplate
from ivl3_jax.inference.generate import Generator
from ivl3_jax.inference.sampling import GREEDY, Sampling
from ivl3_jax.models.model import Model


class Chat:
    """Answers questions about images with a loaded checkpoint.

        chat = ivl3_jax.Chat(ivl3_jax.load("InternVL3-1B-hf"))
        print(chat.ask("What is written here?", images=["photo.jpg"]))

    Every question is a conversation of its own.
    """

    def __init__(self, model: Model, *, processor: Processor | None = None, system: str | None = None) -> None:
        """`processor`: by default that of the directory the model was loaded from. `system`: a system message.

        Raises:
            ValueError: the model was not loaded from a directory, and no processor is given.
        """
        if processor is None:
            if model.source is None:
                raise ValueError("the model was not loaded from a directory; give the processor that belongs to it")
            processor = Processor.from_directory(model.source, ChatTemplate(system))
        elif system is not None:
            raise ValueError("give the system message to the processor's ChatTemplate, or leave the processor out")
        self.processor = processor
        self.generator = Generator(model)

    def ask(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        *,
        max_new_tokens: int = 1024,
        sampling: Sampling = GREEDY,
    ) -> str:
        """The answer as text; see `stream`."""
        return "".join(self.stream(question, images, max_new_tokens=max_new_tokens, sampling=sampling))

    def stream(
        self,
        question: str,
        images: ImageSource | Sequence[ImageSource] = (),
        *,
        max_new_tokens: int = 1024,
        sampling: Sampling = GREEDY,
    ) -> Iterator[str]:
        """The answer piece by piece, as it is generated.

        Args:
            question: may hold `<image>` where an image belongs; otherwise images stand in front.
            images: paths or PIL images, or a single one.
            max_new_tokens: the answer ends there, or at an end-of-sequence token of the checkpoint.

        Yields:
            Pieces of at least one character.

        Raises:
            ValueError: an argument is of another type, an image cannot be read, placeholders and images do not match,
                or the prompt is empty or too long.
        """
        if not isinstance(question, str):
            raise ValueError(f"the question is of type {type(question).__name__}; it must be a str")
        if type(max_new_tokens) is not int or max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {max_new_tokens!r}; it must be a whole number of at least 1")
        if isinstance(images, str | os.PathLike | Image.Image):
            images = (images,)
        if not question.strip() and not images:
            raise ValueError("the question is empty and there is no image; ask something")
        prompt = self.processor.encode_prompt(Sample((Message("user", question),), tuple(images)))
        tokenizer = self.processor.tokenizer
        # Only the last piece and the tokens behind it are decoded: it is what a leading space depends on.
        ids: list[int] = []
        known, told = 0, ""
        for token in self.generator.stream([prompt], max_new_tokens, sampling):
            if int(token[0]) in tokenizer.eos_ids:
                break
            ids.append(int(token[0]))
            text = tokenizer.decode(ids)
            # A character of several bytes may still be incomplete.
            if len(text) > len(told) and not text.endswith("\ufffd"):
                yield text[len(told) :]
                ids = ids[known:]
                known, told = len(ids), tokenizer.decode(ids)
        if rest := tokenizer.decode(ids)[len(told) :]:
            yield rest
