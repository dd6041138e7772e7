"""What a solution comes to, and whether two answers are the same."""

import re
from fractions import Fraction

# "Final answer: 2", "**Final answer**: 2", "### Final answer" with 2 in the next line, "the final answer is 2".
_SAYS = r"answer[ \t*_#`]*(?:is\b[ \t]*:?|:|\n)[\s*_`:]*([^\n]+)"
_FINAL, _ANY = re.compile(rf"final\s+{_SAYS}", re.IGNORECASE), re.compile(_SAYS, re.IGNORECASE)
_BOXED = "\\boxed{"
_CHOICE = re.compile(r"\(?([A-Za-z])\)?(?:[.:)]\s.*)?", re.DOTALL)
# Bounded: a number of millions of digits would take for ever.
_NUMBER = re.compile(
    r"[+-]?(?:\d{1,50}/\d{1,50}|(?:\d{1,50}(?:\.\d{0,50})?|\.\d{1,50})(?:e[+-]?\d{1,3})?)", re.ASCII | re.IGNORECASE
)
# What is said once more in front of an answer, "the answer is 5", and what it is the value of, "x = 5".
_AGAIN = re.compile(r"(?:(?:the\s+)?(?:final\s+)?answer\s*(?:is\b\s*:?|:)\s*)+", re.IGNORECASE)
_VARIABLE = re.compile(r"[A-Za-z]\s*=\s*(?=[-+.\d\\$*(][^=]*$)")
_AROUND = ("$", "**", "`", '"', "'", "\\(", "\\)", "\\[", "\\]")


def final_answer(solution: str) -> str | None:
    r"""What a solution says that it comes to; None if it does not say.

    That is what stands in the last `\boxed{}`, or else behind the last `Final answer:`, the two forms that InternVL's
    preference data are checked by (arXiv 2411.10442), or else behind the last `Answer:`. `is` does for the colon.
    """
    boxed = _boxed(solution)
    found = [boxed] if boxed is not None else _FINAL.findall(solution) or _ANY.findall(solution)
    return plain(found[-1]) or None if found else None


def same_answer(found: str | None, expected: str) -> bool:
    """Whether they are equal as `comparable`; None equals nothing."""
    return found is not None and comparable(found) == comparable(expected)


def comparable(text: str) -> str | Fraction:
    """What is compared of an answer: its number, the letter of a choice, or its text.

    Case, spaces, a full stop at the end, marks of LaTeX and Markdown around do not count, nor do commas between
    thousands, "the answer is" or "x =" in front; 0.5 is 1/2 and 50%; "(B)" and "B. two" are B. Units count: "5 cm" is
    not "5".
    """
    text = plain(text)
    if named := _VARIABLE.match(text):
        text = plain(text[named.end() :])
    if (number := _number(text)) is not None:
        return number
    choice = _CHOICE.fullmatch(text)
    return (choice[1] if choice else text).casefold()


def plain(text: str) -> str:
    """The text without what may stand around an answer."""
    before, text = None, text.replace("\N{MINUS SIGN}", "-")
    while text != before:
        before = text
        text = " ".join(text.split()).rstrip(".")
        for mark in _AROUND:
            text = text.removeprefix(mark).removesuffix(mark)
        if said := _AGAIN.match(text):
            text = text[said.end() :]
        if wrapped := re.fullmatch(r"\\(?:text|mathrm|mathbf|boxed)\{(.*)\}", text):
            text = wrapped[1]
    return text


def _boxed(solution: str) -> str | None:
    """What stands in the last box that is closed."""
    end = len(solution)
    while (start := solution.rfind(_BOXED, 0, end)) >= 0:
        depth = 1
        for place in range(start + len(_BOXED), end):
            depth += {"{": 1, "}": -1}.get(solution[place], 0)
            if depth == 0:
                return solution[start + len(_BOXED) : place]
        end = start
    return None


def _number(text: str) -> Fraction | None:
    text = re.sub(r"\\d?frac\{(-?\d+)\}\{(\d+)\}", r"\1/\2", text.replace("\\%", "%"))
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    bare = text.removesuffix("%").strip()
    if not _NUMBER.fullmatch(bare):
        return None
    try:
        return Fraction(bare) / (100 if text.endswith("%") else 1)
    except ZeroDivisionError:
        return None
