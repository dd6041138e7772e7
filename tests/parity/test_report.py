"""Reports: the verdict's words, the table, Markdown with and without a title."""

import numpy as np
import pytest

from ivl3_jax.conversion import comparison
from ivl3_jax.conversion.comparison import Difference, Report, compare, difference, mismatch


def test_differences_are_those_of_whole_arrays_however_they_are_cut(monkeypatch):
    rng = np.random.default_rng(0)
    ours, theirs = rng.standard_normal((2, 37, 11)).astype(np.float32)
    whole = difference("weights", "x", None, ours, theirs, 0.0)
    wide, other = ours.astype(np.float64), theirs.astype(np.float64)
    assert whole.relative == pytest.approx(np.linalg.norm(wide - other) / np.linalg.norm(other), rel=1e-14)
    assert whole.max_abs == np.abs(wide - other).max()
    monkeypatch.setattr(comparison, "PIECE", 25)
    cut = difference("weights", "x", None, ours, theirs, 0.0)
    assert (cut.relative, cut.max_abs) == pytest.approx((whole.relative, whole.max_abs), rel=1e-14)
    ours[30, 5] = np.nan
    spoiled = difference("weights", "x", None, ours, theirs, 1.0)
    assert not spoiled.ok and np.isnan(spoiled.max_abs) and np.isnan(spoiled.relative)


def test_scalars_and_empty_arrays():
    assert difference("a", "x", None, np.float32(2.0), np.float32(1.0), 0.0).relative == 1.0
    assert difference("a", "x", None, np.zeros((0, 3)), np.zeros((0, 3)), 0.0).ok


def test_sequences_are_compared_place_by_place():
    found = mismatch("ids", "x", [1, 2, 3], [1, 9, 3, 4])
    assert (found.max_abs, found.relative, found.ok) == (2, 0.5, False)
    assert mismatch("text", "x", "same", "same").ok and mismatch("text", "x", "", "").ok


def report(*relative):
    return Report(
        "A title", {"dtype": "f"}, [Difference("k", f"t{i}", None, r, r, 1e-4) for i, r in enumerate(relative)]
    )


def test_verdicts():
    assert report(0, 1e-5).verdict == "equal within tolerance: 2 comparisons"
    one = report(0, 1e-3).verdict
    assert one == "NOT equal: 1 of 2 comparisons over tolerance, the first is t1 (k): relative 1.00e-03, allowed 1e-04"
    assert report(1e-3, 1e-2).verdict.endswith(", the worst t1 (k): relative 1.00e-02, allowed 1e-04")
    assert "the worst t1" in report(1e-3, float("nan"), 1e-2).verdict


def test_the_body_is_the_page_without_its_title():
    page = report(1e-5)
    assert page.markdown() == "# A title\n\n" + page.body()
    assert page.body().startswith("- dtype: f\n\n**equal within tolerance")
    assert "#" not in page.body()


def test_what_lacks_is_named():
    with pytest.raises(ValueError, match="x: the reference has it and we do not"):
        compare("k", {}, {"x": np.zeros(3)}, 0.0)
    with pytest.raises(ValueError, match=r"x: our shape is \[2\], the reference's \[3\]"):
        compare("k", {"x": np.zeros(2)}, {"x": np.zeros(3)}, 0.0)
