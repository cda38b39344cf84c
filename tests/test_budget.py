"""Budgets as text."""

from __future__ import annotations

import pytest

from sparsec.budget import DEFAULT_CANDIDATES, FAST_CANDIDATES, Budget, checked_candidates, parse_budget
from sparsec.errors import BudgetError, RecipeError


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("1.2MB", Budget(nbytes=1.2e6)),
        (" 300 KB ", Budget(nbytes=3e5)),
        ("2KiB", Budget(nbytes=2048)),
        ("25ms", Budget(seconds=0.025)),
        ("800us,.5%", Budget(seconds=8e-4, error=0.005)),
        ("1e5B,2s", Budget(nbytes=1e5, seconds=2)),
    ],
)
def test_budgets_parse(text: str, budget: Budget) -> None:
    found = parse_budget(text)
    for name in ("nbytes", "seconds", "error"):
        assert getattr(found, name) == pytest.approx(getattr(budget, name)), name
    assert str(parse_budget(str(found))) == str(found)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no number with a unit"),
        ("12", "no number with a unit"),
        ("1.2mb", "did you mean 'MB'"),
        ("-3MB", "no number"),
        ("0KB", "nothing"),
        ("1MB,2KB", "two limits for size"),
        ("5 parsecs", "1.2MB, 25ms, 0.5%"),
    ],
)
def test_wrong_budgets_say_what_is_right(text: str, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        parse_budget(text)


def test_candidates() -> None:
    size, time = Budget(nbytes=1), Budget(seconds=1)
    assert checked_candidates("int8-c, cb4-g32,fp32,int8", size) == ["int8", "cb4-g32"]
    assert checked_candidates(["s50-fp32"], size) == ["s50"]
    assert checked_candidates(None, size) == list(DEFAULT_CANDIDATES)
    assert checked_candidates(None, time) == list(FAST_CANDIDATES)
    with pytest.raises(RecipeError, match="'int9' is no scheme"):
        checked_candidates("int9", size)
    with pytest.raises(RecipeError, match="none but fp32"):
        checked_candidates(["fp32"], size)
