"""The table of a budget: every weight in every scheme, as rows, text and JSON, and what the choice is made of."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import sparsec
from sparsec.cli import main
from sparsec.errors import OutputError
from sparsec.front import Front
from sparsec.sensitivity import Trial, sensitivity_table
from tests.models import DIGITS, digits

SCHEMES = ["int8", "cb4", "cb2-c", "s16x1@50"]
GIVEN: dict[str, Any] = {"candidates": SCHEMES, "input_shapes": {"N": 1}, "verify": False}
IMAGES = [{"x": image[None]} for image in digits()[0][0][:24]]


def spent(jobs: int = 1, **others: Any) -> Front:
    front = sparsec.compress(DIGITS, budget="18KB", calibration=IMAGES, jobs=jobs, **GIVEN, **others).report.front
    assert front is not None
    return front


def test_rows_are_what_the_choice_is_made_of() -> None:
    front = spent()
    by_weight: dict[str, list[Trial]] = {}
    for row in front.sensitivity:
        by_weight.setdefault(row.weight, []).append(row)
    for rows in by_weight.values():
        assert rows[0].scheme == "fp32"
        assert {row.scheme for row in rows} == {"fp32", *SCHEMES}
        assert sum(row.chosen for row in rows) == 1
        error = {row.scheme: row.error for row in rows if row.error is not None}
        assert error["fp32"] == 0 < error["int8"] < error["cb2-c"]
        nbytes = {row.scheme: row.nbytes for row in rows if row.nbytes is not None}
        if nbytes["fp32"] > 4000:  # of small weights what a coded one needs besides is more than it saves
            assert nbytes["fp32"] > nbytes["int8"] > nbytes["cb2-c"] > 0
        assert next(row for row in rows if row.scheme == "fp32").bits == 32
    chosen = [row for row in front.sensitivity if row.chosen]
    assert sum((row.error or 0.0) ** 2 for row in chosen) == pytest.approx(front.chosen.error**2)
    assert {
        scheme: sum(row.scheme == scheme for row in chosen) for scheme in front.chosen.schemes
    } == front.chosen.schemes
    assert all(row.seconds is None for row in chosen)


def test_times_where_they_are_limited_and_the_same_for_any_number_of_jobs() -> None:
    one = sparsec.compress(DIGITS, budget="1s", target="x86-avx2", calibration=IMAGES, jobs=1, **GIVEN).report.front
    three = sparsec.compress(DIGITS, budget="1s", target="x86-avx2", calibration=IMAGES, jobs=3, **GIVEN).report.front
    assert one is not None
    assert three is not None
    assert one.to_json() == three.to_json()
    times = [row.seconds for row in one.sensitivity if not row.refused]
    assert all(seconds is not None and seconds > 0 for seconds in times)


def test_refusals_have_their_reason(tmp_path: Path) -> None:
    rows = [
        Trial("w", "fp32", 0.0, 0.0, 400.0, 32.0, 1e-4, chosen=True),
        Trial("w", "vq2d4", refused="13 inputs, by 4"),
    ]
    lines = sensitivity_table(rows).text().splitlines()
    assert lines[-2].split() == ["w", "fp32", "0", "0", "400", "32.00", "0.1000", "chosen"]
    assert lines[-1].endswith("13 inputs, by 4")
    assert rows[1].to_json() == {"weight": "w", "scheme": "vq2d4", "refused": "13 inputs, by 4"}


def test_files(tmp_path: Path) -> None:
    front = spent()
    data = json.loads(front.save(tmp_path / "front.json").read_text())
    assert data == json.loads(json.dumps(front.to_json()))
    assert data["sensitivity"][0]["scheme"] == "fp32"
    assert len(data["sensitivity"]) == len(front.sensitivity)
    text = front.save(tmp_path / "front.txt").read_text()
    assert front.summary() in text
    assert all(row.weight in text for row in front.sensitivity)
    with pytest.raises(OutputError, match="exists"):
        front.save(tmp_path / "front.json")


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    arguments = [
        "compress",
        str(DIGITS),
        "a.onnx",
        "--budget",
        "18KB",
        "--candidates",
        ",".join(SCHEMES),
        "--input-shapes",
        "N=1",
    ]
    assert main([*arguments, "--front", "front.json", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert json.loads(Path("front.json").read_text()) == report["front"]
    once = Path("front.json").read_bytes()
    assert main([*arguments, "--front", "front.json", "--force"]) == 0
    assert Path("front.json").read_bytes() == once
