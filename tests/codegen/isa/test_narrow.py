"""Vectors of whole numbers as bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.isa.narrow import store_bytes
from sparsec.target import NAMED, Target, host_target
from tests.codegen.isa.harness import Snippet, run

TARGETS = [host_target(), *([NAMED["x86-avx2"]] if host_target().arch == "x86_64" else [])]
VECTORS = 5  # four and one


def SNIPPETS(target: Target) -> dict[str, Snippet]:
    n = target.lanes

    def bytes_of(vector: int, plus: int) -> Any:
        def emit(k: Any, lanes: int, x: Sequence[Any]) -> Any:
            if lanes == 1:
                return x[0]
            held = k.local(VECTORS * n, "int8")
            store_bytes(k, held, 0, [k.load(x[1], i * n, n) for i in range(VECTORS)], plus=plus)
            return k.T.Cast(f"int32x{n}", k.load(held, vector * n, n))

        return emit

    return {
        f"{vector}+{plus}": Snippet(("int32", "int32"), "int32", n, bytes_of(vector, plus), whole=((1, VECTORS * n),))
        for vector in range(VECTORS)
        for plus in (0, 128)
    }


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("plus", [0, 128])
def test_numbers_lie_side_by_side(target: Target, plus: int) -> None:
    n = target.lanes
    numbers = np.random.default_rng().integers(-128, 128, VECTORS * n, dtype=np.int32)
    numbers[:2] = -128, 127
    found = [run(__name__, f"{v}+{plus}", np.zeros(n, np.int32), numbers, target=target) for v in range(VECTORS)]
    np.testing.assert_array_equal(np.concatenate(found), (numbers + plus).astype(np.int8))
