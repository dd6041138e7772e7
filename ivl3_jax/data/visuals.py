"""Images and videos of a conversation, and the placeholders in its user turns that stand for them."""

import re
from collections.abc import Callable, Sequence
from typing import TypeVar

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.records import (
    IMAGE_PLACEHOLDER,
    VIDEO_PLACEHOLDER,
    ImageSource,
    Message,
    Pair,
    Sample,
    Video,
    VideoSource,
)

V = TypeVar("V")

_PLACEHOLDER = re.compile(f"{re.escape(IMAGE_PLACEHOLDER)}|{re.escape(VIDEO_PLACEHOLDER)}")


def open_visuals(
    sample: Sample | Pair,
    open_image: Callable[[ImageSource], V],
    open_video: Callable[[Video], Sequence[V]],
) -> tuple[tuple[Message, ...], tuple[V, ...]]:
    """The messages with one `<image>` for each image and for each frame of a video, and what was opened, in that order.

    Args:
        open_image: what an image is opened to.
        open_video: what a video's frames are opened to.

    Raises:
        Fault: placeholders and images or videos do not match.
    """
    messages = _with_placeholders(sample.messages, len(sample.images), len(sample.videos))
    for token, found, name in (
        (IMAGE_PLACEHOLDER, len(sample.images), "images"),
        (VIDEO_PLACEHOLDER, len(sample.videos), "videos"),
    ):
        count = sum(message.text.count(token) for message in messages if message.role == "user")
        if count != found:
            raise Fault(
                "placeholder",
                f"the user turns have {count} {token} placeholders for {found} {name}; valid: one for each of the "
                f"{name}, or none at all",
            )
    images, videos, opened = iter(sample.images), iter(sample.videos), []

    def replace(match: re.Match) -> str:
        if match[0] == IMAGE_PLACEHOLDER:
            opened.append(open_image(next(images)))
            return match[0]
        video = _video(next(videos))
        frames = open_video(video)
        opened.extend(frames)
        return "\n".join(video.label.replace("{}", str(n)) + IMAGE_PLACEHOLDER for n in range(1, len(frames) + 1))

    spelled = tuple(_in_user_turn(message, lambda text: _PLACEHOLDER.sub(replace, text)) for message in messages)
    return spelled, tuple(opened)


def spell_out(messages: Sequence[Message], block: str) -> list[Message]:
    """The messages with `block` for each `<image>` of a user turn."""
    return [_in_user_turn(message, lambda text: text.replace(IMAGE_PLACEHOLDER, block)) for message in messages]


def _in_user_turn(message: Message, change: Callable[[str], str]) -> Message:
    return Message("user", change(message.text)) if message.role == "user" else message


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
