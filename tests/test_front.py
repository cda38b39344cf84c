"""The front of a budget for people, programs and eyes."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest

from sparsec.errors import OutputError
from sparsec.front import Front, Point


def front(timed: bool = True) -> Front:
    points = [
        Point(1e6 * size, 1e-3 * size if timed else None, 0.2 / size**3, 4.0 * size, {"int8": size, "cb4": 3})
        for size in (1, 2, 4)
    ]
    chosen = Point(1.5e6, 2e-3 if timed else None, 0.1, 6.0, {"cb4": 5})
    return Front("1.6 MB", points, chosen, 1_499_000, 2.1e-3 if timed else None, 0.07, "9 samples", ["a note"])


def test_table_and_summary() -> None:
    stream = io.StringIO()
    front().show(stream)
    lines = stream.getvalue().splitlines()
    marked = [line for line in lines if line.startswith("chosen")]
    assert len(marked) == 1
    assert "5 cb4" in marked[0]
    assert lines.index(marked[0]) == 4  # by size: behind title, headers, rule and the first point
    assert "1.4990 MB, 2.100 ms, error 7 % on 9 samples" in lines[-2]
    assert lines[-1] == "note: a note"


def test_json_holds_everything() -> None:
    data = json.loads(json.dumps(front().to_json()))
    assert [p["bytes"] for p in data["points"]] == [1e6, 2e6, 4e6]
    assert data["chosen"] == {"bytes": 1500000, "ms": 2.0, "error": 0.1, "bits_per_weight": 6.0, "schemes": {"cb4": 5}}
    assert data["bytes"] == 1_499_000
    assert "ms" not in front(timed=False).to_json()


@pytest.mark.parametrize("timed", [True, False])
def test_picture(timed: bool, tmp_path: Path) -> None:
    path = front(timed).save(tmp_path / "front.png")
    assert path.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OutputError, match="exists"):
        front(timed).save(path)
    once = path.read_bytes()
    assert front(timed).save(path, force=True).read_bytes() == once


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(OutputError, match=r"sparsec\[plot\]"):
        front().save(tmp_path / "front.png")
    assert not (tmp_path / "front.png").exists()
