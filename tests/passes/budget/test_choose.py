"""The choice of options under limits: exact against brute force, good where it is not, and the same for the same table."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sparsec.passes.budget import choose as module
from sparsec.passes.budget.choose import choose, pareto, totals


def table(seed: int, layers: int, options: int, columns: int = 3) -> list[np.ndarray]:
    """Costs as schemes have them: less error costs more of the rest; some options are dominated, some equal."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(layers):
        count = int(rng.integers(1, options + 1))
        costs = rng.random((count, columns)) * 10 ** rng.uniform(-2, 2, columns)
        costs[:, 0] = np.sort(costs[:, 0])
        costs[:, 1] = np.sort(costs[:, 1])[::-1]
        found.append(np.round(costs, 3))
    return found


def brute_force(costs: list[np.ndarray], objective: int, limits: dict[int, float]) -> float | None:
    best = None
    for choice in itertools.product(*(range(len(layer)) for layer in costs)):
        sums = totals(costs, choice)
        if all(sums[column] <= limit + 1e-12 for column, limit in limits.items()):
            best = min(best, sums[objective]) if best is not None else sums[objective]
    return best


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("seed", range(25))
def test_one_limit_is_exact(seed: int, few: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not few:  # dynamic programming in place of trying everything
        monkeypatch.setattr(module, "_COMBINATIONS", 0)
    costs = table(seed, 5, 5)
    low, high = (sum(f(layer[:, 1]) for layer in costs) for f in (np.min, np.max))
    for share in (-0.01, 0.0, 0.2, 0.5, 0.9, 1.0):
        limit = float(low + share * (high - low))
        found, wanted = choose(costs, 0, {1: limit}), brute_force(costs, 0, {1: limit})
        assert (found is None) == (wanted is None)
        if found is not None and wanted is not None:
            assert totals(costs, found)[0] == pytest.approx(wanted, rel=1e-12)
            assert totals(costs, found)[1] <= limit * (1 + 1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_two_limits_are_exact_on_tiny_problems(seed: int) -> None:
    costs = table(seed, 5, 4)
    limits = {c: float(sum(np.quantile(layer[:, c], 0.5) for layer in costs)) for c in (1, 2)}
    found, wanted = choose(costs, 0, limits), brute_force(costs, 0, limits)
    assert (found is None) == (wanted is None)
    if found is not None and wanted is not None:
        assert totals(costs, found)[0] == pytest.approx(wanted, rel=1e-12)


def test_multipliers_come_near_the_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    ratios = []
    for seed in range(12):
        costs = table(seed, 7, 4)
        limits = {c: float(sum(np.quantile(layer[:, c], 0.6) for layer in costs)) for c in (1, 2)}
        monkeypatch.setattr(module, "_COMBINATIONS", 1 << 20)
        exact = choose(costs, 0, limits)
        monkeypatch.setattr(module, "_COMBINATIONS", 0)
        found = choose(costs, 0, limits)
        assert (found is None) == (exact is None)
        if found is None or exact is None:
            continue
        sums = totals(costs, found)
        assert all(sums[column] <= limit for column, limit in limits.items())
        ratios.append(sums[0] / totals(costs, exact)[0])
    assert len(ratios) > 6
    assert np.median(ratios) < 1.05
    assert max(ratios) < 1.5


def test_many_layers_stay_near_the_bound_of_the_relaxed_problem() -> None:
    """50 layers have more states than are kept: no multiplier's bound is missed by more than a thousandth."""
    costs = table(3, 50, 9)
    low, high = (sum(f(layer[:, 1]) for layer in costs) for f in (np.min, np.max))
    limit = float(low + 0.3 * (high - low))
    found = choose(costs, 0, {1: limit})
    assert found is not None
    bound = -math.inf
    for weight in np.logspace(-6, 6, 400):
        relaxed = sum(float((layer[:, 0] + weight * layer[:, 1]).min()) for layer in costs) - weight * limit
        bound = max(bound, relaxed)
    assert totals(costs, found)[1] <= limit * (1 + 1e-9)
    assert totals(costs, found)[0] <= bound * 1.02
    assert found == choose(costs, 0, {1: limit})


def test_front_is_what_no_choice_beats() -> None:
    costs = table(5, 5, 4)
    every = {tuple(totals(costs, c)[:2]) for c in itertools.product(*(range(len(layer)) for layer in costs))}
    best = sorted(p for p in every if not any(o != p and o[0] <= p[0] and o[1] <= p[1] for o in every))
    found = [tuple(totals(costs, choice)[:2]) for choice in pareto(costs, 0, 1, most=10**6)]
    np.testing.assert_allclose(found, best, rtol=1e-12)
    few = [tuple(totals(costs, choice)[:2]) for choice in pareto(costs, 0, 1, most=4)]
    assert 2 <= len(few) <= 4
    np.testing.assert_allclose([few[0], few[-1]], [best[0], best[-1]], rtol=1e-12)


def test_no_limit_and_no_layers() -> None:
    costs = table(1, 4, 3)
    assert totals(costs, choose(costs, 2, {}) or []).tolist()[2] == pytest.approx(
        sum(layer[:, 2].min() for layer in costs)
    )
    assert choose([], 0, {1: 5.0}) == []
