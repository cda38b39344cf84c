"""Second moments of fewer rows than inputs: damped, and one sentence in the report says so."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec.inspection import inspect
from sparsec.passes.calibrate.few_samples import damped_for, note_on, rows_and_inputs
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Rule
from tests.passes.calibrate.networks import image_network, samples, text_network

INT4 = {"rules": [{"scheme": "int4"}], "min_elements": 0}


def statistics(samples: int, inputs: int = 10) -> Statistics:
    mean = np.zeros(inputs, np.float32)
    return Statistics(samples, np.eye(inputs, dtype=np.float32), mean, mean, None, False)


@pytest.mark.parametrize(("rows", "more"), [(1000, 0.01), (20, 0.5), (10, 1.0), (3, 1.0), (0, 1.0)])
def test_damping_is_inputs_over_rows(rows: int, more: float) -> None:
    rule, given = Rule(scheme="s50-int4"), [statistics(2000), statistics(rows)]
    damped = damped_for(rule, given)
    assert damped.sparsify.damping == rule.sparsify.damping + more
    assert damped.quantize.damping == rule.quantize.damping + more
    assert rows_and_inputs(given) == (rows, 10)


def test_the_note_counts_and_names_the_worst() -> None:
    assert note_on({"a": (10, 10), "b": (99, 10)}) == ""
    note = note_on({"a": (9, 10), "b": (40, 100), "c": (100, 10)})
    assert "2 of 3 weights" in note
    assert "('b': 40 of 100)" in note


@pytest.mark.parametrize(
    ("network", "count", "words"),
    [
        (image_network, 24, "1 of 3 weights fewer rows than they have inputs ('w3': 24 of 252)"),
        (text_network, 1, "4 of 4 weights fewer rows than they have inputs ('wq': 8 of 12)"),
        (text_network, 4, ""),
    ],
)
def test_reports_say_so_once(network: Any, count: int, words: str) -> None:
    """Also where all layers come from the cache."""
    for _ in range(2):
        report = sparsec.compress(network(), INT4, calibration=samples(network(), count), verify=False).report
        assert len(report.notes) == bool(words)
        assert words in "".join(report.notes)
        assert str(report).count("fewer rows") == bool(words)
        assert report.to_json().get("notes", []) == list(report.notes)


def test_bundles_say_so_on_why(tmp_path: Path) -> None:
    model = text_network()
    compiled = sparsec.compile(model, recipe=INT4, calibration=samples(model, 1))
    found = inspect(compiled.save(tmp_path / "bundle"))
    shown, asked = io.StringIO(), io.StringIO()
    found.show(shown)
    found.show(asked, why=True)
    assert "fewer rows" not in shown.getvalue()
    assert compiled.report.notes[0] in asked.getvalue()
    assert found.to_json()["notes"] == list(compiled.report.notes)
