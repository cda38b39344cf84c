"""The machine's rates: what is measured, what is kept, how the model reads it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.roof import results, rows
from sparsec.codegen import machine
from sparsec.codegen.machine import Level, Machine, Rate, measure, nominal, this_machine
from sparsec.target import NAMED, host_target

TOY = Machine(
    "toy", 4, 256, (Level("L1", 1000, Rate(8, 32)), Level("L3", 9000, Rate(4, 10)), Level("memory", 0, Rate(1, 2))),
    Rate(100, 400), Rate(200, 800),
)  # fmt: skip


def test_a_short_measurement_fills_every_field() -> None:
    found = measure(seconds=0.001, rounds=1)
    assert found.vector_bits == host_target().vector_bits
    assert found.levels[-1].name == "memory"
    assert len(found.levels) >= 2
    for rate in [*(level.read for level in found.levels), found.fma, found.int8]:
        assert 1e6 < rate.one <= rate.all < 1e15
    assert Machine.from_json(json.loads(json.dumps(found.to_json()))) == found


def test_measured_once_and_again_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path))
    calls = []
    monkeypatch.setattr(machine, "measure", lambda: calls.append(1) or TOY)
    assert this_machine() == this_machine() == TOY
    assert len(calls) == 1
    assert this_machine(again=True) == TOY
    assert len(calls) == 2
    (path,) = (tmp_path / "machines").iterdir()
    path.write_text(path.read_text()[:-1])
    assert this_machine() == TOY, "a damaged entry is measured again"
    assert len(calls) == 3


def test_the_level_follows_the_working_set() -> None:
    assert TOY.read_rate(1000) == 8
    assert TOY.read_rate(1001) == 4
    assert TOY.read_rate(9001) == 1
    assert TOY.read_rate(4000, threads=4) == 32, "private caches of four cores add up"
    assert TOY.read_rate(20000, threads=4) == 2
    assert TOY.fma.of(1, 4) == 100
    assert TOY.fma.of(4, 4) == TOY.fma.of(9, 4) == 400
    assert TOY.fma.of(2, 4) == 200


@pytest.mark.parametrize("name", sorted(NAMED))
def test_nominal_machines_are_ordered_like_real_ones(name: str) -> None:
    found = nominal(NAMED[name])
    rates = [level.read.one for level in found.levels]
    assert rates == sorted(rates, reverse=True)
    assert found.int8.one > found.fma.one


def test_roof_table_and_json() -> None:
    table = rows(TOY)
    assert table[0] == ["read L1", "within 0 KB", "0.0", "0.0", "GB/s"]
    assert [row[0] for row in table] == ["read L1", "read L3", "read memory", "multiply-add fp32", "multiply-add int8"]
    assert results(TOY)["roof"]["fma"] == {"one": 100, "all": 400}
