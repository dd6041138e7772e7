"""The conversation of `ivl3 chat`, its lines read from a pipe."""

import io
import os
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import ivl3_jax
from ivl3_jax.cli.main import main
from ivl3_jax.cli.talk import COMMANDS, Talk
from tests.data.pictures import picture, write_video
from tests.models.small import checkpoint

ROOT = Path(__file__).parents[2]
SETTINGS = {"max_new_tokens": 6}


@pytest.fixture(scope="module")
def chat():
    return ivl3_jax.Chat(ivl3_jax.load(checkpoint()))


@pytest.fixture
def files(tmp_path, monkeypatch):
    """A directory to be in, with pictures and a video."""
    monkeypatch.chdir(tmp_path)
    picture(30, 30).save("a.png")
    picture(30, 30, 1).save("two words.png")
    write_video(tmp_path / "clip.mp4", 12)
    for name in ("text.png", "text.mp4"):
        (tmp_path / name).write_text("neither")


@pytest.fixture
def converse(chat, monkeypatch, capsys):
    """Lines to (stdout without decoration, stderr's lines, the questions the model was asked)."""

    def run(*lines, images=(), videos=(), question=None):
        asked = []

        def answer(prompt, *_):
            asked.append(chat.processor.tokenizer.decode(prompt.tokens, skip_special=False))
            yield from ("answer ", str(len(asked)))

        monkeypatch.setattr(chat, "answer", answer)
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{line}\n" for line in lines)))
        assert Talk(chat, images, videos, frames=2, settings=SETTINGS).run(question) == 0
        told = capsys.readouterr()
        return told.out.splitlines(), told.err.splitlines(), asked

    return run


def test_questions_are_answered_with_those_before(converse):
    out, err, asked = converse("One?", "", "  /Two?", question="Zero?")
    assert out == ["answer 1", "answer 2", "answer 3"] and err == []
    assert [text.count("<|im_start|>user") for text in asked] == [1, 2, 3]
    assert asked[2].endswith("answer 2<|im_end|>\n<|im_start|>user\n/Two?<|im_end|>\n<|im_start|>assistant\n")


def test_files_belong_to_the_next_question(converse, files):
    _, err, asked = converse(
        "One?", "/image a.png 'two words.png'", "/video clip.mp4 0 1", "Two?", "Three?", images=["a.png"]
    )
    assert err == []
    assert [text.count("<img>") for text in asked] == [1, 1 + 2 + 2, 5]
    assert "Frame2: <img>" in asked[1]


def test_dropped_files_belong_to_none(converse, files):
    _, _, asked = converse("/image a.png", "/drop", "One?")
    assert "<img>" not in asked[0]


def test_mistakes_are_told_in_one_line_and_change_nothing(converse, files):
    lines = {
        "/image none.png": "none.png: no such image file",
        "/image a.png text.png": "text.png: cannot be read as an image",
        "/image": "a file is missing; the usage is /image FILE ...",
        "/image 'a.png": 'a quotation mark is missing in "\'a.png"',
        "/video none.mp4": "none.mp4: no such video file or directory of frames",
        "/video clip.mp4 1": "'1' is not a start and an end; the usage is /video FILE [START END]",
        "/video clip.mp4 a b": "'a' is not a number of seconds",
        "/video text.mp4": "text.mp4: cannot be read as a video",
        "/video clip.mp4 2 3": "clip.mp4: the clip begins at 2 s, but the video ends after 1.2 s",
        "/video clip.mp4 2 1": "the clip is 2 to 1 s",
        "/imgae a.png": "there is no command /imgae; did you mean /image?",
        "/": "there is no command /; /help lists them",
        "/undo": "there is no turn to take back",
        "/undo 3": "/undo takes nothing behind it, and there is '3'; the usage is /undo",
        "/drop it": "/drop takes nothing behind it, and there is 'it'",
        "/reset all of it": "/reset takes nothing behind it, and there is 'all of it'",
        "/quit now": "/quit takes nothing behind it, and there is 'now'",
        "/help\tme": "/help takes nothing behind it",
        "/ quit": "there is no command /; /help lists them",
        "/video a.png": "a.png: a still picture, not a video; give it as an image",
        "/system <img>": "the system turn contains the special token <img>",
        "<image>?": "1 <image> placeholders for 0 images",
    }
    out, err, asked = converse(*lines, "One?")
    assert out == ["answer 1"]
    for told, line in zip(lines.values(), err, strict=True):
        assert line.startswith("ivl3: error: ") and told in line
    assert asked == ["<|im_start|>user\nOne?<|im_end|>\n<|im_start|>assistant\n"]


def test_attached_files_outlive_a_question_that_failed(converse, files):
    _, err, asked = converse("/image a.png", "<image> <image>?", "<image>?")
    assert len(err) == 1 and err[0].endswith("(what is attached stays so until /drop)")
    assert asked[0].count("<img>") == 1


