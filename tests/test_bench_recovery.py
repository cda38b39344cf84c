"""The table of `bench recovery`, without training anything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bench import recovery


@pytest.mark.parametrize(("after", "code"), [(79.1, 0), (78.9, 1)])
def test_bars_count_from_the_dense_score(
    after: float, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    class Model:
        def reference_run(self, threads: int) -> str:
            return "dense"

    asked: list[Any] = []

    def made(scheme: str, recover: Any) -> tuple[float, float, float]:
        asked.append((scheme, recover))
        return (76.0 if recover is None else after), 2.4, 60.0

    monkeypatch.setattr(recovery, "get", lambda name: Model())
    monkeypatch.setattr(recovery, "_score", lambda run: 81.0)
    monkeypatch.setattr(recovery, "_made", made)
    path = tmp_path / "figures.json"
    assert recovery.run(["s16x1@50-cb4-g32", "cb3"], 3, path) == code
    assert [scheme for scheme, _ in asked] == ["s16x1@50-cb4-g32"] * 2 + ["cb3"] * 2
    assert asked[1][1]["epochs"] == 3
    table = capsys.readouterr().out
    assert ("met" if code == 0 else "missed") in table
    assert "-2.0" in table
    assert [result["met"] for result in json.loads(path.read_text())["results"]] == [code == 0, True]
