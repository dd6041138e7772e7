"""What solutions come to, and which answers are the same."""

import pytest

from ivl3_jax.inference.scaling.final_answer import final_answer, same_answer


@pytest.mark.parametrize(
    ("solution", "final"),
    [
        ("It is two.\n\nFinal answer: 2", "2"),
        ("Final answer: 2.\nFinal answer: 3.", "3"),
        ("**Final Answer:** (B)", "(B)"),
        ("The answer is: $\\frac{1}{2}$", "\\frac{1}{2}"),
        ("so $\\boxed{\\text{north}}$", "north"),
        ("\\boxed{1} and then \\boxed{a_{2}}", "a_{2}"),
        ("Final answer:\n42", "42"),
        ("Answer: B. two dogs", "B. two dogs"),
        ("It is two.", None),
        ("\\boxed{never closed", None),
        ("\\boxed{5} and \\boxed{6", "5"),
        ("**Final answer**: 42", "42"),
        ("### Final Answer\n42", "42"),
        ("The answer is 42.", "42"),
        ("Final answer: 5\n\nI hope this answer: helps", "5"),
        ("Final answer: .", None),
        ("The final answer is: **B**", "B"),
        ("Final answer: −5", "-5"),
        ("", None),
        ("Final answer: The answer is 5.", "5"),
        ("Final answer: **The final answer is:** $x = 5$", "x = 5"),
        ("\\boxed{x = 5, y = 6}", "x = 5, y = 6"),
        ("Final answer: " + "answer is " * 100_000 + "5", "5"),
        ("Final answer: B = two dogs", "B = two dogs"),
        ("Final answer: The answer is", None),
    ],
)
def test_final_answer(solution, final):
    assert final_answer(solution) == final


@pytest.mark.parametrize(
    ("found", "expected", "same"),
    [
        ("2", "2.0", True),
        ("1,000", "1000", True),
        ("1,00", "100", False),
        ("50%", "0.5", True),
        ("\\frac{1}{2}", "0.5", True),
        ("1/2", "50\\%", True),
        ("-3", "3", False),
        ("(B)", "b", True),
        ("B. two", "B", True),
        ("B", "A", False),
        ("Berlin", "berlin.", True),
        ("a cat", "cat", False),
        ("**yes**", "Yes", True),
        ("", "2", False),
        ("−5", "-5", True),
        ("1e3", "1000", True),
        ("x = 5", "5", True),
        ("x=$5$", "5.0", True),
        ("x = (B)", "B", True),
        ("x = 5, y = 6", "5", False),
        ("x = 5", "y = 6", False),
        ("5 cm", "5", False),
        ("5 cm", "5 m", False),
        ("1e10000000", "10", False),
        ("9" * 10_000_000, "10", False),
        (None, "2", False),
    ],
)
def test_same_answer(found, expected, same):
    assert same_answer(found, expected) == same
