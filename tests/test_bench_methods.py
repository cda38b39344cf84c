"""The tables of `bench methods`, without compressing anything; their rules are recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench import methods
from sparsec.recipe import load_recipe


def test_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = []

    def scored(model: str, scheme: str, more: methods.Rule | None) -> float | None:
        asked.append((model, scheme))
        if more is not None:
            rule = {"targets": "*", "scheme": scheme, **more}
            load_recipe({"version": 1, "rules": [rule]})
        return None if scheme == "s80" else 1.25

    monkeypatch.setattr(methods, "scored", scored)
    monkeypatch.setattr(methods, "dense_score", lambda model, what: 4.0)
    path = tmp_path / "figures.json"
    assert methods.run(["scope"], path) == 0
    text = capsys.readouterr().out
    assert [line.split("|")[1].strip() for line in text.splitlines()[2:7]] == [
        "layer",
        "global",
        "output",
        "lamp",
        "erk",
    ]
    assert "perplexity, dense 4.00" in text
    results = json.loads(path.read_text())["results"]
    assert len(results) == len(asked) == 20
    assert {(r["scheme"], r["score"]) for r in results} == {("s50", 1.25), ("s80", None)}


def test_unknown_table() -> None:
    with pytest.raises(SystemExit, match="no table speed; there are: zeros, codes, scope"):
        methods.run(["speed", "codes"], None)
