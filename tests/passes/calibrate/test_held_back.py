"""Damping that samples held back choose: against the error of real rounding on fresh inputs."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from sparsec.formats import Scheme, decode
from sparsec.passes.calibrate.few_samples import damped_for
from sparsec.passes.calibrate.held_back import raised
from sparsec.passes.quantise import compensate
from sparsec.passes.statistics import Fold, Moments, Statistics
from sparsec.recipe import Rule

Array = np.ndarray[Any, Any]
FOLDS = 4


def images(mixing: Array, count: int, pixels: int, alike: float, rng: np.random.Generator) -> list[Array]:
    """`count` times float32 [pixels, K] with the second moment `mixing`^T `mixing`; `alike`: what pixels of an image share."""
    common = np.sqrt(alike) * rng.standard_normal((count, 1, len(mixing)))
    own = np.sqrt(1 - alike) * rng.standard_normal((count, pixels, len(mixing)))
    return list(((common + own) @ mixing).astype(np.float32))


def gathered(samples: list[Array], folds: int = FOLDS) -> Statistics:
    moments = Moments(samples[0].shape[1], with_dense=False, folds=folds)
    for number, rows in enumerate(samples):
        moments.add(rows, fold=number % folds)
    return moments.statistics(centred=False)


def correlated(inputs: int, rng: np.random.Generator) -> Array:
    """A square root of a second moment whose eigenvalues fall quickly."""
    directions = np.linalg.qr(rng.standard_normal((inputs, inputs)))[0]
    return np.asarray((np.arange(1, inputs + 1) ** -0.7)[:, None] * directions)


@pytest.mark.parametrize("seed", range(3))
def test_rows_that_are_alike_are_believed_less_than_there_are_of_them(seed: int) -> None:
    """40 images of 100 pixels for 64 inputs: inputs over rows asks for next to no damping, fresh images for much."""
    rng = np.random.default_rng(seed)
    mixing, weight = correlated(64, rng), rng.standard_normal((48, 64)).astype(np.float32)
    truth, rule = mixing.T @ mixing, Rule(scheme="int4")
    errors = []
    for folds in (FOLDS, 1):
        statistics = gathered(images(mixing, 40, 100, 1.0, np.random.default_rng(seed)), folds)
        damping = damped_for(rule, [statistics]).quantize.damping
        rounded = decode(compensate(weight, statistics.second_moment, Scheme.parse("int4"), damping=damping))
        errors.append(float(np.vdot((rounded - weight) @ truth, rounded - weight)))
    assert errors[0] < 0.95 * errors[1]


@pytest.mark.parametrize("seed", range(3))
def test_many_independent_rows_are_believed(seed: int) -> None:
    rng = np.random.default_rng(seed)
    folds = gathered(images(correlated(24, rng), 40, 500, 0.0, rng)).folds
    assert raised(0.01, folds) == 0.01
    rule = Rule(scheme="s50-int4")
    damped = damped_for(rule, [gathered(images(correlated(24, rng), 40, 500, 0.0, rng))])
    more = 24 / (40 * 500)
    assert damped.quantize.damping == pytest.approx(rule.quantize.damping + more)
    assert damped.sparsify.damping == pytest.approx(rule.sparsify.damping + more)


def test_damping_is_raised_while_errors_fall() -> None:
    """By a percent a step, with errors in float64 by another way; an input is dead."""
    rng = np.random.default_rng(5)
    samples = images(correlated(40, rng), 16, 30, 0.9, rng)
    for rows in samples:
        rows[:, 7] = 0
    folds = gathered(samples).folds

    def error(level: float) -> float:
        total = 0.0
        for held in folds:
            rest = [fold for fold in folds if fold is not held]
            h = sum(f.samples * f.second_moment.astype(np.float64) for f in rest) / sum(f.samples for f in rest)
            order = np.argsort(-h.diagonal(), kind="stable")
            h = h[np.ix_(order, order)]
            h += level * h.diagonal()[h.diagonal() > 0].mean() * np.eye(len(h))
            upper = np.linalg.cholesky(np.linalg.inv(h)).T  # H^-1 = U^T U
            rows = upper / upper.diagonal()[:, None]
            total += held.samples * float(np.trace(rows @ held.second_moment[np.ix_(order, order)] @ rows.T))
        return total

    for start in (0.01, 0.02, 0.4, 2.0):
        levels = [start * 10 ** (i / 2) for i in range(6)]
        wanted = start
        for before, after in pairwise(levels):
            if after > 3 or error(after) >= 0.99 * error(before):
                break
            wanted = after
        assert raised(start, folds) == pytest.approx(wanted)
    assert 0.01 < raised(0.01, folds) < 3
    assert raised(2.0, folds) == 2.0


@pytest.mark.parametrize("centred", [True, False])
def test_folds_make_up_the_whole(centred: bool) -> None:
    rng = np.random.default_rng()
    moments = Moments(7, with_dense=False, folds=FOLDS)
    parts = [(3 + rng.standard_normal((rows, 7))).astype(np.float32) for rows in (5, 0, 13, 1, 8, 0)]
    for number, rows in enumerate(parts):
        moments.add(rows, fold=number % FOLDS)
    found, every = moments.statistics(centred=centred), np.concatenate(parts).astype(np.float64)
    assert [fold.samples for fold in found.folds] == [13, 13, 1]  # the second has none
    whole = sum(fold.samples * fold.second_moment for fold in found.folds) / found.samples
    np.testing.assert_allclose(whole, found.second_moment, rtol=1e-4, atol=1e-5)
    about = every.mean(0) if centred else 0
    np.testing.assert_allclose(
        found.folds[1].second_moment, (parts[2] - about).T @ (parts[2] - about) / 13, rtol=1e-4, atol=1e-5
    )


def test_what_tells_nothing() -> None:
    one = Fold(3, np.eye(4, dtype=np.float32))
    constant = Fold(3, np.zeros((4, 4), np.float32))
    assert raised(0.5, []) == 0.5
    assert raised(0.5, [one]) == 0.5
    assert raised(0.5, [constant, constant]) == 0.5
    assert gathered([np.ones((3, 4), np.float32)]).folds == ()
