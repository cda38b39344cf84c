"""Orders of rows for blocks of several outputs: what is predicted, and that it happens."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Scheme
from sparsec.passes.equivalent.row_blocks import order_for_blocks
from sparsec.passes.sparsify.obs import obs_mask
from tests.passes.sparsify.test_order_rows import planted


@pytest.mark.parametrize("text", ["s4x1@50", "s4x2@50", "s4x3@40-cb4"])
def test_blocks_lose_less(text: str) -> None:
    rng = np.random.default_rng()
    structure = Scheme.parse(text).structure
    width = structure.block[1]
    score, _ = planted(5, 4, 12, rng, 0.02)
    matrix = np.repeat(np.sqrt(score), width, 1).astype(np.float32)[:, : 12 * width - width // 2]
    power = rng.uniform(0.5, 2, matrix.shape[1])
    order, before, after = order_for_blocks([matrix], [power], [structure], 4)
    assert sorted(order.tolist()) == list(range(20))
    assert after < 0.5 * before
    assert 0 < before < 1
    both = order_for_blocks([matrix, 100 * matrix], [power, power], [structure, structure], 4)
    assert both[1:] == pytest.approx((before, after), rel=0.2)


def test_what_is_predicted_happens() -> None:
    """Where inputs are independent the share that goes is the error of pruning."""
    rng = np.random.default_rng()
    matrix = (rng.standard_normal((32, 20)) * rng.choice([0.2, 1, 2], (32, 20))).astype(np.float32)
    power = rng.uniform(0.5, 2, 20)
    structure = Scheme.parse("s4x1@50").structure
    order, before, after = order_for_blocks([matrix], [power], [structure], 4)
    for rows, share in ((np.arange(32), before), (order, after)):
        mask = obs_mask(matrix[rows], np.diag(power), structure, damping=0, spread=1)
        error = np.square(np.where(mask, 0, matrix[rows])) @ power
        assert error.sum() / (np.square(matrix) @ power).sum() == pytest.approx(share, rel=1e-3)
