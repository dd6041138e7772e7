"""Messages of a request to a prompt of the model."""

import asyncio
import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from ivl3_jax.data.encoded import Encoded
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.processor import Processor
from ivl3_jax.data.records import IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER, Message, Sample, Stored
from ivl3_jax.inference.request import Request
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.inference.server.errors import ApiError
from ivl3_jax.inference.server.pictures import Sources, fetch
from ivl3_jax.inference.server.schema import ChatMessage, ChatRequest, ImagePart

T = TypeVar("T")
_DECODING = ThreadPoolExecutor(2, thread_name_prefix="pictures")


@dataclass(frozen=True)
class Bounds:
    """What one request may ask for.

    Attributes:
        images: pictures of all its messages. tokens: of each answer; also what is generated where it says nothing.
        samples: answers. body: bytes, of all its pictures as well. seconds: until it is answered.
        waiting: requests that are taken at a time.
    """

    images: int = 32
    tokens: int = 4096
    samples: int = 16
    body: int = 64 << 20
    seconds: float = 600.0
    waiting: int = 256


async def prompt(asked: ChatRequest, processor: Processor, sources: Sources, bounds: Bounds) -> Encoded:
    """The encoded prompt, pictures read and cut into tiles.

    Raises:
        ApiError: 400; a picture cannot be read, there are too many, or the turns are in an order that cannot be.
    """
    pictures: list[tuple[str, str]] = []  # place in the body, URL
    try:
        messages = [_message(message, number, pictures, processor) for number, message in enumerate(asked.messages)]
    except Fault as fault:
        raise ApiError(400, str(fault), param="messages", code="invalid_messages") from None
    if len(pictures) > bounds.images:
        told = f"messages have {len(pictures)} pictures; at most {bounds.images} are taken"
        raise ApiError(400, told, param="messages", code="too_many_images")
    images = await _fetched(pictures, sources, bounds)
    try:
        sample = Sample(tuple(messages), images, where="messages")
        return await aside(processor.encode_prompt, sample)
    except Fault as fault:
        raise ApiError(400, str(fault), param="messages", code="invalid_messages") from None


async def _fetched(pictures: Sequence[tuple[str, str]], sources: Sources, bounds: Bounds) -> tuple[Stored, ...]:
    """The files of pictures; one that is named several times is read once."""
    found: dict[str, Stored] = {}
    for place, url in pictures:
        if url not in found:
            found[url] = await fetch(url, sources, place)
        if sum(len(image.data) for image in found.values()) > bounds.body:
            told = f"{place}: the pictures have over {bounds.body / 2**20:.3g} MiB together, the most that is taken"
            raise ApiError(400, told, param=place, code="image_too_large")
    return tuple(found[url] for _, url in pictures)


async def aside(call: Callable[..., T], *arguments: Any) -> T:
    """What a call that decodes pictures returns, made in one of a few threads: each may take much memory."""
    return await asyncio.get_running_loop().run_in_executor(_DECODING, call, *arguments)


def _message(message: ChatMessage, number: int, pictures: list[tuple[str, str]], processor: Processor) -> Message:
    role = "system" if message.role == "developer" else message.role
    parts = message.content if isinstance(message.content, list) else None
    if parts is None:
        texts = [str(message.content)]
    else:
        texts = []
        for place, part in enumerate(parts):
            if isinstance(part, ImagePart):
                where = f"messages.{number}.content.{place}.image_url"
                if role != "user":
                    told = f"{where}: a {message.role} message has a picture; only the user's may"
                    raise ApiError(400, told, param=where, code="invalid_messages")
                pictures.append((where, part.image_url.url))
                texts.append(IMAGE_PLACEHOLDER)
            else:
                texts.append(part.text)
    if role == "assistant":
        return Message(role, processor.harmless("\n".join(texts)))
    own = "\n".join(text for text in texts if text is not IMAGE_PLACEHOLDER)
    for mark in (IMAGE_PLACEHOLDER, VIDEO_PLACEHOLDER):
        if role == "user" and mark in own:
            where = f"messages.{number}.content"
            told = (
                f"{where} has {mark} in its text, which stands for a picture or video; write it {mark[0]} {mark[1:]}, "
                "and send pictures as parts of type image_url"
            )
            raise ApiError(400, told, param=where, code="invalid_messages")
    return Message(role, "\n".join(texts))


def request(asked: ChatRequest, encoded: Encoded, processor: Processor, bounds: Bounds, left: int) -> Request:
    """The engine's request.

    Args:
        left: tokens that an answer may have behind the prompt.

    Raises:
        ApiError: 400; more answers or tokens are asked for than are given.
    """
    samples = asked.n or 1
    if samples > bounds.samples:
        raise ApiError(400, f"n is {samples}; at most {bounds.samples} are given", param="n", code="invalid_value")
    field = "max_tokens" if asked.max_completion_tokens is None else "max_completion_tokens"
    wanted = getattr(asked, field)
    if wanted is not None and wanted > bounds.tokens:
        raise ApiError(
            400, f"{field} is {wanted}; at most {bounds.tokens} are given", param=field, code="invalid_value"
        )
    if left < (wanted or 1):
        told = (
            f"the prompt has {len(encoded)} tokens, behind which there is room for {max(left, 0)}"
            + (f", and {field} is {wanted}" if wanted else "")
            + ": send fewer or smaller pictures or less text, or ask for fewer tokens"
        )
        raise ApiError(400, told, param="messages", code="context_length_exceeded")
    given = {
        name: value
        for name in ("top_p", "top_k", "repetition_penalty", "presence_penalty", "frequency_penalty")
        if (value := getattr(asked, name)) is not None
    }
    seed = secrets.randbits(63) if asked.seed is None else asked.seed % 2**63
    sampling = Sampling(1.0 if asked.temperature is None else asked.temperature, seed=seed, **given)
    return Request(
        encoded,
        wanted or min(bounds.tokens, left),
        sampling,
        samples=samples,
        stop=frozenset(processor.tokenizer.eos_ids),
        logprobs=(asked.top_logprobs or 0) if asked.logprobs else None,
    )
