"""The conversation of `ivl3 chat`: a line is a question, or a command that begins with a slash."""

import contextlib
import difflib
import os
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from ivl3_jax.cli.mistakes import explain
from ivl3_jax.data.records import Message, Sample, Video
from ivl3_jax.inference.chat import Chat

# name: (what stands behind it, what it does)
COMMANDS = {
    "image": ("FILE ...", "attaches images to the next question"),
    "video": ("FILE [START END]", "attaches a video, or those seconds of it, to the next question"),
    "drop": ("", "drops what is attached"),
    "undo": ("", "takes the last question and its answer back"),
    "reset": ("", "forgets the conversation"),
    "system": ("[MESSAGE]", "shows or sets the system message; also: published, internvl, none"),
    "help": ("", "shows this"),
    "quit": ("", "leaves, as Ctrl-D does"),
}
FOOTER = (
    "Ctrl-C stops an answer. A question that begins with a slash needs a space before it. An empty line asks about "
    "what is attached."
)


class Talk:
    """Reads lines from the input, answers questions and obeys commands, until the input ends.

    Mistakes are told on stderr in one line and change nothing.
    """

    def __init__(
        self, chat: Chat, images: Sequence[str], videos: Sequence[Video], *, frames: int, settings: dict[str, Any]
    ) -> None:
        """`images` and `videos` belong to the first question; `frames` is for later videos, `settings` for answers."""
        self.conversation = chat.conversation()
        self.images, self.videos = list(images), list(videos)
        self.frames, self.settings = frames, settings
        self.terminal = sys.stdin.isatty()
        self.leaving = False
        if self.terminal:
            with contextlib.suppress(ImportError):
                import readline  # noqa: F401 gives `input` its editing and history

    def run(self, question: str | None = None) -> int:
        """Converses, beginning with `question` if there is one; returns 0."""
        if self.terminal:
            print("Ask something. /help lists the commands, Ctrl-D leaves.")
        if question is not None:
            self._guarded(self._ask, question)
        while not self.leaving:
            try:
                line = input(self._prompt() if self.terminal else "")
            except EOFError:
                if self.terminal:
                    print()
                return 0
            except KeyboardInterrupt:
                print("\n(Ctrl-D leaves)")
                continue
            if line.startswith("/"):
                self._guarded(self._command, line)
            elif line.strip() or self.images or self.videos:
                self._guarded(self._ask, line.strip())
        return 0

    def _prompt(self) -> str:
        names = [*self.images, *(os.fspath(video.path) for video in self.videos)]
        attached = " ".join(os.path.basename(os.path.normpath(name)) for name in names)
        return f"[{attached}] > " if attached else "> "

    def _guarded(self, do: Callable[[str], None], line: str) -> None:
        try:
            do(line)
        except BrokenPipeError:
            raise
        except (ValueError, OSError, ModuleNotFoundError) as error:
            message = explain(error)
            if message is None or os.environ.get("IVL3_DEBUG") == "1":
                raise
            print(f"ivl3: error: {message}", file=sys.stderr, flush=True)

    def _ask(self, question: str) -> None:
        before = self.conversation.history
        answer = self.conversation.stream(question, self.images, self.videos, **self.settings)
        try:
            for piece in answer:
                print(piece, end="", flush=True)
            print(flush=True)
        except KeyboardInterrupt:
            answer.close()  # where Ctrl-C hit the printing: what was told is remembered
            told = self.conversation.history != before
            print(f"\n(stopped{'; /undo takes the turn back' if told else ''})", flush=True)
            if not told:
                return  # what is attached is still to be asked about
        except ValueError as error:
            if not self.images and not self.videos:
                raise
            raise ValueError(f"{error} (what is attached stays so until /drop)") from error
        self._drop("")

    def _command(self, line: str) -> None:
        name, *rest = re.split(r"\s+", line[1:].rstrip(), maxsplit=1)
        if name not in COMMANDS:
            nearest = difflib.get_close_matches(name, COMMANDS, n=1)
            guess = f"did you mean /{nearest[0]}?" if nearest else "/help lists them"
            raise ValueError(f"there is no command /{name}; {guess}")
        if rest and not COMMANDS[name][0]:
            raise ValueError(f"/{name} takes nothing behind it, and there is {rest[0]!r}; the usage is {_usage(name)}")
        getattr(self, f"_{name}")("".join(rest))

    def _image(self, rest: str) -> None:
        files = _files("image", rest)
        self._check(files, ())
        self.images += files

    def _video(self, rest: str) -> None:
        file, *clip = _files("video", rest)
        if len(clip) not in (0, 2):
            raise ValueError(f"{' '.join(clip)!r} is not a start and an end; the usage is {_usage('video')}")
        video = Video(file, self.frames, (_seconds(clip[0]), _seconds(clip[1])) if clip else None)
        self._check((), [video])
        self.videos.append(video)

    def _check(self, images: Sequence[str], videos: Sequence[Video]) -> None:
        """Opens what is to be attached, so that a bad file is told now, and not attached."""
        processor = self.conversation.processor
        processor.opened(Sample((Message("user", ""),), tuple(images), videos=tuple(videos)), processor.max_tiles)

    def _drop(self, rest: str) -> None:
        self.images, self.videos = [], []

    def _undo(self, rest: str) -> None:
        print(f"taken back: {self.conversation.undo().question.splitlines()[-1]}", flush=True)

    def _reset(self, rest: str) -> None:
        self.conversation.reset()

    def _system(self, rest: str) -> None:
        if rest:
            self.conversation.set_system(rest)
        print(f"system message: {self.conversation.system or 'none'}", flush=True)

    def _quit(self, rest: str) -> None:
        self.leaving = True

    def _help(self, rest: str) -> None:
        lines = [f"{_usage(name):<25} {does}" for name, (_, does) in COMMANDS.items()]
        print("\n".join([*lines, FOOTER]), flush=True)


def _usage(name: str) -> str:
    return f"/{name} {COMMANDS[name][0]}".strip()


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number of seconds; the usage is {_usage('video')}") from None


def _files(name: str, rest: str) -> list[str]:
    try:
        words = shlex.split(rest)
    except ValueError:
        raise ValueError(f"a quotation mark is missing in {rest!r}") from None
    if not words:
        raise ValueError(f"a file is missing; the usage is {_usage(name)}")
    return [os.path.expanduser(word) for word in words]
