"""The knee of a front."""

from __future__ import annotations

import numpy as np

from sparsec.passes.budget.knee import knee


def test_the_corner_of_two_lines_is_found() -> None:
    sizes = np.arange(2.0, 12)
    logs = np.where(sizes < 5, 5 - 4 * (sizes - 2), -7 - 0.3 * (sizes - 5))
    assert knee(sizes, np.exp(logs)) == 3
    assert knee(1000 * sizes, 1e-5 * np.exp(logs)) == 3


def test_a_straight_or_bulging_front_has_none() -> None:
    sizes = np.arange(1.0, 9)
    assert knee(sizes, np.exp(-sizes)) is None
    assert knee(sizes, np.exp(-np.square(sizes))) is None
    assert knee([1.0, 2.0], [1.0, 0.1]) is None
    assert knee(sizes, np.zeros(8)) is None
