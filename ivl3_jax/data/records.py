"""What a conversation is before anything is tokenised: messages, and the images they speak of."""

import os
from dataclasses import dataclass

from PIL import Image

IMAGE_PLACEHOLDER = "<image>"
ROLES = ("system", "user", "assistant")

ImageSource = str | os.PathLike | Image.Image


@dataclass(frozen=True)
class Message:
    """One turn.

    Attributes:
        role: "system", "user" or "assistant".
        text: what is said. In user turns each "<image>" stands for one image of the sample, in order; in system and
            assistant turns it is ordinary text, as in InternVL.

    Raises:
        ValueError: the role is not one of the three, or the text is no string or has lone surrogates.
    """

    role: str
    text: str

    def __post_init__(self):
        if self.role not in ROLES:
            raise ValueError(f"message role is {self.role!r}; valid roles: {', '.join(ROLES)}")
        if not isinstance(self.text, str):
            raise ValueError(f"text of the {self.role} message is {self.text!r}; it must be a string")
        try:
            self.text.encode()
        except UnicodeEncodeError as error:
            raise ValueError(
                f"text of the {self.role} message has the lone surrogate {self.text[error.start]!a} at character "
                f"{error.start}; it must be Unicode text (a shell that is not set to UTF-8 makes such marks)"
            ) from None


@dataclass(frozen=True)
class Sample:
    """A conversation with its images, still as the user has it.

    Attributes:
        messages: the turns in order; a system turn only in front.
        images: PIL images or paths, in the order of their placeholders. Paths are opened when the sample is encoded.
        source: the number of the data source, for loss by data set.
        where: where the sample came from ("train.jsonl:17"), quoted by every error about it.
    """

    messages: tuple[Message, ...]
    images: tuple[ImageSource, ...] = ()
    source: int = 0
    where: str = ""
