"""Zeros and a low rank together: planted parts are found, and the sum beats either alone."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.errors import WeightError
from sparsec.formats import DENSE, Scheme
from sparsec.passes.factor.sparse_plus_low_rank import sparse_plus_low_rank
from sparsec.passes.factor.svd import svd
from sparsec.passes.sparsify.masks import mask_of_scores

Planted = tuple[np.ndarray, np.ndarray, np.ndarray]


def planted(rows: int = 48, cols: int = 56, rank: int = 3, share: float = 0.05, seed: int = 0) -> Planted:
    """(W, support, low-rank part): few large values on a low rank."""
    rng = np.random.default_rng(seed)
    low = rng.standard_normal((rows, rank)) @ rng.standard_normal((rank, cols))
    support = rng.permutation(rows * cols).reshape(rows, cols) < round(share * rows * cols)
    return low + np.where(support, rng.choice([-9.0, 9.0], (rows, cols)), 0), support, low


@pytest.mark.parametrize("seed", range(3))
def test_planted_parts_are_found(seed: int) -> None:
    weight, support, low = planted(seed=seed)
    mask, sparse, left, right = sparse_plus_low_rank(weight, 3, Scheme.parse("s95").structure, turns=400)
    assert (mask == support).mean() > 0.999
    np.testing.assert_allclose(left @ right, low, atol=0.05 * np.abs(low).max())
    assert np.square(weight - sparse - left @ right).sum() < 1e-3 * np.square(weight).sum()
    assert not sparse[~mask].any()


def test_beats_either_alone_with_as_many_values() -> None:
    weight, _, _ = planted(share=0.1, seed=4)
    weight = weight + 0.3 * np.random.default_rng(1).standard_normal(weight.shape)
    rows, cols = weight.shape
    mask, sparse, left, right = sparse_plus_low_rank(weight, 3, Scheme.parse("s90").structure)
    values = mask.sum() + 3 * (rows + cols)
    kept = mask_of_scores(np.square(weight), Scheme.parse(f"s{100 - 100 * values / weight.size:.1f}").structure)
    u, v = svd(weight, round(values / (rows + cols)))
    alone = [np.square(weight * ~kept).sum(), np.square(weight - u @ v).sum()]
    assert np.square(weight - sparse - left @ right).sum() < 0.5 * min(alone)


def test_more_turns_never_hurt_and_sizes_count() -> None:
    rng = np.random.default_rng(8)
    weight, sizes = rng.standard_normal((21, 33)), np.exp(rng.standard_normal(33))

    def lost(turns: int, weighed: bool = True) -> float:
        found = sparse_plus_low_rank(
            weight, 4, Scheme.parse("s2:4").structure, sizes=sizes if weighed else None, turns=turns
        )
        return float(np.square((weight - found[1] - found[2] @ found[3]) * sizes).sum())

    errors = [lost(turns) for turns in (1, 2, 4, 8, 16, 32)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.95 * errors[0]
    assert errors[-1] < lost(32, weighed=False)


def test_what_is_refused() -> None:
    with pytest.raises(WeightError, match="sparse structure"):
        sparse_plus_low_rank(np.ones((3, 3)), 1, DENSE)
    with pytest.raises(WeightError, match="ranks from 1 to 3"):
        sparse_plus_low_rank(np.ones((3, 3)), 4, Scheme.parse("s50").structure)
