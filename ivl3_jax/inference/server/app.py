"""The server's addresses."""

import asyncio
import base64
import contextlib
import io
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import anyio
from PIL import Image
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.requests import Request as Call
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.records import Message, Sample, Stored
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import NoRoom, Request
from ivl3_jax.inference.server import prompts, schema
from ivl3_jax.inference.server.answers import Answer
from ivl3_jax.inference.server.errors import ApiError
from ivl3_jax.inference.server.metrics import Metrics
from ivl3_jax.inference.server.pictures import Sources, fetch
from ivl3_jax.inference.server.prompts import Bounds
from ivl3_jax.inference.server.service import Failed, Service

PAGE = Path(__file__).parent / "page"
BODY = 60.0  # seconds that a body may take to come
LAST = 5.0  # seconds for the last event of an answer that takes too long
LOOK = 0.5  # seconds between two looks whether a client that waits has gone
CUT_SHORT = (TimeoutError, NoRoom, Failed)  # what keeps a request that is taken from its answer's end


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        model: its name in answers. key: that clients have to send; None asks for none.
        sources: of pictures. bounds: of a request.
        names: of this machine that calls may be for, so that no page of another place passes for its own; None is all.
    """

    model: str
    key: str | None = None
    sources: Sources = field(default_factory=Sources)
    bounds: Bounds = field(default_factory=Bounds)
    names: tuple[str, ...] | None = None


class _Events(StreamingResponse):
    """Server-sent events for so many seconds; then the event that `late` makes is the last.

    Whatever becomes of the client, who may also read no further, their generator is closed, and then `done` is called.
    """

    def __init__(
        self, events: AsyncGenerator[str], seconds: float, late: Callable[[], str], done: Callable[[], None]
    ) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._seconds, self._late, self._done = events, seconds, late, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        begun = False

        async def sending(message: MutableMapping[str, Any]) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            try:
                async with asyncio.timeout(self._seconds):
                    await super().__call__(scope, receive, sending)
            except TimeoutError:
                last = {"type": "http.response.body", "body": self._late().encode(), "more_body": False}
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST):
                        if not begun:
                            await send({"type": "http.response.start", "status": 504, "headers": self.raw_headers})
                        await send(last)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
            self._done()


class Server:
    """Answers the calls; one for each application."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self.processor, self.settings = chat.processor, settings
        self.service, self.metrics, self.began = Service(chat.engine), Metrics(), int(time.time())
        self.left = chat.engine.left
        self._places = asyncio.Semaphore(settings.bounds.waiting)

    async def _place(self) -> None:
        """Takes one of the places for requests that are read or answered."""
        if self._places.locked():
            told = f"{self.settings.bounds.waiting} requests are being answered; try again later"
            raise ApiError(429, told, code="queue_full")
        await self._places.acquire()

    async def completions(self, call: Call) -> Response:
        """POST /v1/chat/completions."""
        await self._place()
        streaming, began = False, time.perf_counter()
        try:
            async with asyncio.timeout(self.settings.bounds.seconds):
                asked, request = await self._asked(call)
            answer = Answer(asked, self.settings.model, self.processor.tokenizer, len(request.prompt))
            streaming = bool(asked.stream)
            del asked
            if streaming:
                events, late = self._streamed(answer, request, began), partial(self._broken_off, answer, TimeoutError())
                return _Events(events, self._left(began), late, partial(self._streamed_out, answer))
            return await self._whole(call, answer, request, began)
        except CUT_SHORT as error:
            raise self._cut_short(error) from None
        finally:
            if not streaming:
                self._places.release()

    async def _asked(self, call: Call) -> tuple[schema.ChatRequest, Request]:
        asked = schema.read(await self._json(call))
        if asked.model != self.settings.model:
            told = f"the model {asked.model!r} does not exist; there is {self.settings.model!r}"
            raise ApiError(404, told, param="model", code="model_not_found")
        bounds = self.settings.bounds
        encoded = await prompts.prompt(asked, self.processor, self.settings.sources, bounds)
        return asked, prompts.request(asked, encoded, self.processor, bounds, self.left(encoded))

    def _left(self, began: float) -> float:
        """Seconds that a request which began then may still take."""
        return began + self.settings.bounds.seconds - time.perf_counter()

    async def _whole(self, call: Call, answer: Answer, request: Request, began: float) -> Response:
        texts: list[str] = ["" for _ in answer.choices]
        logprobs: list[list] = [[] for _ in answer.choices]

        async def collect() -> None:
            said = self.service.answer(request)
            try:
                async for number, text, told in answer.pieces(said):
                    if not any(texts) and text:
                        self.metrics.first.observe(time.perf_counter() - began)
                    texts[number] += text
                    logprobs[number] += told or []
            finally:
                await said.aclose()

        work = asyncio.create_task(collect())
        try:
            async with asyncio.timeout(self._left(began)):
                while not work.done():
                    await asyncio.wait({work}, timeout=LOOK)
                    if not work.done() and await call.is_disconnected():
                        raise ClientDisconnect
                work.result()
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._count(answer, began)
        return JSONResponse(answer.whole(texts, logprobs))

    async def _streamed(self, answer: Answer, request: Request, began: float) -> AsyncGenerator[str]:
        said = self.service.answer(request)
        first = True
        try:
            async for event in answer.events(said):
                if first and answer.ticket is not None:
                    self.metrics.first.observe(time.perf_counter() - began)
                    first = False
                yield event
            answer.status = 200
        except CUT_SHORT as error:
            yield self._broken_off(answer, error)
        except Exception:
            answer.status = 500
            raise
        finally:
            await said.aclose()
            self._count(answer, began)

    def _broken_off(self, answer: Answer, error: Exception) -> str:
        """The last event of a stream that does not come to its end."""
        told = self._cut_short(error)
        answer.status = told.status
        return f"data: {json.dumps(told.body)}\n\n"

    def _streamed_out(self, answer: Answer) -> None:
        """A stream has ended, whether or not it began."""
        self.metrics.requests.labels(str(answer.status)).inc()
        self._places.release()

    def _cut_short(self, error: Exception) -> ApiError:
        """What the client of a request is told that could not be answered to its end."""
        if isinstance(error, TimeoutError):
            return ApiError(504, f"not answered within {self.settings.bounds.seconds:g} s", code="timeout")
        if isinstance(error, NoRoom):
            return ApiError(400, str(error), param="messages", code="context_length_exceeded")
        return ApiError(500, "the engine broke down; see the server's log", code="engine_failed")

    def _count(self, answer: Answer, began: float) -> None:
        usage = answer.usage
        self.metrics.prompt_tokens.inc(usage["prompt_tokens"])
        self.metrics.reused_tokens.inc(usage["prompt_tokens_details"]["cached_tokens"])
        self.metrics.answer_tokens.inc(usage["completion_tokens"])
        self.metrics.whole.observe(time.perf_counter() - began)

    async def tiles(self, call: Call) -> Response:
        """POST /v1/tiles {"url": data URL}: the tiles that the model sees of a picture, as PNGs."""
        await self._place()
        try:
            async with asyncio.timeout(self.settings.bounds.seconds):
                fields = await self._json(call)
                if not isinstance(fields, dict) or not isinstance(fields.get("url"), str):
                    raise ApiError(400, 'url is missing; the body must be {"url": "data:image/..."}', param="url")
                stored = await fetch(fields["url"], self.settings.sources, "url")
                tiles = await prompts.aside(self._cut, stored)
            return JSONResponse({"tiles": tiles, "tokens": self.processor.tile_tokens})
        except Fault as fault:
            raise ApiError(400, str(fault), param="url", code="invalid_image") from None
        except TimeoutError as error:
            raise self._cut_short(error) from None
        finally:
            self._places.release()

    def _cut(self, stored: Stored) -> list[str]:
        sample = Sample((Message("user", "<image>"),), (stored,))
        tiles: Any = self.processor.opened(sample, self.processor.max_tiles).images[0]
        return [_png(tile) for tile in tiles]

    async def models(self, call: Call) -> Response:
        """GET /v1/models."""
        return JSONResponse({"object": "list", "data": [self._model()]})

    async def model(self, call: Call) -> Response:
        """GET /v1/models/NAME."""
        if call.path_params["name"] != self.settings.model:
            told = f"the model {call.path_params['name']!r} does not exist; there is {self.settings.model!r}"
            raise ApiError(404, told, param="model", code="model_not_found")
        return JSONResponse(self._model())

    def _model(self) -> dict[str, Any]:
        return {"id": self.settings.model, "object": "model", "created": self.began, "owned_by": "ivl3_jax"}

    async def health(self, call: Call) -> Response:
        """GET /health: 503 if nothing can be generated any more."""
        failed = self.service.failure is not None
        return JSONResponse({"status": "failed" if failed else "ok"}, 503 if failed else 200)

    async def measured(self, call: Call) -> Response:
        """GET /metrics."""
        self.metrics.running.set(len(self.service.running))
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    async def _json(self, call: Call) -> Any:
        """The body, decoded.

        Raises:
            ApiError: 413, it is too large; 408, it comes too slowly; 400, it is no JSON.
        """
        most, body = self.settings.bounds.body, bytearray()
        if call.headers.get("content-length", "0").isdigit() and int(call.headers.get("content-length", "0")) > most:
            raise ApiError(413, f"the body is larger than {most / 2**20:.3g} MiB, the most that is taken")
        try:
            async with asyncio.timeout(BODY):
                async for piece in call.stream():
                    body += piece
                    if len(body) > most:
                        raise ApiError(413, f"the body is larger than {most / 2**20:.3g} MiB, the most that is taken")
        except TimeoutError:
            raise ApiError(408, f"the body was not sent within {BODY:g} s", code="timeout") from None
        try:
            return json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON ({error})", code="invalid_json") from None

    def check(self, call: Call) -> None:
        """Whether a call may be answered.

        Raises:
            ApiError: 403, a page of another place asks, or calls this machine by another name; 401, without the key, if
                there is one.
        """
        host = call.headers.get("host", "")
        if self.settings.names is not None and (call.url.hostname or "") not in self.settings.names:
            told = f"the call is for {host!r}; here it may be for {', '.join(self.settings.names)}"
            raise ApiError(403, told, code="wrong_host")
        if (origin := call.headers.get("origin")) is not None and origin.partition("://")[2] != host:
            raise ApiError(403, f"a page of {origin} may not ask here", code="wrong_origin")
        if not self._has_key(call):
            told = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
            raise ApiError(401, told, code="invalid_api_key")

    def _has_key(self, call: Call) -> bool:
        if self.settings.key is None or not call.url.path.startswith("/v1/"):
            return True
        scheme, _, given = call.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(given.encode(), self.settings.key.encode())


