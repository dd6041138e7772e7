"""What a solution comes to, and whether two answers are the same."""

import re
from fractions import Fraction

_FINAL = re.compile(r"(?:final answer|answer)\s*(?:is)?\s*:\s*(.+)", re.IGNORECASE)
_BOXED = "\\boxed{"
_CHOICE = re.compile(r"\(?([A-Za-z])\)?(?:[.:)]\s.*)?", re.DOTALL)
_AROUND = ("$", "**", "`", '"', "'", "\\(", "\\)", "\\[", "\\]")


def final_answer(solution: str) -> str | None:
    r"""What stands in the last `\boxed{}`, or else behind the last `Final answer:` or `Answer:`; None without either.

    The two forms that InternVL's preference data are checked by (arXiv 2411.10442).
    """
    if (boxed := _boxed(solution)) is not None:
        return plain(boxed)
    found = _FINAL.findall(solution)
    return plain(found[-1]) if found else None


def same_answer(found: str | None, expected: str) -> bool:
    """Whether they are equal as `comparable`; None equals nothing."""
    return found is not None and comparable(found) == comparable(expected)


def comparable(text: str) -> str | Fraction:
    """What is compared of an answer: its number, the letter of a choice, or its text.

    Case, spaces, a full stop at the end, marks of LaTeX and Markdown around do not count, nor do commas between
    thousands; 0.5 is 1/2 and 50%; "(B)" and "B. two" are B.
    """
    text = plain(text)
    if (number := _number(text)) is not None:
        return number
    choice = _CHOICE.fullmatch(text)
    return (choice[1] if choice else text).casefold()


def plain(text: str) -> str:
    """The text without what may stand around an answer."""
    before = None
    while text != before:
        before = text
        text = " ".join(text.split()).rstrip(".")
        for mark in _AROUND:
            text = text.removeprefix(mark).removesuffix(mark)
        if wrapped := re.fullmatch(r"\\(?:text|mathrm|mathbf|boxed)\{(.*)\}", text):
            text = wrapped[1]
    return text


def _boxed(solution: str) -> str | None:
    start = solution.rfind(_BOXED)
    if start < 0:
        return None
    depth = 1
    for place in range(start + len(_BOXED), len(solution)):
        depth += {"{": 1, "}": -1}.get(solution[place], 0)
        if depth == 0:
            return solution[start + len(_BOXED) : place]
    return None


def _number(text: str) -> Fraction | None:
    text = re.sub(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text.replace("\\%", "%"))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    try:
        return Fraction(text[:-1].strip()) / 100 if text.endswith("%") else Fraction(text)
    except (ValueError, ZeroDivisionError):
        return None
