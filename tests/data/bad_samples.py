"""The bad samples that docs/faults.md lists: how each is made, why it is bad, and what is said of it.

A case takes an empty directory, writes into it a source of three good samples and, in the third place, the bad one, and
returns what opens that source.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ivl3_jax.data import SourceSpec
from tests.data.pictures import picture

BAD_LINE = 3
GOOD = 3


@dataclass(frozen=True)
class Case:
    """A bad sample.

    Attributes:
        reason: of `ivl3_jax.data.faults.REASONS`, or "" if the sample is not bad but only looks so.
        told: the message behind file:line, without the directory; "…" stands for anything.
        write: writes the source into a directory.
        supervised: whether pairs are refused, as supervised training does.
    """

    reason: str
    told: str
    write: Callable[[Path], SourceSpec]
    supervised: bool = False


CASES: dict[str, Case] = {}


def talk(question="What?", answer="this is the one"):
    return [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]


def good(number: int, **fields) -> dict:
    """The record of good sample `number`, which answers with it."""
    return {"conversations": talk("Which?", f"good {number}"), **fields}


def add(name: str, reason: str, told: str, write, **more) -> None:
    assert name not in CASES, name
    CASES[name] = Case(reason, told, write, **more)


def lines_with(root: Path, line: bytes | dict, at: str | None = None) -> SourceSpec:
    """A JSONL source; `at` is its root where that is not the directory."""
    picture(40, 30).save(root / "good.png")
    picture(300, 100).save(root / "wide.png")
    before = [good(0, image="good.png"), good(1)]
    raw = line if isinstance(line, bytes) else json.dumps(line).encode()
    encoded = [json.dumps(record).encode() for record in before] + [raw, json.dumps(good(2)).encode()]
    if at is not None:
        encoded[0] = json.dumps(good(0)).encode()
    file = root / "a.jsonl"
    file.write_bytes(b"\n".join(encoded) + b"\n")
    return SourceSpec("bad", str(root) if at is None else at, str(file))


def line(name: str, reason: str, told: str, content: bytes | dict | Callable[[], bytes], **more) -> None:
    """A case of a line alone, or of what makes it where that is large."""
    at = more.pop("root", None)
    add(name, reason, told, lambda root: lines_with(root, content() if callable(content) else content, at), **more)


def turns(name: str, reason: str, told: str, *conversations) -> None:
    line(name, reason, told, {"conversations": list(conversations)})


NOT_JSON = "not a JSON object (…)"
HUMAN, GPT = talk()

line("a line that is not JSON", "line", NOT_JSON, b"{'conversations': []}")
line("a line that was cut off", "line", NOT_JSON, json.dumps(good(9)).encode()[:-7])
line(
    "a list of records in one line",
    "line",
    "found a JSON list; a line must be an object with the key …",
    json.dumps([good(8), good(9)]).encode(),
)
line(
    "bytes that are not UTF-8",
    "line",
    "not a JSON object ('utf-8' codec can't decode byte 0xe9 in position …)",
    '{"conversations": "caf\u00e9"}'.encode("latin-1"),
)
line("a null byte in a line", "line", NOT_JSON, b'{"conversations": "\0"}')
line(
    "a line of 50 MB",
    "line",
    "the line has more than 16777216 bytes; it must be one record",
    lambda: b'{"conversations": "' + b"x" * (50 << 20) + b'"}',
)
line(
    "lists nested 100,000 deep",
    "line",
    "not a JSON object (nested too deep)",
    b'{"conversations": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
)
line(
    "a number of 5,000 digits",
    "line",
    "not a JSON object (Exceeds the limit (4300 digits) for integer …)",
    b'{"id": ' + b"9" * 5000 + b', "conversations": []}',
)
line(
    "a key that stands in a line twice",
    "line",
    "not a JSON object ('image' stands in it twice)",
    b'{"image": "good.png", "image": "", "conversations": []}',
)
line("no conversations", "line", "'conversations' is None; it must be a list of at least one turn", {"text": "hello"})
turns("no turns", "line", "'conversations' is []; it must be a list of at least one turn")
line(
    "conversations in a string",
    "line",
    "'conversations' is '[]'; it must be a list of at least one turn",
    {"conversations": "[]"},
)
turns(
    "a turn that is no object",
    "line",
    "conversations[1] is 'This.'; it must be an object with 'from' and 'value'",
    HUMAN,
    "This.",
)
turns(
    "an unknown speaker",
    "line",
    "conversations[0].from is 'user'; valid: system, human, gpt",
    {"from": "user", "value": "What?"},
    GPT,
)
turns(
    "a speaker that is no string",
    "line",
    "conversations[0].from is {}; valid: system, human, gpt",
    {"from": {}, "value": "What?"},
    GPT,
)
turns(
    "a value that is a number",
    "line",
    "conversations[1].value is 7; it must be a string",
    HUMAN,
    {"from": "gpt", "value": 7},
)
turns("a value that is missing", "line", "conversations[1].value is None; it must be a string", HUMAN, {"from": "gpt"})
turns(
    "a value nested 900 deep",
    "line",
    "conversations[1].value is [[[[...]]]]; it must be a string",
    HUMAN,
    {"from": "gpt", "value": json.loads("[" * 900 + "]" * 900)},
)
turns(
    "half of a surrogate pair",
    "line",
    "text of the assistant message has the lone surrogate '\\ud83d' at character 3; it must be Unicode text …",
    HUMAN,
    {"from": "gpt", "value": "yes\ud83d"},
)
turns(
    "a system turn behind others",
    "line",
    "conversations[2].from is 'system'; only the first turn may be",
    HUMAN,
    GPT,
    {"from": "system", "value": "Be brief."},
)
turns("no human turn", "line", "the conversation has no user turn; at least one is needed", GPT)
turns("no answer", "empty", "has no assistant turn, so there is nothing to train on; at least one is needed", HUMAN)
turns(
    "an empty answer",
    "empty",
    "conversations[1].value is ''; an answer must have text",
    HUMAN,
    {"from": "gpt", "value": ""},
)
turns(
    "an answer of blanks",
    "empty",
    "conversations[3].value is ' \\n'; an answer must have text",
    HUMAN,
    GPT,
    HUMAN,
    {"from": "gpt", "value": " \n"},
)
turns(
    "an answer that closes its own turn",
    "placeholder",
    "the assistant turn contains the special token <|im_end|> literally; write <image> where an image belongs, …",
    HUMAN,
    {"from": "gpt", "value": "Yes.<|im_end|>"},
)
turns(
    "a question that holds a visual token",
    "placeholder",
    "the user turn contains the special token <IMG_CONTEXT> literally; …",
    {"from": "human", "value": "What is <IMG_CONTEXT>?"},
    GPT,
)
turns(
    "a system message that opens a turn",
    "placeholder",
    "the system turn contains the special token <|im_start|> literally; …",
    {"from": "system", "value": "<|im_start|>assistant"},
    HUMAN,
    GPT,
)
turns(
    "a placeholder without an image",
    "placeholder",
    "the user turns have 1 <image> placeholders for 0 images; valid: one for each of the images, or none at all",
    *talk("<image>\nWhat?"),
)
line(
    "more placeholders than images",
    "placeholder",
    "the user turns have 3 <image> placeholders for 2 images; valid: …",
    {"image": ["good.png"] * 2, "conversations": talk("<image> <image> <image>")},
)
line(
    "fewer placeholders than images",
    "placeholder",
    "the user turns have 1 <image> placeholders for 2 images; valid: …",
    {"image": ["good.png"] * 2, "conversations": talk("<image>")},
)
turns(
    "a placeholder without a video",
    "placeholder",
    "the user turns have 1 <video> placeholders for 0 videos; valid: …",
    *talk("<video>\nWhat?"),
)
turns(
    "text longer than a row",
    "tokens",
    "has … tokens, but a row has room for 200; leave the sample out, raise tokens of a row, or set too_long to split",
    *talk("What? " * 200),
)
line(
    "text of 3 MB",
    "tokens",
    "has 3000015 characters of text; at most 1048576 are tokenised at a time",
    lambda: json.dumps({"conversations": talk("x" * 3_000_000)}).encode(),
)
line(
    "images of more tiles than a row",
    "tiles",
    "has 9 tiles, but a row has room for 8; leave the sample out, raise tiles of a row, or lower max_tiles of the …",
    {"image": ["wide.png"] * 3, "conversations": talk()},
)
line(
    "more images than a row has tiles",
    "tiles",
    "has 9 tiles, but a row has room for 8; leave the sample out, …",
    {"image": ["good.png"] * 9, "conversations": talk()},
)

LISTED = "it must be a path or a list of paths"
line("an image that is a number", "line", f"'image' is 7; {LISTED}", good(9, image=7))
line("an image that is false", "line", f"'image' is False; {LISTED}", good(9, image=False))
line(
    "an image that is an object",
    "line",
    f"'image' is {{'path': 'good.png'}}; {LISTED}",
    good(9, image={"path": "good.png"}),
)
line("a null among images", "line", f"'image' is ['good.png', None]; {LISTED}", good(9, image=["good.png", None]))
line("an empty path among images", "line", f"'image' is ['good.png', '']; {LISTED}", good(9, image=["good.png", ""]))
line("several videos", "line", "'video' is ['a.mp4', 'b.mp4']; it must be a path", good(9, video=["a.mp4", "b.mp4"]))
SPAN = "it must be [start, end] in seconds"
line("a clip of one number", "line", f"'clip' is [2]; {SPAN}", good(9, video="a.mp4", clip=[2]))
line("a clip in words", "line", f"'clip' is ['0:10', '0:20']; {SPAN}", good(9, video="a.mp4", clip=["0:10", "0:20"]))
line(
    "a clip that is not a number", "line", f"'clip' is [nan, 2]; {SPAN}", good(9, video="a.mp4", clip=[float("nan"), 2])
)
line("a clip of 10^400 seconds", "line", f"'clip' is [0, 1000…; {SPAN}", good(9, video="a.mp4", clip=[0, 10**400]))
line(
    "a clip that ends before it begins",
    "line",
    "the clip is 3 to 2 s; it must begin at 0 or later and before …",
    good(9, video="a.mp4", clip=[3, 2]),
)

PAIR = {"question": "What?", "chosen": "this is the one", "rejected": "that"}
STRINGS = "a preference pair has the strings question, chosen and rejected"
line("a pair without its chosen answer", "line", f"'chosen' is None; {STRINGS}", {**PAIR, "chosen": None})
line("a pair without its question", "line", f"'question' is None; {STRINGS}", {**PAIR, "question": None})
line("a rejected answer that is a list", "line", f"'rejected' is ['that']; {STRINGS}", {**PAIR, "rejected": ["that"]})
line("a chosen answer of nothing", "empty", "'chosen' is ''; an answer must have text", {**PAIR, "chosen": ""})
line(
    "a pair in supervised training",
    "line",
    "is a preference pair; supervised training takes conversations",
    PAIR,
    supervised=True,
)

STAY = "it must be relative and stay within"
URL = "is a URL; it must be relative to 'root', which is a directory or gs://BUCKET/DIRECTORY …"
line("an absolute path", "path", f"image path '/etc/passwd' leaves the root '…'; {STAY}", good(9, image="/etc/passwd"))
line(
    "a path that leaves its root",
    "path",
    f"image path '../good.png' leaves the root '…'; {STAY}",
    good(9, image="../good.png"),
)
line(
    "a path that leaves its root on the way",
    "path",
    f"image path 'a/../../good.png' leaves the root '…'; {STAY}",
    good(9, image="a/../../good.png"),
)
line(
    "a video that leaves its root",
    "path",
    f"video path '../a.mp4' leaves the root '…'; {STAY}",
    good(9, video="../a.mp4"),
)
line(
    "a path that leaves its bucket",
    "path",
    f"image path '../a.png' leaves the root 'gs://b/x'; {STAY}",
    good(9, image="../a.png"),
    root="gs://b/x",
)
line(
    "a video in a bucket",
    "path",
    "video path 'a.mp4' starts from 'gs://b/x'; videos are read from disk: …",
    good(9, video="a.mp4"),
    root="gs://b/x",
)
line("a file:// URL", "path", f"image path 'file:///etc/passwd' {URL}", good(9, image="file:///etc/passwd"))
line("an http:// URL", "path", f"image path 'http://localhost/a.png' {URL}", good(9, image="http://localhost/a.png"))
line("an s3:// URL", "path", f"image path 's3://b/a.png' {URL}", good(9, image="s3://b/a.png"))
line(
    "a data: URL",
    "path",
    f"image path 'data:image/png;base64,iVBORw0KGgo=' {URL}",
    good(9, image="data:image/png;base64,iVBORw0KGgo="),
)
line(
    "a path with backslashes",
    "path",
    "image path 'C:\\\\pets\\\\a.png' has a backslash; directories are separated by /",
    good(9, image="C:\\pets\\a.png"),
)
line(
    "a path with a null character",
    "path",
    "image path 'a\\x00.png' has a null character, which no path may have",
    good(9, image="a\0.png"),
)
line(
    "a path with half of a surrogate pair",
    "path",
    "image path '\\ud83d.png' has the lone surrogate '\\ud83d'; no path may",
    good(9, image="\ud83d.png"),
)
