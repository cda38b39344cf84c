"""Activations rounded many groups at once: whole vectors of groups and what is left of them, every instruction set."""

from __future__ import annotations

import pytest

from sparsec.target import NAMED, Target, host_target
from tests.kernels.test_gemv import check

TARGETS = [host_target(), NAMED["x86-avx2"], NAMED["arm"]]


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(
    ("m", "k", "group"),
    [
        (7, 192, 32),  # 42 groups: two or more vectors of them, and a rest
        (41, 64, 32),  # two blocks of rows, of different size
        (1, 1024, 32),  # all groups in one row
        (3, 96, 16),  # padded rows do not follow each other
        (9, 160, 20),  # groups that are no whole vectors
    ],
)
def test_groups(m: int, k: int, group: int, target: Target) -> None:
    check(f"int4-g{group}", m, 33, k, target, x_group=group)
