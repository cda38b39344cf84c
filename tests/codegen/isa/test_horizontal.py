"""Reductions of many vectors at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.isa.horizontal import reduce_each
from sparsec.target import NAMED, Target, host_target
from tests.codegen.isa.harness import Snippet, run

TARGETS = [host_target(), *([NAMED["x86-avx2"]] if host_target().arch == "x86_64" else [])]


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    n = target.lanes

    def rows(k: Any, buffer: Any) -> list[Any]:
        return [k.load(buffer, i * n, n) for i in range(n)]

    def largest(k: Any, lanes: int, x: Sequence[Any]) -> Any:
        return x[0] if lanes == 1 else reduce_each(k, rows(k, x[1]), k.T.max)

    def total(k: Any, lanes: int, x: Sequence[Any]) -> Any:
        return x[0] if lanes == 1 else reduce_each(k, rows(k, x[1]), lambda a, b: a + b)

    return {
        "largest": Snippet(("float32", "float32"), "float32", n, largest, whole=((1, n * n),)),
        "total": Snippet(("int32", "int32"), "int32", n, total, whole=((1, n * n),)),
    }


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_each_vector_has_its_lane(target: Target) -> None:
    n = target.lanes
    matrix = np.random.default_rng(8).permutation(n * n).reshape(n, n)
    floats, whole = matrix.astype(np.float32), matrix.astype(np.int32)
    found = run(__name__, "largest", np.zeros(n, np.float32), floats.reshape(-1), target=target)
    np.testing.assert_array_equal(found, floats.max(1))
    found = run(__name__, "total", np.zeros(n, np.int32), whole.reshape(-1), target=target)
    np.testing.assert_array_equal(found, whole.sum(1))
