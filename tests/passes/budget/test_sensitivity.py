"""From the errors of layers to those of the model: what is measured, and what lies between."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes.budget.sensitivity import output_errors, probed


def test_probes_spread_over_the_errors() -> None:
    errors = [0.0, 1e-4, 2e-4, 1e-2, 0.5, 3e-4, 1.0]
    assert probed(errors) == [1, 3, 6]
    assert probed(errors, most=2) == [1, 6]
    assert probed([0.0, 0.2]) == [1]
    assert probed([0.0, 0.0]) == []


def test_what_was_measured_stays_and_the_rest_follows_a_power() -> None:
    own = np.array([0.0, 1e-4, 1e-3, 1e-2, 1e-1, 1.0])
    true = 3.0 * own**0.8
    found = output_errors(own, {1: float(true[1]), 4: float(true[4])})
    np.testing.assert_allclose(found[:5], true[:5], rtol=1e-9)
    assert found[5] == pytest.approx(true[4] * 10)  # outside: the ratio of the nearest


def test_nothing_measured_means_nothing_lost() -> None:
    assert output_errors([0.0, 0.1], {}).tolist() == [0.0, 0.0]
    assert output_errors([0.0, 0.1, 0.2], {1: 0.0}).tolist() == [0.0, 0.0, 0.0]
