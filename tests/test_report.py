"""Tables and reports: what people and programs read."""

from __future__ import annotations

import io
import json
import math

import pytest

from sparsec.files import dumps
from sparsec.passes import LayerRecord
from sparsec.report import Figures, LayerRow, Report, layer_table, megabytes
from sparsec.tables import Table
from sparsec.verify import OutputComparison, Verification

STAY = LayerRecord("head.weight", "head", "Gemm", (10, 32), "fp32", "too small: 320 elements", 0.0, 32.0, 1280, 0.0)
PACKED = LayerRecord("conv.weight", "conv", "Conv", (32, 16, 3, 3), "cb4-g32", "", 0.25, 4.5625, 2628, 0.0061234)


def report(rows: list[LayerRow]) -> Report:
    check = Verification("a", "b", "random", 1e-3, (OutputComparison("y", "float32", (1, 10), 1.23456e-5, 2.34567e-6),))
    return Report(
        "digits", "arm", Figures(45678, None, 1.5, 0.0), Figures(12_345_678, 2000, 0.5, 0.026), rows, check, {"gemm": 2}
    )


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_table_is_aligned_and_has_no_escapes() -> None:
    table = Table("title", ("name", "n"), (("a", "1"), ("longer", "200")))
    assert table.text().splitlines() == ["title", "name      n", "------  ---", "a         1", "longer  200"]
    stream = io.StringIO()
    table.show(stream)
    assert stream.getvalue() == table.text() + "\n"


def test_a_terminal_gets_rich_and_keeps_brackets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "100")
    stream = Terminal()
    Table("", ("what", "n"), (("x[0] [red]", "1"),)).show(stream)
    assert "x[0] [red]" in stream.getvalue()
    assert "─" in stream.getvalue()


def test_layer_table_shows_kernel_or_reason() -> None:
    rows = [LayerRow(PACKED, "conv"), LayerRow(STAY, "gemm")]
    first, second = layer_table(rows).rows
    assert first == ("conv.weight", "Conv", "32x16x3x3", "cb4-g32", "25.0", "4.56", "2.6", "0.0061", "conv")
    assert second[-1] == STAY.reason
    assert [row[-2:] for row in layer_table(rows, why=True).rows] == [("conv", ""), ("gemm", STAY.reason)]


def test_a_reason_that_all_layers_share_gives_way_to_the_kernels() -> None:
    rows = [LayerRow(STAY, "gemm"), LayerRow(STAY, "gemv")]
    assert [row[-1] for row in layer_table(rows).rows] == ["gemm", "gemv"]
    assert [row[-1] for row in layer_table([LayerRow(STAY)]).rows] == [STAY.reason]


def test_summary_has_a_dash_where_nothing_was_measured() -> None:
    before, after = report([]).summary().rows
    assert before == ("before", "0.046", "-", "1.500", "0")
    assert after == ("after", "12.3", "0.002", "0.500", "0.026")
    assert [megabytes(n) for n in (None, 0, 1_234_567)] == ["-", "0.000", "1.235"]


def test_json_is_deterministic_and_leaves_measurements_out() -> None:
    made = report([LayerRow(PACKED, "conv"), LayerRow(STAY)])
    data = made.to_json()
    assert dumps(data) == dumps(report([LayerRow(PACKED, "conv"), LayerRow(STAY)]).to_json())
    assert "median_ms" not in dumps(data)
    assert "ram_bytes" not in data["before"]
    assert data["after"]["ram_bytes"] == 2000
    assert data["verification"]["outputs"][0]["relative"] == 2.35e-6
    measured = made.to_json(measured=True)
    assert measured["after"]["median_ms"] == 0.5
    assert json.loads(dumps(measured)) == measured


def test_layer_rows_survive_json() -> None:
    row = LayerRow(PACKED, "conv")
    again = LayerRow.from_json(json.loads(json.dumps(row.to_json())))
    assert again.kernel == "conv"
    assert (again.record.name, again.record.shape, again.record.scheme) == (PACKED.name, PACKED.shape, PACKED.scheme)
    assert again.to_json() == LayerRow.from_json(again.to_json()).to_json()


def test_infinite_errors_are_null_in_json() -> None:
    made = report([])
    made.after.error = math.inf
    assert made.to_json()["after"]["error"] is None
    assert json.loads(dumps(made.to_json()))["after"]["error"] is None
