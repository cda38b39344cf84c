"""Transposition of blocks in registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.isa.transpose import transpose
from sparsec.target import NAMED, Target, host_target
from tests.codegen.isa.harness import Snippet, run

TARGETS = [host_target(), *([NAMED["x86-avx2"]] if host_target().arch == "x86_64" else [])]


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    n = target.lanes

    def block(k: Any, lanes: int, x: Sequence[Any]) -> Any:
        if lanes == 1:
            return x[0]
        columns = transpose(k, [k.load(x[1], i * n, n) for i in range(n)])
        total = x[0]
        for i, column in enumerate(columns):  # each column with a weight of its own
            total = total + column * k.f32(float(2**i), n)
        return total

    return {"block": Snippet(("float32", "float32"), "float32", n, block, whole=((1, n * n),))}


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_rows_become_columns(target: Target) -> None:
    n = target.lanes
    matrix = np.random.default_rng(4).integers(-8, 8, (n, n)).astype(np.float32)
    found = run(__name__, "block", np.zeros(n, np.float32), matrix.reshape(-1), target=target)
    # result[j] = sum over i of column i at j, which is matrix[j, i]
    np.testing.assert_array_equal(found, matrix @ 2.0 ** np.arange(n))
