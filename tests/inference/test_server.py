"""The server, as real clients meet it: the openai package, httpx, and bad requests of every kind."""

import asyncio
import base64
import io
import json
import resource
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra: serve)")
pytest.importorskip("openai", reason="openai is not installed (extra: dev)")

import httpx
import openai
import uvicorn

import ivl3_jax
from ivl3_jax.data.records import Message, Sample
from ivl3_jax.inference.request import Limits, Request
from ivl3_jax.inference.sampling import Sampling
from ivl3_jax.inference.server.app import Settings, application
from ivl3_jax.inference.server.pictures import Sources
from ivl3_jax.inference.server.prompts import Bounds
from ivl3_jax.inference.server.service import Service
from tests.models.small import checkpoint

KEY = "sesame"
NEW = 8


def png(seed=0, size=(40, 70)):
    file = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


@pytest.fixture(scope="module")
def chat():
    return ivl3_jax.Chat(ivl3_jax.load(checkpoint()), limits=Limits(rows=8, page=16, piece=64, positions=4096))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("allowed")
    (folder / "a.png").write_bytes(png())
    secret = tmp_path_factory.mktemp("secret") / "b.png"
    secret.write_bytes(png(1))
    (folder / "link.png").symlink_to(secret)
    return folder


@pytest.fixture(scope="module")
def app(chat, pictures):
    bounds = Bounds(images=3, tokens=64, samples=4, body=1 << 20, seconds=120, waiting=80)
    return application(chat, Settings("small", KEY, Sources((pictures,), ("127.0.0.1:1",), 1 << 18), bounds))


def served(app):
    """Runs an application in a thread; yields its address."""
    config = uvicorn.Config(app, "127.0.0.1", 0, log_level="error", timeout_keep_alive=75)
    server, listening = uvicorn.Server(config), config.bind_socket()
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{listening.getsockname()[1]}"
    server.should_exit = True
    thread.join()


@pytest.fixture(scope="module")
def address(app):
    yield from served(app)


@pytest.fixture(scope="module")
def client(address):
    return openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=120)


def asked(text="How many?", *urls, **more):
    content = [{"type": "image_url", "image_url": {"url": url}} for url in urls]
    content.append({"type": "text", "text": text})
    given = {"model": "small", "messages": [{"role": "user", "content": content}], "max_tokens": NEW, "temperature": 0}
    return given | more


def test_answers_are_those_of_python(client, chat):
    image = Image.open(io.BytesIO(png()))
    expected = chat.ask("How many?", [image], max_new_tokens=NEW)
    found = client.chat.completions.create(**asked("How many?", data_url(png())))
    (choice,) = found.choices
    assert choice.message.content == expected != "" and choice.message.role == "assistant"
    assert choice.finish_reason in ("length", "stop")
    assert found.usage.completion_tokens <= NEW
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens
    assert found.model == "small" and found.id.startswith("chatcmpl-")


