"""Bars on standard error: how much of how much, or of what nobody knows; nothing where that is no terminal."""

from __future__ import annotations

import io
import sys

import pytest

from sparsec.console import progress_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("total", "words"), [(12, "3/12"), (0, "3/?")])
def test_bars_tell_how_much_of_how_much(total: int, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setattr(sys, "stderr", stream := Terminal())
    with progress_bar() as report:
        assert report is not None
        report("calibrate", 0, 0, "")  # nobody knows yet
        report("calibrate", 3, total, "fc1: sample 7 of 64")
        report("compress", 1, 2, "")
    shown = stream.getvalue()
    assert words in shown
    assert "1/2" in shown
    assert "fc1: sample 7 of 64" in shown


def test_no_bar_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar() as report:
        assert report is None
