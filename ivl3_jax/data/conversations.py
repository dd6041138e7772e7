"""A record in InternVL's form, from whatever file, to a `Sample` or a `Pair`.

    {"image": "a.jpg" or ["a.jpg", "b.jpg"], "conversations": [{"from": "human", "value": "<image>\\nWhat is it?"},
                                                               {"from": "gpt", "value": "A cat."}]}
    {"video": "a.mp4", "clip": [2.5, 10], "conversations": [...]}
    {"image": ..., "question": "What is it?", "chosen": "A cat.", "rejected": "A dog."}

"image" and "video" are absent, null, "" or [] where there is none; the first turn may be from "system", and the others
come in any order; a record with an answer that was chosen or rejected is a preference pair (MMPR). Other keys are
passed over, "width" and "height" too: sizes come from the images themselves.
"""

import os
from typing import Any

from ivl3_jax.data.faults import Fault
from ivl3_jax.data.files import is_remote
from ivl3_jax.data.json_values import parse_json, shown
from ivl3_jax.data.records import CHAT_LABEL, SECONDS, TRAINING_LABEL, ImageSource, Message, Pair, Sample, Stored, Video

ROLE_OF = {"system": "system", "human": "user", "gpt": "assistant"}


def parse_line(line: bytes | str, where: str) -> dict[str, Any]:
    """The JSON object in a line.

    Raises:
        Fault: there is none.
    """
    try:
        record = parse_json(line)
    except ValueError as error:
        raise Fault("line", f"{where}: not a JSON object ({error})") from error
    if not isinstance(record, dict):
        kind = type(record).__name__
        raise Fault("line", f"{where}: found a JSON {kind}; a line must be an object with the key 'conversations'")
    return record


def to_sample(record: dict[str, Any], root: str, source: int, where: str) -> Sample | Pair:
    """What a record says.

    Args:
        record: as above. Its images may be `Stored` instead of paths.
        root: where its paths start, a directory or gs://BUCKET/DIRECTORY.
        source: number of the data source. where: where the record is, "file:line".

    Raises:
        Fault: it is not what it should be; the message says what was found and what would be valid.
    """
    try:
        images = _images(record.get("image"), root)
        if record.get("chosen") is None and record.get("rejected") is None:
            videos = _videos(record, root, TRAINING_LABEL)
            return Sample(_messages(record.get("conversations")), images, source, where, videos)
        # InternVL's code for preferences writes its frames as the model cards do, unlike that for fine-tuning.
        videos = _videos(record, root, CHAT_LABEL)
        question, chosen, rejected = (_text(record, key) for key in ("question", "chosen", "rejected"))
        prompt = Message("user", question)
        for key, answer in (("chosen", chosen), ("rejected", rejected)):
            _check_answer(Message("assistant", answer), f"'{key}'")
        return Pair((prompt,), chosen, rejected, images, videos, source, where)
    except Fault as fault:
        raise Fault(fault.reason, f"{where}: {fault}") from fault
    except ValueError as error:
        raise Fault("line", f"{where}: {error}") from error


def as_list(found: Any) -> list[str | Stored]:
    """The images of a record, of which one may stand alone.

    Raises:
        Fault: they are neither paths nor `Stored`.
    """
    if _is_absent(found):
        return []
    images = [found] if isinstance(found, str | Stored) else found
    if not isinstance(images, list) or not all(isinstance(image, str | Stored) and image for image in images):
        raise Fault("line", f"'image' is {shown(found)}; it must be a path or a list of paths")
    return images


def join(root: str, path: str, what: str) -> str:
    """The path from the root: as `os.path.join`, or below a gs:// root.

    By name only: a line, which anybody may have written, cannot name a file outside, but a link within the root may
    lead there, since data sets are often trees of links on purpose.

    Raises:
        Fault: the path leaves the root, is a URL, or cannot be one; `what` says of what it is.
    """
    if is_remote(path) or path.startswith("data:"):
        raise Fault(
            "path",
            f"{what} path {path!r} is a URL; it must be relative to 'root', which is a directory or gs://BUCKET/"
            "DIRECTORY (s3:// is not read: mount the bucket or copy it)",
        )
    if "\0" in path:
        raise Fault("path", f"{what} path {path!r} has a null character, which no path may have")
    if "\\" in path:
        raise Fault("path", f"{what} path {path!r} has a backslash; directories are separated by /")
    try:
        os.fsencode(path)
    except UnicodeEncodeError as error:
        raise Fault("path", f"{what} path {path!r} has the lone surrogate {path[error.start]!a}; no path may") from None
    normal = os.path.normpath(path)
    if os.path.isabs(path) or normal.split(os.sep)[0] == os.pardir:
        raise Fault("path", f"{what} path {path!r} leaves the root {root!r}; it must be relative and stay within")
    return f"{root.rstrip('/')}/{normal}" if is_remote(root) else os.path.normpath(os.path.join(root, path))


def _messages(turns: Any) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise ValueError(f"'conversations' is {shown(turns)}; it must be a list of at least one turn")
    messages = []
    for index, turn in enumerate(turns):
        place = f"conversations[{index}]"
        if not isinstance(turn, dict):
            raise ValueError(f"{place} is {shown(turn)}; it must be an object with 'from' and 'value'")
        speaker, text = turn.get("from"), turn.get("value")
        if not isinstance(speaker, str) or speaker not in ROLE_OF:
            raise ValueError(f"{place}.from is {shown(speaker)}; valid: {', '.join(ROLE_OF)}")
        if speaker == "system" and index > 0:
            raise ValueError(f"{place}.from is 'system'; only the first turn may be")
        if not isinstance(text, str):
            raise ValueError(f"{place}.value is {shown(text)}; it must be a string")
        messages.append(message := Message(ROLE_OF[speaker], text))
        if message.role == "assistant":
            _check_answer(message, f"{place}.value")
    return tuple(messages)


def _check_answer(message: Message, place: str) -> None:
    """Refuses an answer of nothing: with few tokens and so the largest weight, it would teach to say nothing."""
    if not message.text.strip():
        raise Fault("empty", f"{place} is {shown(message.text)}; an answer must have text")


def _images(found: Any, root: str) -> tuple[ImageSource, ...]:
    return tuple(join(root, image, "image") if isinstance(image, str) else image for image in as_list(found))


def _videos(record: dict[str, Any], root: str, label: str) -> tuple[Video, ...]:
    path, clip = record.get("video"), record.get("clip")
    if _is_absent(path):
        return ()
    if not isinstance(path, str):
        raise ValueError(f"'video' is {shown(path)}; it must be a path")
    if is_remote(root):
        raise Fault("path", f"video path {path!r} starts from {root!r}; videos are read from disk: mount or copy them")
    if clip is not None and not (isinstance(clip, list) and len(clip) == 2 and all(map(_is_time, clip))):
        raise ValueError(f"'clip' is {shown(clip)}; it must be [start, end] in seconds")
    seconds = None if clip is None else (float(clip[0]), float(clip[1]))
    return (Video(join(root, path, "video"), clip=seconds, label=label),)


def _text(record: dict[str, Any], key: str) -> str:
    text = record.get(key)
    if not isinstance(text, str):
        raise ValueError(f"'{key}' is {shown(text)}; a preference pair has the strings question, chosen and rejected")
    return text


def _is_absent(value: Any) -> bool:
    return value is None or value in ("", [])


def _is_time(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < SECONDS