def application(chat: Chat, settings: Settings) -> Starlette:
    """The server as an ASGI application; its thread runs while it does."""
    server = Server(chat, settings)

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        server.service.start()
        yield
        await asyncio.to_thread(server.service.stop)

    def guarded(answer: Callable[[Call], Awaitable[Response]]) -> Callable[[Call], Awaitable[Response]]:
        async def run(call: Call) -> Response:
            try:
                server.check(call)
                response = await answer(call)
            except ApiError as error:
                response = JSONResponse(error.body, error.status)
                if error.status == 429:
                    response.headers["retry-after"] = "1"
            except ClientDisconnect:
                response = Response(status_code=499)
            except Exception:
                server.metrics.requests.labels("500").inc()
                raise
            if not isinstance(response, _Events):  # how a stream ends is known at its end
                server.metrics.requests.labels(str(response.status_code)).inc()
            return response

        return run

    async def unknown(call: Call, error: Exception) -> Response:
        status = error.status_code if isinstance(error, HTTPException) else 500
        told = {404: f"there is nothing at {call.url.path}", 405: f"{call.method} is not for {call.url.path}"}
        return JSONResponse(ApiError(status, told.get(status, "an error of this server; see its log")).body, status)

    routes = [
        Route("/v1/chat/completions", guarded(server.completions), methods=["POST"]),
        Route("/v1/tiles", guarded(server.tiles), methods=["POST"]),
        Route("/v1/models", guarded(server.models)),
        Route("/v1/models/{name:path}", guarded(server.model)),
        Route("/health", server.health),
        Route("/metrics", server.measured),
        Route("/", _file("index.html")),
        *(Route(f"/{name}", _file(name)) for name in ("chat.js", "style.css")),
    ]
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: unknown, Exception: unknown})
    app.state.server = server
    return app


def _file(name: str) -> Callable[[Call], Awaitable[Response]]:
    async def send(call: Call) -> Response:
        return FileResponse(PAGE / name, headers={"cache-control": "no-cache"})

    return send


def _png(tile: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
