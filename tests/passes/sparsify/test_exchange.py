"""What `swap` and `dsnot` make of a mask is as legal as it was, with as many weights in every row, the same every time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.errors import SchemeError
from sparsec.passes.sparsify.dsnot import dsnot
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.passes.sparsify.swap import swap
from tests.passes.sparsify.problems import SIZES, check, layer, structure_of


def grown(*args: Any) -> tuple[np.ndarray, np.ndarray]:
    mask = dsnot(*args)
    return mask, args[0] * mask


METHODS = pytest.mark.parametrize("method", [swap, grown], ids=["swap", "dsnot"])


@METHODS
@pytest.mark.parametrize("scheme", ["s50", "s90", "s2:4", "s1:3", "s3:7", "sf75"])
@pytest.mark.parametrize("size", SIZES)
def test_legal_and_exact(size: tuple[int, int], scheme: str, method: Any) -> None:
    weight, second = layer(*size, samples=20)
    structure = structure_of(scheme)
    first = mask_of_scores(np.random.default_rng(0).random(size), structure)
    for w, h in [(weight, second), (np.zeros_like(weight), second), (weight, np.zeros_like(second))]:
        mask, pruned = method(w, h, first, structure)
        check(mask, structure, size)
        assert np.array_equal(mask.sum(1), first.sum(1))
        assert np.isfinite(pruned).all()
        assert not pruned[~mask].any()
        again = method(w, h, first, structure)
        assert np.array_equal(mask, again[0])
        assert np.array_equal(pruned, again[1])


@METHODS
def test_blocks_are_refused(method: Any) -> None:
    with pytest.raises(SchemeError, match="s4x1@50"):
        method(np.zeros((4, 4)), np.eye(4), np.ones((4, 4), bool), structure_of("s4x1@50"))
