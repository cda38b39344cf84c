"""Budgets as text."""

from __future__ import annotations

import math

import pytest

from sparsec.budget import (
    DEFAULT_CANDIDATES,
    FAST_CANDIDATES,
    SMALL_FAST_CANDIDATES,
    Budget,
    checked_candidates,
    parse_budget,
)
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
        ("1 point", Budget(points=0.01)),
        ("20KB,0.5points", Budget(nbytes=2e4, points=0.005)),
        ("1%task, 2%", Budget(error=0.02, task=0.01)),
    ],
)
def test_budgets_parse(text: str, budget: Budget) -> None:
    found = parse_budget(text)
    for name in ("nbytes", "seconds", "error", "points", "task"):
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
        ("1 pont", "did you mean 'point'"),
        ("1% of task", "did you mean '% task'"),
        ("1 point,2% task", "two limits for the task"),
    ],
)
def test_wrong_budgets_say_what_is_right(text: str, words: str) -> None:
    with pytest.raises(BudgetError, match=words):
        parse_budget(text)


def test_what_a_score_may_lose() -> None:
    assert Budget(points=0.01).loss(0.8) == 0.01
    assert Budget(task=0.01).loss(-3.0) == pytest.approx(0.03)
    assert Budget(error=0.01).loss(0.8) == math.inf
    assert [Budget(points=1).on_task, Budget(task=1).on_task, Budget(error=1).on_task] == [True, True, False]


def test_candidates() -> None:
    size, time = Budget(nbytes=1), Budget(seconds=1)
    assert checked_candidates("int8-c, cb4-g32,fp32,int8", size) == ["int8", "cb4-g32"]
    assert checked_candidates(["s50-fp32"], size) == ["s50"]
    assert checked_candidates(None, size) == list(DEFAULT_CANDIDATES)
    assert checked_candidates(None, time) == list(FAST_CANDIDATES)
    for other in (Budget(seconds=1, nbytes=1), Budget(seconds=1, error=1), Budget(seconds=1, task=1)):
        assert checked_candidates(None, other) == list(SMALL_FAST_CANDIDATES)
    with pytest.raises(RecipeError, match="'int9' is no scheme"):
        checked_candidates("int9", size)
    with pytest.raises(RecipeError, match="none but fp32"):
        checked_candidates(["fp32"], size)
