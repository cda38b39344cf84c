"""PQ-index: the properties its paper proves, and the bound on what pruning should keep."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes.budget.pq_index import least_kept, pq_index

RNG = np.random.default_rng(5)


@pytest.mark.parametrize(("p", "q"), [(0.5, 1.0), (1.0, 2.0)])
def test_axioms_of_sparsity(p: float, q: float) -> None:
    w = np.abs(RNG.standard_normal(257))
    found = pq_index(w, p, q)
    assert 0 < found < 1
    assert pq_index(-3.7 * w, p, q) == pytest.approx(found)  # scaling
    assert pq_index(np.tile(w, 3), p, q) == pytest.approx(found)  # cloning
    assert pq_index(w + 0.5, p, q) < found  # rising tide
    moved = w.copy()
    moved[w.argmax()] -= 0.1
    moved[w.argmin()] += 0.1
    assert pq_index(moved, p, q) < found  # Robin Hood
    assert pq_index(np.append(w, np.zeros(20)), p, q) > found  # babies


def test_the_definition_and_its_ends() -> None:
    w = RNG.standard_normal(31)
    norm = [np.sum(np.abs(w) ** e) ** (1 / e) for e in (0.5, 1.0)]
    assert pq_index(w) == pytest.approx(1 - 31 ** (1 - 2) * norm[0] / norm[1])
    assert pq_index(np.full(9, -2.0)) == pytest.approx(0)
    assert pq_index(np.zeros(4)) == 0
    assert pq_index(np.eye(1, 50)) == pytest.approx(1 - 50 ** (1 - 2))


def test_what_should_stay() -> None:
    w = RNG.standard_normal(1000)
    ratio = np.abs(w).sum() ** 2 / (1000 * np.square(w).sum())
    assert least_kept(w, 1, 2) == pytest.approx(ratio)
    assert least_kept(np.ones(7)) == pytest.approx(1)
    few = np.zeros(1000)
    few[:100] = 1 + 0.01 * w[:100]
    assert least_kept(few) == pytest.approx(0.1, rel=0.01)
    assert least_kept(w, excess=0.1) < least_kept(w)
