"""Rounding to int8 and back against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec import int8
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel


@pytest.mark.parametrize("target", [host_target(), NAMED["arm-v8.0"]], ids=lambda t: t.name)
@pytest.mark.parametrize(("groups", "size"), [(1, 1), (3, 7), (5, 32), (2, 129)])
def test_rounds_like_numpy(groups: int, size: int, target: Target) -> None:
    x = np.random.default_rng([groups, size]).normal(size=(groups, size)).astype(np.float32)
    x[-1] = 0
    (found,) = run_kernel("quantise", {"groups": groups, "size": size}, [x], target=target)
    np.testing.assert_array_equal(found.reshape(groups, size), int8.quantised(x, 0))


def test_halves_go_to_even() -> None:
    x = np.array([127, 0.5, 1.5, 2.5, -0.5, -1.5], np.float32)
    (found,) = run_kernel("quantise", {"groups": 1, "size": 6}, [x])
    np.testing.assert_array_equal(found, [127, 0, 2, 2, 0, -2])