def test_a_stream_is_the_same_answer_in_pieces(client):
    whole = client.chat.completions.create(**asked("Who?"))
    chunks = list(client.chat.completions.create(**asked("Who?"), stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == whole.choices[0].finish_reason
    assert chunks[0].choices[0].delta.role == "assistant"


def test_several_turns_with_pictures_and_a_system_message(client, chat):
    talk = chat.conversation()
    talk.set_system("Be brief.")
    first = talk.ask("One?", [Image.open(io.BytesIO(png()))], max_new_tokens=NEW)
    second = talk.ask("Two?", max_new_tokens=NEW)
    messages = [{"role": "system", "content": "Be brief."}, *asked("One?", data_url(png()))["messages"]]
    found = client.chat.completions.create(**asked() | {"messages": messages})
    assert found.choices[0].message.content == first
    # As clients do: the message that came is sent back.
    messages += [found.choices[0].message, {"role": "user", "content": "Two?"}]
    found = client.chat.completions.create(**asked() | {"messages": messages})
    assert found.choices[0].message.content == second
    assert found.usage.prompt_tokens_details.cached_tokens > 0


def test_samples_seeds_and_temperatures(client, chat):
    given = asked("Who?", n=3, temperature=2.0, seed=5, top_p=0.9)
    found = [choice.message.content for choice in client.chat.completions.create(**given).choices]
    again = [choice.message.content for choice in client.chat.completions.create(**given).choices]
    assert found == again and len(set(found)) > 1
    alone = chat.ask("Who?", max_new_tokens=NEW, sampling=Sampling(2.0, top_p=0.9, seed=5))
    assert found[0] == alone
    others = {
        client.chat.completions.create(**asked("Who?", temperature=2.0)).choices[0].message.content for _ in "123"
    }
    assert len(others) > 1, "without a seed every answer is another"


def test_log_probabilities(client):
    found = client.chat.completions.create(**asked("Who?", logprobs=True, top_logprobs=3))
    told = found.choices[0].logprobs.content
    assert len(told) == found.usage.completion_tokens
    for token in told:
        assert len(token.top_logprobs) == 3 and token.top_logprobs[0].logprob == token.logprob <= 0
    assert all(bytes(token.bytes).decode(errors="replace") == token.token for token in told)
    streamed = client.chat.completions.create(**asked("Who?", logprobs=True, top_logprobs=3), stream=True)
    pieces = [c.choices[0].logprobs.content for c in streamed if c.choices and c.choices[0].logprobs]
    assert [token.token for piece in pieces for token in piece] == [token.token for token in told]


def test_stop_strings(client):
    whole = client.chat.completions.create(**asked("Who?", max_tokens=30)).choices[0].message.content
    stop = whole[len(whole) // 2 :][:3]
    found = client.chat.completions.create(**asked("Who?", max_tokens=30, stop=[stop])).choices[0]
    assert found.message.content == whole[: whole.index(stop)] and found.finish_reason == "stop"


def test_files_that_are_allowed(client, pictures):
    there = client.chat.completions.create(**asked("Who?", f"file://{pictures}/a.png"))
    sent = client.chat.completions.create(**asked("Who?", data_url(png())))
    assert there.choices[0].message.content == sent.choices[0].message.content


def test_models_health_metrics_and_the_page(client, address):
    assert [model.id for model in client.models.list()] == ["small"]
    assert client.models.retrieve("small").id == "small"
    assert httpx.get(f"{address}/health").json() == {"status": "ok"}
    client.chat.completions.create(**asked("Who?"))
    metrics = httpx.get(f"{address}/metrics").text
    assert 'ivl3_requests_total{status="200"}' in metrics and "ivl3_first_piece_seconds_bucket" in metrics
    page = httpx.get(f"{address}/")
    assert page.status_code == 200 and "<title>ivl3 chat</title>" in page.text
    for name in ("chat.js", "style.css"):
        assert httpx.get(f"{address}/{name}").status_code == 200


def test_tiles_of_a_picture(address, chat):
    answer = httpx.post(
        f"{address}/v1/tiles", json={"url": data_url(png())}, headers={"authorization": f"Bearer {KEY}"}
    )
    tiles = answer.json()["tiles"]
    assert len(tiles) > 1 and answer.json()["tokens"] == 4
    assert Image.open(io.BytesIO(base64.b64decode(tiles[0].partition(",")[2]))).size == (28, 28)


def bomb():
    """A PNG that says it has ten thousand million pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    )


def messages(*given):
    return {"messages": list(given)}


def part(**fields):
    return messages({"role": "user", "content": [fields]})


def image(url):
    return part(type="image_url", image_url={"url": url})


BAD = [
    ({"messages": []}, 400, "messages", "at least 1 item"),
    ({"messages": None}, 400, "messages", "valid list"),
    ({"messages": "hello"}, 400, "messages", "messages is 'hello'"),
    (messages({"role": "robot", "content": "x"}), 400, "messages.0.role", "'robot'"),
    (messages({"role": "user"}), 400, "messages.0.content", "missing"),
    (messages({"role": "user", "content": 7}), 400, "messages.0.content", "7"),
    (messages({"role": "assistant", "content": "x"}), 400, "messages", "must end with a user turn"),
    (messages({"role": "user", "content": "a"}, {"role": "system", "content": "b"}), 400, "messages", "the last turn"),
    (messages({"role": "user", "content": "<|im_end|>"}), 400, "messages", "special token <|im_end|>"),
    (messages({"role": "user", "content": "an <image> here"}), 400, "messages.0.content", "parts of type image_url"),
    (messages({"role": "user", "content": "a <video> tag"}), 400, "messages.0.content", "write it < video>"),
    (messages({"role": "user", "content": "\ud800"}), 400, None, ""),
    (part(type="video", text="x"), 400, "messages.0.content.0", "'text', 'image_url'"),
    (part(type="text", text=3), 400, "messages.0.content.0.text", "3"),
    (part(type="image_url", image_url="x"), 400, "messages.0.content.0.image_url", "'x'"),
    (
        messages({"role": "assistant", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}),
        400,
        None,
        "user's",
    ),
    (image("http://127.0.0.1/a.png"), 400, None, "asks no other host"),
    (image("http://169.254.169.254/latest/meta-data"), 400, None, "asks no other host"),
    (image("http://127.0.0.1:1@evil.example/a.png"), 400, None, "asks no other host"),
    (image("http://[::1]/a.png"), 400, None, "asks no other host"),
    (image("http://127.0.0.1:1/a.png"), 400, None, "cannot be read"),
    (image("https://example.com/a.png"), 400, None, "asks no other host"),
    (image("http://127.0.0.1:notaport/"), 400, None, "no address"),
    (image("ftp://example.com/a.png"), 400, None, "no data URL"),
    (image("gs://bucket/a.png"), 400, None, "no data URL"),
    (image("/etc/passwd"), 400, None, "no data URL"),
    (image("file:///etc/passwd"), 400, None, "no file in a folder"),
    (image("file://elsewhere/a.png"), 400, None, "names a host"),
    (image("data:image/png;base64,@@@"), 400, None, "no valid base64"),
    (image("data:image/png,abc"), 400, None, "base64"),
    (image("data:text/html;base64,AAAA"), 400, None, "text/html"),
    (image(data_url(b"not a picture")), 400, None, "cannot be read as an image"),
    (image(data_url(b"")), 400, None, "the file is empty"),
    (image(data_url(png()[:200])), 400, None, "cannot be read as an image"),
    (image(data_url(bomb())), 400, None, "decompression bomb"),
    (image(data_url(b"\0" * (1 << 18) + b"\0\0\0\0")), 400, None, "larger than 0.25 MiB"),
    ({"model": "gpt-4o"}, 404, "model", "the model 'gpt-4o' does not exist; there is 'small'"),
    ({"model": None}, 400, "model", "None"),
    ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1"),
    ({"max_tokens": 65}, 400, "max_tokens", "at most 64"),
    ({"max_tokens": "many"}, 400, "max_tokens", "'many'"),
    ({"max_completion_tokens": 1000}, 400, "max_completion_tokens", "at most 64"),
    ({"temperature": -1}, 400, "temperature", "-1"),
    ({"temperature": 3}, 400, "temperature", "less than or equal to 2"),
    ({"top_p": 0}, 400, "top_p", "greater than 0"),
    ({"top_k": -1}, 400, "top_k", "-1"),
    ({"n": 0}, 400, "n", "greater than or equal to 1"),
    ({"n": 5}, 400, "n", "at most 4"),
    ({"stop": [""]}, 400, "stop", "up to 16 texts"),
    ({"stop": ["a"] * 17}, 400, "stop", "up to 16 texts"),
    ({"logprobs": True, "top_logprobs": 21}, 400, "top_logprobs", "less than or equal to 20"),
    ({"top_logprobs": 2}, 400, "top_logprobs", "needs logprobs"),
    ({"presence_penalty": 9}, 400, "presence_penalty", "less than or equal to 2"),
    ({"seed": 2**70}, 400, "seed", ""),
    ({"tools": [{"type": "function"}]}, 400, "tools", "not supported"),
    ({"response_format": {"type": "json_object"}}, 400, "response_format", "not supported"),
    ({"temprature": 1}, 400, "temprature", "unknown; there are model, messages"),
    ({"stream": "yes"}, 400, "stream", "'yes'"),
]


@pytest.mark.parametrize(("changed", "status", "param", "told"), BAD, ids=lambda value: str(value)[:40])
def test_bad_requests(address, changed, status, param, told):
    """In OpenAI's form, with the place, what was found and what would be valid."""
    body = json.dumps(asked() | changed)
    answer = httpx.post(f"{address}/v1/chat/completions", content=body, headers={"authorization": f"Bearer {KEY}"})
    error = answer.json()["error"]
    assert answer.status_code == status, error
    assert set(error) == {"message", "type", "param", "code"}
    assert told in error["message"] and len(error["message"]) < 500
    assert param is None or error["param"] == param
    assert "Traceback" not in answer.text and str(checkpoint()) not in answer.text


def test_requests_that_are_none(address, pictures):
    url, key = f"{address}/v1/chat/completions", {"authorization": f"Bearer {KEY}"}
    for body, status in [(b"{", 400), (b"[]", 400), (b"\xff", 400), (b"[" * 100_000, 400), (b"x" * (2 << 20), 413)]:
        answer = httpx.post(url, content=body, headers=key)
        assert answer.status_code == status and answer.json()["error"]["message"]
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": KEY}, {"authorization": "Basic sesame"}):
        answer = httpx.post(url, json=asked(), headers=headers)
        assert answer.status_code == 401 and answer.json()["error"]["code"] == "invalid_api_key"
    assert httpx.get(url, headers=key).status_code == 405
    assert httpx.get(f"{address}/v1/nothing", headers=key).status_code == 404
    assert httpx.get(f"{address}/../../etc/passwd").status_code == 404
    link = asked("Who?", f"file://{pictures}/link.png")
    assert "no file in a folder" in httpx.post(url, json=link, headers=key).json()["error"]["message"]
    many = httpx.post(url, json=asked("Who?", *[data_url(png())] * 4), headers=key)
    assert many.json()["error"]["code"] == "too_many_images"
    long = httpx.post(url, json=asked("word " * 40_000), headers=key).json()["error"]
    assert long["code"] == "context_length_exceeded"


def test_openai_raises_what_its_users_expect(client, address):
    with pytest.raises(openai.BadRequestError, match="max_tokens is 0"):
        client.chat.completions.create(**asked(max_tokens=0))
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(**asked(model="other"))
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0).models.list()


def resident():
    """MiB of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def test_many_clients_of_whom_some_leave(address, chat, app):
    """500 requests, 64 at a time: nothing is lost or mixed up, everything comes back, and memory does not grow."""
    requests, at_once = 500, 64
    texts = [f"Question {number}?" for number in range(10)]
    expected = {text: chat.ask(text, max_new_tokens=NEW) for text in texts}
    client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0, timeout=300)
    rng = np.random.default_rng(0)

    async def one(number):
        text, leaves = texts[number % len(texts)], rng.random() < 0.2
        if rng.random() < 0.5:
            call = client.chat.completions.create(**asked(text))
            if leaves:
                try:
                    await asyncio.wait_for(call, rng.random() * 0.5)
                except TimeoutError:
                    return "left"
                return "done"
            found = await call
            assert found.choices[0].message.content == expected[text]
            return "done"
        stream = await client.chat.completions.create(**asked(text), stream=True)
        told = ""
        async for chunk in stream:
            told += chunk.choices[0].delta.content or ""
            if leaves and told:
                await stream.close()
                return "left"
        assert told == expected[text]
        return "done"

    async def all_of_them():
        gate = asyncio.Semaphore(at_once)

        async def through(number):
            async with gate:
                return await one(number)

        half = requests // 2
        first = await asyncio.gather(*(through(number) for number in range(half)))
        before = resident()
        second = await asyncio.gather(*(through(number) for number in range(half, requests)))
        return first + second, resident() - before

    found, grown = asyncio.run(all_of_them())
    assert found.count("done") + found.count("left") == requests and found.count("left") > 2
    assert grown < 64, f"{grown:.0f} MiB more than after half of the requests"
    deadline = time.monotonic() + 60
    while not (chat.engine.idle and not app.state.server.service.running) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert chat.engine.idle and chat.engine._pages.available == chat.engine._pages.count - 1
    assert app.state.server._places._value == 80


def post(address, content, path="chat/completions", **headers):
    headers = {"authorization": f"Bearer {KEY}", "content-type": "application/json"} | headers
    return httpx.post(f"{address}/v1/{path}", content=content, headers=headers, timeout=60)


@pytest.mark.parametrize("url", ["file://[/x", "data:image/png;base64,é", "\\ud800"])
@pytest.mark.parametrize("path", ["chat/completions", "tiles"])
def test_an_address_that_is_none(address, url, path):
    body = json.dumps({"url": "URL"} if path == "tiles" else asked("a", "URL")).replace("URL", url)
    answer = post(address, body.encode(), path)
    assert answer.status_code == 400 and answer.json()["error"]["code"] == "invalid_image_url"


def test_a_body_of_very_many_parts_is_not_looked_at(address):
    answer = post(address, json.dumps(asked() | {"messages": [{"role": "user", "content": [{}] * 200_000}]}).encode())
    assert answer.status_code == 400 and "more than 10,000" in answer.json()["error"]["message"]


def test_a_text_of_very_many_characters_is_not_tokenised(address, app, monkeypatch):
    monkeypatch.setattr(app.state.server, "settings", replace(app.state.server.settings, bounds=Bounds(seconds=60)))
    answer = post(address, json.dumps(asked("x" * 1_100_000)).encode())
    assert answer.status_code == 400 and "characters of text" in answer.json()["error"]["message"]


def test_a_slow_body_gives_its_place_back(address, app, monkeypatch):
    monkeypatch.setattr("ivl3_jax.inference.server.app.BODY", 0.3)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {KEY}\r\ncontent-length: 9\r\n\r\n"
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        slow.sendall(f"{head}x".encode())
        assert b" 408 " in slow.recv(4096)
    assert app.state.server._places._value == 80


def test_pages_of_other_places_may_not_ask(address, app, monkeypatch):
    """Neither from their own address, nor by a name of theirs that leads here."""
    body, own = json.dumps(asked()).encode(), address.removeprefix("http://")
    assert post(address, body, origin=f"http://{own}").status_code == 200
    assert post(address, body, origin="http://evil.example").status_code == 403
    assert post(address, body, origin="null").status_code == 403
    monkeypatch.setattr(app.state.server, "settings", replace(app.state.server.settings, names=("127.0.0.1",)))
    assert post(address, body).status_code == 200
    found = post(address, body, host="evil.example")
    assert found.status_code == 403 and found.json()["error"]["code"] == "wrong_host"


def test_a_client_that_leaves_while_its_request_is_taken(chat):
    """The request is cancelled as soon as it is there."""
    service = Service(chat.engine)
    submit, tickets = chat.engine.submit, []

    def slow(request, listener):
        time.sleep(0.3)
        tickets.append(submit(request, listener))
        return tickets[0]

    async def leave():
        answer = service.answer(Request(chat.processor.encode_prompt(Sample((Message("user", "a"),))), 4))
        task = asyncio.create_task(anext(answer))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0.5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chat.engine, "submit", slow)
        asyncio.run(leave())
    assert tickets[0].unwanted == {0} and not service.running


def test_killed_and_started_again(tmp_path):
    """A server that was killed in the middle of an answer leaves nothing that keeps the next from starting there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "ivl3_jax.cli.main", "serve", str(checkpoint()), "--port", str(port)]
    client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
    told = []
    for attempt in range(2):
        server = subprocess.Popen([*command, "--name", "small"], stdout=subprocess.PIPE, text=True)
        try:
            assert server.stdout.readline().startswith("serving small at")
            stream = client.chat.completions.create(**{**asked(), "max_tokens": 200}, stream=True)
            first = [next(stream).choices[0].delta.content for _ in range(4)]
            if attempt == 0:
                server.kill()
                with pytest.raises((httpx.HTTPError, openai.APIConnectionError)):
                    list(stream)
            told.append(first)
        finally:
            server.kill()
            server.wait()
    assert told[0] == told[1]


def test_a_full_server_says_so(address, app, monkeypatch):
    monkeypatch.setattr(app.state.server, "_places", asyncio.Semaphore(0))
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked(), headers={"authorization": f"Bearer {KEY}"})
    assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
    assert answer.json()["error"]["code"] == "queue_full"
