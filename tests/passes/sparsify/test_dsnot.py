"""Grown and pruned masks lose no more than they did, at unchanged weights; that they stay legal: test_exchange.py."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes import hessian
from sparsec.passes.sparsify.dsnot import dsnot
from sparsec.passes.sparsify.magnitude import magnitude_masks
from sparsec.passes.sparsify.sparsegpt import sparsegpt
from sparsec.passes.sparsify.wanda import wanda
from tests.passes.sparsify.problems import layer, structure_of

SINGLE = ["s50", "s90", "s2:4", "s1:3", "sf75"]


@pytest.mark.parametrize("scheme", SINGLE)
@pytest.mark.parametrize("cycles", [1, 7, 50])
def test_no_row_exceeds_its_start(scheme: str, cycles: int) -> None:
    weight, second = layer(48, 60)
    structure = structure_of(scheme)
    (plain,) = magnitude_masks([weight], [structure])
    assert plain is not None
    for first in (plain, wanda(weight, second, structure), sparsegpt(weight, second, structure)[0]):
        mask = dsnot(weight, second, first, structure, cycles=cycles)
        for w, old, new in zip(weight[:, None], first[:, None], mask[:, None], strict=True):
            assert hessian.error(w, w * new, second) <= hessian.error(w, w * old, second)


@pytest.mark.parametrize(("scheme", "share"), [("s50", 0.7), ("s80", 0.8), ("s2:4", 0.8), ("sf75", 0.8)])
def test_improves_wanda(scheme: str, share: float) -> None:
    weight, second = layer(64, 96)
    structure = structure_of(scheme)
    first = wanda(weight, second, structure)
    mask = dsnot(weight, second, first, structure)
    assert hessian.error(weight, weight * mask, second) < share * hessian.error(weight, weight * first, second)


def test_one_exchange_is_the_best_of_all() -> None:
    weight, second = layer(20, 9)
    structure = structure_of("sf50")
    first = wanda(weight, second, structure)
    mask = dsnot(weight, second, first, structure, cycles=1)
    for w, old, new in zip(weight[:, None], first, mask, strict=True):
        errors = [hessian.error(w, w * old, second)]
        for i in np.flatnonzero(old):
            for j in np.flatnonzero(~old):
                other = old.copy()
                other[[i, j]] = False, True
                errors.append(hessian.error(w, w * other, second))
        assert hessian.error(w, w * new, second) == pytest.approx(min(errors), rel=1e-5)
