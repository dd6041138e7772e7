"""The server's addresses."""

import asyncio
import base64
import io
import json
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
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
from ivl3_jax.data.records import Message, Sample
from ivl3_jax.inference.chat import Chat
from ivl3_jax.inference.request import Request
from ivl3_jax.inference.server import prompts, schema
from ivl3_jax.inference.server.answers import Answer
from ivl3_jax.inference.server.errors import ApiError
from ivl3_jax.inference.server.metrics import Metrics
from ivl3_jax.inference.server.pictures import Sources, fetch
from ivl3_jax.inference.server.prompts import Bounds
from ivl3_jax.inference.server.service import Failed, Service

PAGE = Path(__file__).parent / "page"
LOOK = 0.5  # seconds between two looks whether a client that waits has gone


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        model: its name in answers. key: that clients have to send; None asks for none.
        sources: of pictures. bounds: of a request.
    """

    model: str
    key: str | None = None
    sources: Sources = field(default_factory=Sources)
    bounds: Bounds = field(default_factory=Bounds)


class _Events(StreamingResponse):
    """Server-sent events; whatever becomes of the client, their generator is closed, and then `done` is called."""

    def __init__(self, events: AsyncGenerator[str], done: Callable[[], None]) -> None:
        headers = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(events, media_type="text/event-stream", headers=headers)
        self._events, self._done = events, done

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()
            self._done()


class Server:
    """Answers the calls; one for each application."""

    def __init__(self, chat: Chat, settings: Settings) -> None:
        self.processor, self.settings = chat.processor, settings
        self.service, self.metrics, self.began = Service(chat.engine), Metrics(), int(time.time())
        self.room = chat.engine.room
        self._places = asyncio.Semaphore(settings.bounds.waiting)

    async def completions(self, call: Call) -> Response:
        """POST /v1/chat/completions."""
        if self._places.locked():
            told = f"{self.settings.bounds.waiting} requests are being answered; try again later"
            raise ApiError(429, told, code="queue_full")
        await self._places.acquire()
        streaming, began = False, time.perf_counter()
        try:
            asked = schema.read(await self._json(call))
            if asked.model != self.settings.model:
                told = f"the model {asked.model!r} does not exist; there is {self.settings.model!r}"
                raise ApiError(404, told, param="model", code="model_not_found")
            bounds = self.settings.bounds
            encoded = await prompts.prompt(asked, self.processor, self.settings.sources, bounds)
            request = prompts.request(asked, encoded, self.processor, bounds, self.room)
            answer = Answer(asked, self.settings.model, self.processor.tokenizer, len(encoded))
            streaming = bool(asked.stream)
            if streaming:
                return _Events(self._streamed(answer, request, began), self._places.release)
            return await self._whole(call, answer, request, began)
        finally:
            if not streaming:
                self._places.release()

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
            async with asyncio.timeout(self.settings.bounds.seconds):
                while not work.done():
                    await asyncio.wait({work}, timeout=LOOK)
                    if not work.done() and await call.is_disconnected():
                        raise ClientDisconnect
                work.result()
        except TimeoutError:
            raise self._too_long() from None
        except Failed:
            raise ApiError(500, "the engine broke down; see the server's log", code="engine_failed") from None
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)
            self._count(answer, began)
        return JSONResponse(answer.whole(texts, logprobs))

    async def _streamed(self, answer: Answer, request: Request, began: float) -> AsyncGenerator[str]:
        said = self.service.answer(request)
        first = True
        try:
            async with asyncio.timeout(self.settings.bounds.seconds):
                async for event in answer.events(said):
                    if first and answer.ticket is not None:
                        self.metrics.first.observe(time.perf_counter() - began)
                        first = False
                    yield event
        except TimeoutError:
            yield _failed(self._too_long())
        except Failed:
            yield _failed(ApiError(500, "the engine broke down; see the server's log", code="engine_failed"))
        finally:
            await said.aclose()
            self._count(answer, began)

    def _too_long(self) -> ApiError:
        return ApiError(504, f"not answered within {self.settings.bounds.seconds:g} s", code="timeout")

    def _count(self, answer: Answer, began: float) -> None:
        usage = answer.usage
        self.metrics.prompt_tokens.inc(usage["prompt_tokens"])
        self.metrics.reused_tokens.inc(usage["prompt_tokens_details"]["cached_tokens"])
        self.metrics.answer_tokens.inc(usage["completion_tokens"])
        self.metrics.whole.observe(time.perf_counter() - began)

    async def tiles(self, call: Call) -> Response:
        """POST /v1/tiles {"url": data URL}: the tiles that the model sees of a picture, as PNGs."""
        fields = await self._json(call)
        if not isinstance(fields, dict) or not isinstance(fields.get("url"), str):
            raise ApiError(400, 'url is missing; the body must be {"url": "data:image/..."}', param="url")
        stored = await fetch(fields["url"], self.settings.sources, "url")

        def cut() -> list[str]:
            sample = Sample((Message("user", "<image>"),), (stored,))
            tiles: Any = self.processor.opened(sample, self.processor.max_tiles).images[0]
            return [_png(tile) for tile in tiles]

        try:
            return JSONResponse({"tiles": await asyncio.to_thread(cut), "tokens": self.processor.tile_tokens})
        except Fault as fault:
            raise ApiError(400, str(fault), param="url", code="invalid_image") from None

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
            ApiError: 413, it is too large; 400, it is no JSON.
        """
        most, body = self.settings.bounds.body, bytearray()
        if call.headers.get("content-length", "0").isdigit() and int(call.headers.get("content-length", "0")) > most:
            raise ApiError(413, f"the body is larger than {most / 2**20:.3g} MiB, the most that is taken")
        async for piece in call.stream():
            body += piece
            if len(body) > most:
                raise ApiError(413, f"the body is larger than {most / 2**20:.3g} MiB, the most that is taken")
        try:
            return json.loads(bytes(body))
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON ({error})", code="invalid_json") from None

    def allowed(self, call: Call) -> bool:
        """Whether a call has the key, if there is one."""
        if self.settings.key is None or not call.url.path.startswith("/v1/"):
            return True
        scheme, _, given = call.headers.get("authorization", "").partition(" ")
        return scheme.lower() == "bearer" and secrets.compare_digest(given.encode(), self.settings.key.encode())


def application(chat: Chat, settings: Settings) -> Starlette:
    """The server as an ASGI application; its thread runs while it does."""
    server = Server(chat, settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        server.service.start()
        yield
        await asyncio.to_thread(server.service.stop)

    def guarded(answer: Callable[[Call], Awaitable[Response]]) -> Callable[[Call], Awaitable[Response]]:
        async def run(call: Call) -> Response:
            try:
                if not server.allowed(call):
                    told = "the API key is missing or wrong; send it as Authorization: Bearer KEY"
                    raise ApiError(401, told, code="invalid_api_key")
                response = await answer(call)
            except ApiError as error:
                response = JSONResponse(error.body, error.status)
                if error.status == 429:
                    response.headers["retry-after"] = "1"
            except ClientDisconnect:
                response = Response(status_code=499)
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


def _failed(error: ApiError) -> str:
    return f"data: {json.dumps(error.body)}\n\n"


def _png(tile: Any) -> str:
    file = io.BytesIO()
    Image.fromarray(tile).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
