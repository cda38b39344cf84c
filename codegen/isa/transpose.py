"""Transposition of square blocks held in vector registers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sparsec.codegen.isa.vecmath import bind


def transpose(k: Any, rows: Sequence[Any]) -> list[Any]:
    """Columns of a block given as its rows: n vectors of n lanes, n a power of two.

    log2(n) rounds swap the off-diagonal halves of ever smaller blocks (Eklundh 1972).
    """
    n, vectors = len(rows), list(rows)
    half = n // 2
    while half:
        low = [lane if not lane & half else n + (lane ^ half) for lane in range(n)]
        high = [lane | half if not lane & half else n + lane for lane in range(n)]
        for i in range(n):
            if not i & half:
                top, bottom = vectors[i], vectors[i + half]
                vectors[i] = bind(k, k.shuffle(top, bottom, low))
                vectors[i + half] = bind(k, k.shuffle(top, bottom, high))
        half //= 2
    return vectors
