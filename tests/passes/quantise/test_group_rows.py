"""Rows in runs that are alike: planted groups are found, and nearly the best of all partitions on tiny weights."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from sparsec.passes.quantise import group_rows as module
from sparsec.passes.quantise.group_rows import _quantiles, _spread, row_order


def planted(rows: int, cols: int, kinds: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(weight, kind of each row): every kind has its own few values."""
    kind = rng.permutation(np.repeat(np.arange(kinds), rows // kinds))
    values = 3 * rng.standard_normal((kinds, 4))
    return values[kind[:, None], rng.integers(0, 4, (rows, cols))] + 0.02 * rng.standard_normal((rows, cols)), kind


@pytest.mark.parametrize(("rows", "cols", "kinds"), [(12, 50, 3), (64, 120, 4), (40, 200, 5)])
def test_planted_kinds_are_found(rows: int, cols: int, kinds: int) -> None:
    weight, kind = planted(rows, cols, kinds, np.random.default_rng(0))
    order = row_order(weight, rows // kinds)
    assert sorted(order.tolist()) == list(range(rows))
    runs = kind[order].reshape(kinds, -1)
    assert (runs == runs[:, :1]).mean() > 0.95
    assert (np.diff(order.reshape(kinds, -1), axis=1) > 0).all()


def test_near_the_best_of_all_partitions() -> None:
    found = best = given = 0.0
    for seed in range(10):
        weight = np.random.default_rng(seed).standard_t(3, (8, 12)) * np.exp(
            np.random.default_rng(seed).standard_normal((8, 1))
        )
        quantiles = _quantiles(weight)
        run = np.empty(8, int)
        run[row_order(weight, 4)] = np.arange(8) // 4
        found += _spread(quantiles, run)
        given += _spread(quantiles, np.arange(8) // 4)
        best += min(
            _spread(quantiles, np.isin(np.arange(8), chosen).astype(int)) for chosen in combinations(range(8), 4)
        )
    assert best <= found * (1 + 1e-9)
    assert found - best < 0.1 * (given - best)


@pytest.mark.parametrize("span", [1, 3, 7, 100])
def test_any_span(span: int) -> None:
    weight = np.random.default_rng(1).standard_normal((7, 5))
    order = row_order(weight, span)
    assert sorted(order.tolist()) == list(range(7))
    assert np.array_equal(order, row_order(weight, span))
    assert row_order(np.zeros((6, 4)), 2).tolist() == [0, 1, 2, 3, 4, 5]
    assert row_order(weight[:1], span).tolist() == [0]


def test_many_rows_go_by_the_first_component(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MOST_ASSIGNED", 8)
    size = np.random.default_rng(2).permutation(np.repeat([1.0, 10.0], 8))
    weight = np.random.default_rng(3).standard_normal((16, 40)) * size[:, None]
    assert len(set(size[row_order(weight, 8)][:8].tolist())) == 1
