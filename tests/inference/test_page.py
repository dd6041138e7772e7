"""The chat page in headless Chromium, clicked through and by the keyboard."""

import base64
import shutil
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("starlette", reason="starlette is not installed (extra: serve)")
pytest.importorskip("playwright", reason="playwright is not installed (extra: dev)")

from playwright.sync_api import expect, sync_playwright

import ivl3_jax
from ivl3_jax.inference.request import Limits
from ivl3_jax.inference.server.app import Settings, application
from tests.inference.test_server import served
from tests.models.small import checkpoint

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium on the path (Debian: apt-get install chromium)"),
]
KEY = "sesame"
PATIENCE = 60_000  # milliseconds; answers take what compiling takes

expect.set_options(timeout=PATIENCE)


@pytest.fixture(scope="module")
def chat():
    return ivl3_jax.Chat(ivl3_jax.load(checkpoint()), limits=Limits(rows=8, page=16, piece=64, positions=4096))


@pytest.fixture(scope="module")
def address(chat):
    yield from served(application(chat, Settings("small", KEY)))


@pytest.fixture(scope="module")
def browser():
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    page = browser.new_page()
    page.set_default_timeout(PATIENCE)
    page.faults = []
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.goto(address)
    yield page
    assert page.faults == []
    page.close()


@pytest.fixture
def picture(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (40, 70, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def unlocked(page, **settings):
    page.get_by_text("Settings").click()
    for label, value in {"API key": KEY, "Most tokens": "8", **settings}.items():
        page.get_by_label(label).fill(value)
    page.get_by_label("API key").press("Tab")
    expect(page.locator("#model")).to_have_text("small")
    page.get_by_text("Settings").click()


def test_without_the_key_the_page_says_so(page):
    expect(page.locator("#status")).to_contain_text("the API key is missing or wrong")


def test_a_picture_its_tiles_a_question_and_another(page, picture, chat):
    unlocked(page)
    page.set_input_files("#files", picture)
    tiles = page.locator("#attached .tiles img")
    expect(tiles).to_have_count(3)
    assert tiles.first.evaluate("tile => tile.naturalWidth") == 28
    page.get_by_label("Question").fill("How many?")
    page.get_by_role("button", name="Send").click()
    talk = chat.conversation()
    expect(page.locator(".assistant p").first).to_have_text(talk.ask("How many?", [picture], max_new_tokens=8))
    expect(page.locator("#status")).to_contain_text("written")
    expect(page.locator(".user .tiles img")).to_have_count(3)
    page.get_by_label("Question").fill("Who?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator(".assistant p").nth(2)).to_have_text(talk.ask("Who?", max_new_tokens=8))
    expect(page.locator("#status")).not_to_contain_text("(0 known)")
    page.get_by_role("button", name="New chat").click()
    expect(page.locator(".turn")).to_have_count(0)


def test_by_the_keyboard_alone(page):
    unlocked(page)
    page.get_by_label("Question").focus()
    page.keyboard.type("One")
    page.keyboard.press("Shift+Enter")
    page.keyboard.type("two?")
    page.keyboard.press("Enter")
    expect(page.locator(".user p")).to_have_text("One\ntwo?")
    expect(page.locator("#status")).to_contain_text("written")
    expect(page.get_by_label("Question")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_role("button", name="Send")).to_be_focused()


def test_an_answer_can_be_stopped(page, chat, monkeypatch):
    step = chat.engine.step

    def slow():
        time.sleep(0.3)  # so that there is something left to stop
        step()

    monkeypatch.setattr(chat.engine, "step", slow)
    unlocked(page, **{"Most tokens": "450"})
    page.get_by_label("Question").fill("Tell all.")
    page.get_by_label("Question").press("Enter")
    expect(page.get_by_role("button", name="Stop")).to_be_visible()
    expect(page.locator(".assistant p").first).not_to_be_empty()
    page.get_by_role("button", name="Stop").click()
    expect(page.locator(".note")).to_have_text("(stopped)")
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    page.get_by_label("Question").fill("More.")
    page.get_by_label("Question").press("Enter")
    page.keyboard.press("Escape")
    expect(page.get_by_role("button", name="Send")).to_be_visible()


def test_what_is_no_picture_is_told_and_not_attached(page, tmp_path):
    unlocked(page)
    file = tmp_path / "b.png"
    file.write_bytes(b"nothing")
    page.set_input_files("#files", file)
    expect(page.locator("#status")).to_contain_text("cannot be read as an image")
    expect(page.locator("#attached figure")).to_have_count(0)


def test_a_question_that_cannot_be_answered_can_be_changed(page, picture):
    unlocked(page, **{"Most tokens": "100000"})
    page.set_input_files("#files", picture)
    page.get_by_label("Question").fill("How many?")
    page.get_by_label("Question").press("Enter")
    expect(page.locator("#status")).to_contain_text("at most 4096 are given")
    expect(page.get_by_label("Question")).to_have_value("How many?")
    expect(page.locator("#attached figure")).to_have_count(1)
    page.get_by_role("button", name="Remove").click()
    expect(page.locator("#attached figure")).to_have_count(0)


def test_pictures_are_dropped_in(page, picture):
    unlocked(page)
    data = base64.b64encode(picture.read_bytes()).decode()
    transfer = page.evaluate_handle(
        """async data => {
            const bytes = await (await fetch(`data:image/png;base64,${data}`)).blob();
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "a.png", { type: "image/png" }));
            return transfer;
        }""",
        data,
    )
    page.dispatch_event("body", "dragenter", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_be_visible()
    page.dispatch_event("body", "drop", {"dataTransfer": transfer})
    expect(page.locator("#drop")).to_be_hidden()
    expect(page.locator("#attached .tiles img")).to_have_count(3)
