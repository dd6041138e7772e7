"""Images and videos of a conversation, and the placeholders in its user turns that stand for them."""

import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ivl3_jax.data.records import (
    IMAGE_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    ImageSource,
    Message,
    Sample,
    Video,
    VideoSource,
)

_PLACEHOLDER = re.compile(f"{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)}")


def open_visuals(
    sample: Sample,
    open_image: Callable[[ImageSource], np.ndarray],
    open_video: Callable[[Video], np.ndarray],
) -> Sample:
    """The sample with images as tiles [t, size, size, 3], and each video as its frames, which are images of one tile.

    Args:
        open_image: to tiles [t, size, size, 3].
        open_video: to frames [frames, size, size, 3].

    Raises:
        ValueError: placeholders and images or videos do not match.
    """
    messages = _with_placeholders(sample.messages, len(sample.images), len(sample.videos))
    for token, found, name in (
        (IMAGE_PLACEHOLDER, len(sample.images), "images"),
        (VIDEO_PLACEHOLDER, len(sample.videos), "videos"),
    ):
        count = sum(message.text.count(token) for message in messages if message.role == "user")
        if count != found:
            raise ValueError(
                f"the user turns have {count} {token} placeholders for {found} {name}; valid: one for each of the "
                f"{name}, or none at all"
            )
    images, videos, tiles = iter(sample.images), iter(sample.videos), []

    def replace(match: re.Match) -> str:
        if match[0] == IMAGE_PLACEHOLDER:
            tiles.append(open_image(next(images)))
            return match[0]
        video = _video(next(videos))
        frames = open_video(video)
        tiles.extend(frames[:, None])
        return "\n".join(video.label.replace("{}", str(n)) + IMAGE_PLACEHOLDER for n in range(1, len(frames) + 1))

    opened = [
        Message("user", _PLACEHOLDER.sub(replace, message.text)) if message.role == "user" else message
        for message in messages
    ]
    return dataclasses.replace(sample, messages=tuple(opened), images=tuple(tiles), videos=())


def spell_out(messages: Sequence[Message], blocks: Sequence[str]) -> list[Message]:
    """The messages with each `<image>` of a user turn replaced by the next block."""
    following = iter(blocks)
    return [_replaced(message, following) if message.role == "user" else message for message in messages]


def _replaced(message: Message, blocks: Iterator[str]) -> Message:
    first, *rest = message.text.split(IMAGE_PLACEHOLDER)
    return Message(message.role, first + "".join(next(blocks) + text for text in rest))


def _video(source: VideoSource) -> Video:
    return source if isinstance(source, Video) else Video(source)


def _with_placeholders(messages: Sequence[Message], images: int, videos: int) -> list[Message]:
    """The one rule by which placeholders are added: there are images, and no user turn has a placeholder for any.

    Then the first user turn gets "<image>\\n" in front for one image, and "Image-1: <image>\\nImage-2: <image>\\n" for
    several, InternVL's conventional prompts. Videos likewise, "<video>\\n" for each.
    """
    messages = list(messages)
    users = [index for index, message in enumerate(messages) if message.role == "user"]

    def absent(token: str) -> bool:
        return not any(token in messages[index].text for index in users)

    front = ""
    if images and absent(IMAGE_PLACEHOLDER):
        numbered = "".join(f"Image-{number}: {IMAGE_PLACEHOLDER}\n" for number in range(1, images + 1))
        front = f"{IMAGE_PLACEHOLDER}\n" if images == 1 else numbered
    if videos and absent(VIDEO_PLACEHOLDER):
        front += f"{VIDEO_PLACEHOLDER}\n" * videos
    if users and front:
        messages[users[0]] = Message("user", front + messages[users[0]].text)
    return messages