def test_files_of_the_command_line_may_be_bad(converse, files):
    _, err, asked = converse("One?", "Two?", "/drop", "Three?", images=["text.png"])
    assert len(err) == 2 and all("text.png: cannot be read as an image" in line for line in err)
    assert len(asked) == 1


def test_undo_reset_system_help_quit(converse):
    out, err, asked = converse(
        "One?", "/undo", "Two?", "/system", "/system Be brief.", "Three?", "/reset", "/system none", "Four?", "/help",
        "/quit", "Five?",
    )  # fmt: skip
    assert err == []
    assert out[:9] == [
        "answer 1",
        "taken back: One?",
        "answer 2",
        "system message: none",
        "system message: Be brief.",
        "answer 3",
        "system message: none",
        "answer 4",
        "/image FILE ...           attaches images to the next question",
    ]
    assert len(out) == 8 + len(COMMANDS) + 1
    assert [text.count("<|im_start|>user") for text in asked] == [1, 1, 2, 1]
    assert [text.startswith("<|im_start|>system\nBe brief.") for text in asked] == [False, False, True, False]


def test_commands_are_split_at_any_white_space(converse, files):
    _, err, asked = converse("/image\ta.png  'two words.png' ", "/video \t clip.mp4\t0 1", "One?", "/quit \t", "Two?")
    assert err == [] and [text.count("<img>") for text in asked] == [4]


def test_a_space_in_front_makes_a_question(converse):
    _, err, asked = converse("  /quit", "/quit")
    assert err == [] and "user\n/quit<|im_end|>" in asked[0]


def test_an_empty_line_asks_about_what_is_attached(converse, files):
    out, err, asked = converse("", "/image a.png", " ", "", "/undo")
    assert err == [] and out == ["answer 1", "taken back: <image>"]
    assert asked[0].endswith("</img>\n<|im_end|>\n<|im_start|>assistant\n")


def test_a_missing_extra_is_a_mistake_too(converse, files, monkeypatch):
    monkeypatch.setitem(sys.modules, "av", None)
    _, err, asked = converse("/video clip.mp4", "One?")
    assert err == ["ivl3: error: this needs av, which is not installed: it comes with the extra 'video' of ivl3-jax"]
    assert len(asked) == 1


def test_interrupts(chat, converse, monkeypatch):
    def answer(prompt, *_):
        yield "some"
        raise KeyboardInterrupt

    lines = iter(["One?", KeyboardInterrupt(), "/undo"])

    def read(_):
        line = next(lines, EOFError())
        if isinstance(line, BaseException):
            raise line
        return line

    monkeypatch.setattr("builtins.input", read)
    printed = []
    monkeypatch.setattr("builtins.print", lambda *text, **_: printed.append("".join(text)))
    monkeypatch.setattr(chat, "answer", answer)
    assert Talk(chat, [], [], frames=2, settings=SETTINGS).run() == 0
    assert printed == ["some", "\n(stopped; /undo takes the turn back)", "\n(Ctrl-D leaves)", "taken back: One?"]


def test_the_command_converses(files, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("Who?\n"))
    argv = ["chat", str(checkpoint()), "a.png", "--interactive", "--max-new-tokens", "6"]
    assert main([*argv, "How many?"]) == 0
    talk = ivl3_jax.Chat(ivl3_jax.load(checkpoint())).conversation()
    expected = [talk.ask("How many?", "a.png", max_new_tokens=6), talk.ask("Who?", max_new_tokens=6)]
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in expected)
    monkeypatch.setattr(sys, "stdin", io.StringIO("How many?\nWho?\n"))
    assert main(argv) == 0
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in expected)


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="there are no pseudo-terminals here")
def test_on_a_terminal(files):
    """No option is needed there; Ctrl-C leaves the program running, Ctrl-D ends it."""
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "ivl3_jax.cli.main", "chat", str(checkpoint()), "a.png", "--max-new-tokens", "4"]
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env=environ,
        # Programs run in the background may have been told to ignore Ctrl-C, and pass that on.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    os.close(theirs)
    seen = b""

    def until(text, nudge=lambda: None):
        nonlocal seen
        deadline = time.monotonic() + 200
        while text not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([ours], [], [], 3)[0]:
                seen += os.read(ours, 4096)
            else:
                nudge()
        seen = seen.partition(text)[2]

    try:
        until(b"[a.png] > ")
        # A signal that comes between the prompt and the waiting for input is seen with the next one.
        until(b"(Ctrl-D leaves)", nudge=lambda: process.send_signal(signal.SIGINT))
        until(b"[a.png] > ")
        os.write(ours, b"Who?\n")
        until(b"Who?")
        until(b"\n> ")
        os.write(ours, b"\x04")
        assert process.wait(60) == 0
    finally:
        process.kill()
        os.close(ours)
