"""Least squares from moments, and the damping that unseen samples choose."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes.structure.fit import Sums, best_fit, fitted


def test_the_solution_is_least_squares() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, 9)) @ rng.standard_normal((9, 9))
    y = x @ rng.standard_normal((9, 4)) + rng.standard_normal((200, 4))
    start = rng.standard_normal((4, 9))
    free = fitted(start, x.T @ x / 200, y.T @ x / 200, 0.0)
    assert np.allclose(free, np.linalg.lstsq(x, y, rcond=None)[0].T, atol=1e-5)
    held = fitted(start, x.T @ x / 200, y.T @ x / 200, 1e9)
    assert np.allclose(held, start, atol=1e-6)


def test_dead_inputs_keep_their_weights() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((50, 5))
    x[:, 2] = 0
    start = rng.standard_normal((3, 5))
    made = fitted(start, x.T @ x, rng.standard_normal((3, 50)) @ x, 0.01)
    assert np.array_equal(made[:, 2], start[:, 2])


def test_sums_are_moments() -> None:
    rng = np.random.default_rng(2)
    x, y = rng.standard_normal((30, 4)) + 3, rng.standard_normal((30, 2)) - 1
    both = Sums.of(x[:11], y[:11]) + Sums.of(x[11:], y[11:])
    mean_x, mean_y, second, cross = both.centred()
    assert np.allclose(mean_x, x.mean(0))
    assert np.allclose(mean_y, y.mean(0))
    assert np.allclose(second, np.cov(x.T, bias=True))
    assert np.allclose(cross, (y - y.mean(0)).T @ (x - x.mean(0)) / 30)


@pytest.mark.parametrize("rows", [30, 60, 400])
def test_few_noisy_samples_are_not_fitted(rows: int) -> None:
    """20 rows a half for 40 inputs fit noise: unseen samples say so, and the weight is never made worse by much."""
    rng = np.random.default_rng(rows)
    truth = rng.standard_normal((3, 40))
    start = truth + 0.1 * rng.standard_normal((3, 40))

    def halves() -> tuple[Sums, Sums]:
        made = []
        for _ in range(2):
            x = rng.standard_normal((rows // 2, 40))
            made.append(Sums.of(x, x @ truth.T + 3 * rng.standard_normal((rows // 2, 3))))
        return made[0], made[1]

    given = halves()
    _, _, second, cross = (given[0] + given[1]).centred()
    chosen, careless = best_fit(start, given, 1e-3), fitted(start, second, cross, 1e-3)
    lost = [float(np.square(w - truth).sum()) for w in (start, chosen, careless)]
    assert lost[1] < 1.2 * lost[0]
    assert lost[1] <= lost[2]
    far = best_fit(np.zeros((3, 40)), given, 1e-3)
    assert np.square(far - truth).sum() < np.square(truth).sum()


def test_one_sample_is_fitted_as_asked() -> None:
    rng = np.random.default_rng(4)
    x, start = rng.standard_normal((9, 3)), rng.standard_normal((2, 3))
    one, none = Sums.of(x, x @ np.ones((3, 2))), Sums.of(np.zeros((0, 3)), np.zeros((0, 2)))
    assert np.allclose(best_fit(start, (one, none), 1e-9), 1, atol=1e-5)
