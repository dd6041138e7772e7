"""Questions with known answers, as files have them, a JSON object a line.

    {"image": "a.jpg", "question": "How many?", "answer": "2"}
    {"image": "a.jpg", "conversations": [{"from": "human", "value": "How many?"}, {"from": "gpt", "value": "Two: 2"}]}

"answer", or "answer_gt" as in MMPR, may be text or a number; without it there is nothing to check. "image" and "video"
are those of `data.conversations`. Of conversations the first question and its answer count.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ivl3_jax.data.conversations import parse_line, to_sample
from ivl3_jax.data.faults import Fault
from ivl3_jax.data.json_values import shown
from ivl3_jax.data.records import Sample
from ivl3_jax.inference.scaling.final_answer import final_answer


@dataclass(frozen=True)
class Question:
    """A question that is asked.

    Attributes:
        asked: one user turn. answer: what it should come to, None where that is not known.
        record: as it stands in the file.
    """

    asked: Sample
    answer: str | None
    record: Mapping[str, Any]

    @property
    def text(self) -> str:
        return self.asked.messages[0].text


def read_questions(file: Path, root: str = "") -> list[Question]:
    """All questions of a file.

    Args:
        root: where paths of images start; by default the file's folder.

    Raises:
        OSError: it cannot be read.
        Fault: a line is not as above; the message names it.
        ValueError: it has no lines.
    """
    found = []
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                where = f"{file}:{number}"
                found.append(_question(parse_line(line, where), root or str(file.parent), where))
    if not found:
        raise ValueError(f"{file} has no lines; each is an object with 'question', and 'image' and 'answer' if any")
    return found


def _question(record: dict[str, Any], root: str, where: str) -> Question:
    talk = record.get("conversations")
    if talk is None:
        if not isinstance(text := record.get("question"), str) or not text.strip():
            raise Fault("line", f"{where}: 'question' is {shown(text)}; it must be text")
        talk = [{"from": "human", "value": text}]
    taught = to_sample({**record, "conversations": talk, "chosen": None, "rejected": None}, root, 0, where)
    assert isinstance(taught, Sample)
    turns = [message for message in taught.messages if message.role != "system"]
    if not turns or turns[0].role != "user":
        raise Fault("line", f"{where}: the first turn is not from 'human'; a question must be")
    answer = record.get("answer", record.get("answer_gt"))
    if answer is None and len(turns) > 1:
        answer = final_answer(turns[1].text) or turns[1].text
    if answer is not None and (isinstance(answer, bool) or not isinstance(answer, str | int | float)):
        raise Fault("line", f"{where}: 'answer' is {shown(answer)}; it must be text or a number")
    asked = Sample((turns[0],), taught.images, where=where, videos=taught.videos)
    return Question(asked, None if answer is None else str(answer), record)
