"""The body of a chat completion, as OpenAI's clients write it."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from ivl3_jax.inference.request import MOST_LOGPROBS
from ivl3_jax.inference.server.errors import ApiError

ENTRIES = 10_000  # of a body's objects and lists, together
STOPS = 16  # stop strings of a request, each of so many characters at most
LONGEST_STOP = 256
# What clients may send and what means nothing here, with the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "logit_bias": (None, {}),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
}
# What an assistant's message of an answer has besides its words, which clients send back as they got it.
EMPTY: dict[str, tuple[Any, ...]] = {
    "refusal": (None,),
    "annotations": (None, []),
    "audio": (None,),
    "function_call": (None,),
    "tool_calls": (None, []),
}
IGNORED = ("user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier", "prompt_cache_key")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class TextPart(_Strict):
    """Words."""

    type: Literal["text"]
    text: str


class ImageUrl(_Strict):
    """Where a picture is: a data URL, or a file or address that the server allows."""

    url: str
    detail: Literal["auto", "low", "high"] = "auto"


class ImagePart(_Strict):
    """A picture."""

    type: Literal["image_url"]
    image_url: ImageUrl


Part = Annotated[TextPart | ImagePart, Field(discriminator="type")]


class ChatMessage(_Strict):
    """One turn; pictures stand where their parts do."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Part]
    name: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _without_empty(cls, value: Any) -> Any:
        if not isinstance(value, dict) or value.get("role") != "assistant":
            return value
        kept = {name: field for name, field in value.items() if field not in EMPTY.get(name, ())}
        return kept | {"content": ""} if kept.get("content", "") is None else kept


class StreamOptions(_Strict):
    """What a stream tells besides its pieces."""

    include_usage: bool = False
    include_obfuscation: bool = False


class ChatRequest(_Strict):
    """A chat completion; `top_k` and `repetition_penalty` are not OpenAI's."""

    model: str
    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    n: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @field_validator("stop")
    @classmethod
    def _few_stops(cls, value: str | list[str] | None) -> list[str]:
        stops = [value] if isinstance(value, str) else value or []
        if len(stops) > STOPS or any(not 0 < len(stop) <= LONGEST_STOP for stop in stops):
            raise ValueError(f"it may have up to {STOPS} texts of 1 to {LONGEST_STOP} characters")
        return stops


def read(fields: Any) -> ChatRequest:
    """The request of a decoded JSON body.

    Raises:
        ApiError: 400, with the place in the body, the value found, and what would be valid.
    """
    if not isinstance(fields, dict):
        raise ApiError(400, f"the body is {_shown(fields)}; it must be a JSON object")
    if _entries(fields, ENTRIES) > ENTRIES:  # each may be found wrong, which takes time and memory
        raise ApiError(400, f"the body has more than {ENTRIES:,} messages, parts and fields, the most that are taken")
    fields = {name: value for name, value in fields.items() if name not in IGNORED}
    for name, neutral in NEUTRAL.items():
        if name in fields and fields.pop(name) not in neutral:
            raise ApiError(400, f"{name} is not supported here; leave it out", param=name, code="unsupported_parameter")
    try:
        request = ChatRequest.model_validate(fields)
    except ValidationError as error:
        raise _told(error) from None
    if request.top_logprobs is not None and not request.logprobs:
        raise ApiError(400, "top_logprobs is given without logprobs; it needs logprobs: true", param="top_logprobs")
    return request


def _entries(value: Any, most: int) -> int:
    """Entries of an object or list and of all in it; counted no further than `most` is passed."""
    count, left = 0, [value]
    while left and count <= most:
        inner = left.pop()
        inner = inner.values() if isinstance(inner, dict) else inner
        count += len(inner)
        left += [each for each in inner if isinstance(each, dict | list)] if count <= most else []
    return count


def _told(error: ValidationError) -> ApiError:
    """What is wrong: of the alternatives that a value could be, the one that it comes nearest to."""
    first = max(error.errors(include_url=False), key=lambda each: len(each["loc"]))
    place = _place(first["loc"])
    name = ".".join(place)
    if first["type"] == "extra_forbidden":
        known = ", ".join(ChatRequest.model_fields) if len(place) == 1 else "those of OpenAI's reference"
        return ApiError(400, f"{name} is unknown; there are {known}", param=name, code="unknown_parameter")
    if first["type"] == "missing":
        return ApiError(400, f"{name} is missing", param=name, code="missing_required_parameter")
    wanted = first["msg"].removeprefix("Value error, ").removeprefix("Input ")
    return ApiError(400, f"{name} is {_shown(first['input'])}; {wanted}", param=name, code="invalid_value")


def _place(location: tuple[int | str, ...]) -> list[str]:
    """The path in the body, without the names that pydantic gives the alternatives of a union."""
    parts = [str(part) for part in location]
    for number, part in enumerate(parts):
        if part.startswith("list["):  # behind the place in the list stands which kind of part it is
            return [*parts[:number], *parts[number + 1 : number + 2], *parts[number + 3 :]]
    return [part for part in parts if part != "str"]


def _shown(value: Any) -> str:
    text = repr(value[:200] if isinstance(value, str | list) else value)
    return text if len(text) <= 100 else f"{text[:97]}..."
