"""What the engine says, in the form of OpenAI's completions."""

import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import InitVar, dataclass, field
from typing import Any

from ivl3_jax.data.tokenizer import Tokenizer
from ivl3_jax.inference.request import Said, Ticket
from ivl3_jax.inference.server.schema import ChatRequest
from ivl3_jax.inference.wording import Wording


@dataclass
class Choice:
    """One answer as far as it has come."""

    wording: Wording
    tokens: int = 0
    finish: str | None = None
    untold: list[dict[str, Any]] = field(default_factory=list)  # log-probabilities of tokens without text as yet


@dataclass
class Answer:
    """The answers of a request, and what they are called.

    Attributes:
        ticket: of the engine, once it has said something.
        status: of HTTP, of a stream that has ended; 499 says that its client left first.
    """

    asked: InitVar[ChatRequest]  # not kept: it has the pictures
    model: str
    tokenizer: Tokenizer
    prompt_tokens: int
    id: str = field(default_factory=lambda: f"chatcmpl-{uuid.uuid4().hex}")
    created: int = field(default_factory=lambda: int(time.time()))
    ticket: Ticket | None = None
    status: int = 499

    def __post_init__(self, asked: ChatRequest) -> None:
        self.choices = [Choice(Wording(self.tokenizer, asked.stop or [])) for _ in range(asked.n or 1)]
        self._logprobs = bool(asked.logprobs)
        self._counted = asked.stream_options is not None and asked.stream_options.include_usage

    async def pieces(self, said: AsyncIterator[tuple[Ticket, Said]]) -> AsyncIterator[tuple[int, str, list | None]]:
        """(choice, text, log-probabilities) as they come; an answer that is at a stop string is cancelled."""
        async for ticket, one in said:
            self.ticket, choice = ticket, self.choices[one.sample]
            if choice.finish is not None:
                continue
            if one.token is not None:
                choice.tokens += 1
                text = choice.wording.add(one.token)
                if one.logprob is not None:
                    choice.untold.append(self._logprob(one))
                if choice.wording.stopped:
                    ticket.cancel(one.sample)
            else:
                text = choice.wording.end()
            if choice.wording.stopped:
                choice.finish = "stop"
            elif one.finish is not None:
                choice.finish = one.finish
            if text or choice.finish is not None:
                told, choice.untold = choice.untold, []
                yield one.sample, text, told if self._logprobs else None

    def whole(self, texts: list[str], logprobs: list[list]) -> dict[str, Any]:
        """The completion, when everything is said."""
        choices = [
            {
                "index": number,
                "message": {"role": "assistant", "content": texts[number], "refusal": None},
                "logprobs": {"content": logprobs[number], "refusal": None} if self._logprobs else None,
                "finish_reason": choice.finish,
            }
            for number, choice in enumerate(self.choices)
        ]
        return {**self._head("chat.completion"), "choices": choices, "usage": self.usage}

    async def events(self, said: AsyncIterator[tuple[Ticket, Said]]) -> AsyncIterator[str]:
        """The same as a stream of server-sent events."""
        head = self._head("chat.completion.chunk") | ({"usage": None} if self._counted else {})

        def event(number: int, delta: dict, logprobs: list | None = None, finish: str | None = None) -> str:
            told = None if logprobs is None else {"content": logprobs, "refusal": None}
            choice = {"index": number, "delta": delta, "logprobs": told, "finish_reason": finish}
            return _event({**head, "choices": [choice]})

        for number in range(len(self.choices)):
            yield event(number, {"role": "assistant", "content": "", "refusal": None})
        async for number, text, logprobs in self.pieces(said):
            if text or logprobs:
                yield event(number, {"content": text}, logprobs)
            if (finish := self.choices[number].finish) is not None:
                yield event(number, {}, finish=finish)
        if self._counted:
            yield _event({**head, "choices": [], "usage": self.usage})
        yield "data: [DONE]\n\n"

    @property
    def usage(self) -> dict[str, Any]:
        """Tokens so far, those of the prompt that needed no work apart."""
        told = sum(choice.tokens for choice in self.choices)
        reused = (self.ticket.reused if self.ticket else None) or 0
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": told,
            "total_tokens": self.prompt_tokens + told,
            "prompt_tokens_details": {"cached_tokens": reused},
        }

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprob(self, said: Said) -> dict[str, Any]:
        def entry(token: int | None, logprob: float | None) -> dict[str, Any]:
            found = b"" if token is None else self.tokenizer.bytes_of(token)
            return {"token": found.decode(errors="replace"), "logprob": logprob, "bytes": list(found)}

        return entry(said.token, said.logprob) | {"top_logprobs": [entry(*likely) for likely in said.likely]}


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
