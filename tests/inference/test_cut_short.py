"""Answers that do not come to their end: what their clients are told, and what is counted."""

import asyncio
import json
import time
from dataclasses import replace

import httpx
import pytest

pytest.importorskip("starlette", reason="starlette is not installed (extra: serve)")

import ivl3_jax
from ivl3_jax.inference.request import Limits, NoRoom
from ivl3_jax.inference.server.app import Settings, application
from ivl3_jax.inference.server.prompts import Bounds
from tests.inference.test_server import asked, served
from tests.models.small import checkpoint

TOO_LARGE = "there is no memory for a cache of that size"


@pytest.fixture
def app():
    limits = Limits(rows=2, page=16, piece=64, positions=1024)
    return application(ivl3_jax.Chat(ivl3_jax.load(checkpoint()), limits=limits), Settings("small"))


@pytest.fixture
def address(app):
    yield from served(app)


def told(address, stream):
    """The status and the error of an answer."""
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked(stream=stream), timeout=60)
    if not stream:
        return answer.status_code, answer.json()["error"]
    assert answer.status_code == 200
    *_, last = answer.text.strip().split("\n\n")
    return None, json.loads(last.removeprefix("data: "))["error"]


def counted(address):
    """Requests by their status."""
    lines = httpx.get(f"{address}/metrics").text.splitlines()
    found = [line.split() for line in lines if line.startswith("ivl3_requests_total{")]
    return {name.split('"')[1]: float(value) for name, value in found}


def test_no_memory_for_a_request(app, address, monkeypatch):
    def refuse(*_):
        raise NoRoom(TOO_LARGE)

    monkeypatch.setattr(app.state.server.service.engine, "submit", refuse)
    for stream, status in ((False, 400), (True, None)):
        found, error = told(address, stream)
        assert found == status
        assert (error["code"], error["message"]) == ("context_length_exceeded", TOO_LARGE)
    assert counted(address) == {"400": 2}


def test_an_engine_that_breaks_down(app, address, monkeypatch):
    def fail():
        raise RuntimeError("broken")

    monkeypatch.setattr(app.state.server.service.engine, "step", fail)
    for stream, status in ((True, None), (False, 500)):
        found, error = told(address, stream)
        assert found == status
        assert error["code"] == "engine_failed" and "broken" not in error["message"]
    assert counted(address) == {"500": 2}
    assert httpx.get(f"{address}/health").status_code == 503


def test_answers_that_take_too_long(app, address, monkeypatch):
    server = app.state.server
    step = server.service.engine.step
    monkeypatch.setattr(server.service.engine, "step", lambda: time.sleep(0.05))
    monkeypatch.setattr(server, "settings", replace(server.settings, bounds=Bounds(seconds=5)))
    for stream, status in ((True, None), (False, 504)):
        found, error = told(address, stream)
        assert found == status
        assert error["code"] == "timeout" and "5 s" in error["message"]
    monkeypatch.setattr(server.service.engine, "step", step)
    assert counted(address) == {"504": 2}


def test_a_client_that_reads_no_further_gives_its_place_back(app, monkeypatch):
    """Whether the rest of the answer cannot be sent, or the last event that tells of it."""
    server = app.state.server
    monkeypatch.setattr("ivl3_jax.inference.server.app.LAST", 0.2)
    server.settings = replace(server.settings, bounds=Bounds(seconds=3))
    bodies, sent = [json.dumps(asked(stream=True)).encode()], []

    async def receive():
        if not bodies:
            await asyncio.sleep(60)
        return {"type": "http.request", "body": bodies.pop()}

    async def send(message):
        sent.append(message)
        if len(sent) > 3:
            await asyncio.sleep(60)

    path = "/v1/chat/completions"
    scope = {"type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "method": "POST", "path": path}
    scope |= {"headers": [(b"host", b"here")], "query_string": b"", "root_path": "", "scheme": "http"}
    server.service.start()
    asyncio.run(asyncio.wait_for(app(scope, receive, send), 30))
    server.service.stop()
    assert b'"code": "timeout"' in sent[-1]["body"] and b"content" in sent[-2]["body"]
    assert b'ivl3_requests_total{status="504"} 1.0' in server.metrics.text()
    assert server._places._value == Bounds().waiting


def test_a_stream_whose_time_is_over_before_it_begins(app, address, monkeypatch):
    monkeypatch.setattr(app.state.server, "_left", lambda began: -1.0)
    answer = httpx.post(f"{address}/v1/chat/completions", json=asked(stream=True), timeout=60)
    assert answer.status_code in (200, 504) and '"code": "timeout"' in answer.text
    assert counted(address) == {"504": 1}


def test_an_error_that_nobody_foresaw(app, address, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr("ivl3_jax.inference.server.prompts.request", fail)
    found, error = told(address, False)
    assert found == 500 and "unforeseen" not in error["message"]
    assert counted(address) == {"500": 1}


def test_whole_streams_and_clients_that_leave(app, address, monkeypatch):
    step = app.state.server.service.engine.step
    with httpx.Client() as client:
        assert "[DONE]" in client.post(f"{address}/v1/chat/completions", json=asked(stream=True), timeout=60).text
        monkeypatch.setattr(app.state.server.service.engine, "step", lambda: (time.sleep(0.1), step()))
        body = asked(stream=True, max_tokens=200)
        with client.stream("POST", f"{address}/v1/chat/completions", json=body, timeout=60) as answer:
            next(answer.iter_lines())
    deadline = time.monotonic() + 60
    while "499" not in counted(address) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert counted(address) == {"200": 1, "499": 1}
