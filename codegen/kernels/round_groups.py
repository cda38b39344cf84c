"""Rounding of activations to int8 with a scale for every group of neighbours, as many groups at once as a vector has lanes.

One by one, the largest value of a group, the division and the sum of its bytes are chains of dependent instructions, which take
five times as long as the conversion itself.
"""

from __future__ import annotations

from functools import reduce
from operator import add
from typing import Any

from sparsec.codegen.isa.horizontal import reduce_each
from sparsec.codegen.isa.memory import prefetch_vector
from sparsec.codegen.isa.narrow import store_bytes
from sparsec.codegen.isa.vecmath import bind, nearest
from sparsec.int8 import ACTIVATION_MAX


def several(k: Any, size: int) -> bool:
    """Whether groups of `size` are whole vectors."""
    return bool(size % k.lanes == 0)


def round_groups(k: Any, x: Any, start: Any, size: int, dest: Any, at: Any, times: int = 1) -> None:
    """Round `k.lanes` groups of `size` floats from x[start] on: bytes to xq[dest:], one scale and `times` the sum of each to
    xscale[at:] and xsum[at:]."""
    T, n = k.T, k.lanes
    vectors = range(0, size, n)
    peaks = []
    for group in range(n):
        best = None
        for i in vectors:
            value = T.fabs(k.load(x, start + (group * size + i), n))
            best = value if best is None else T.max(best, value)
        peaks.append(bind(k, best))
    largest = bind(k, reduce_each(k, peaks, T.max))
    k.store(k.arg("xscale"), at, largest * k.f32(1.0 / ACTIVATION_MAX, n), n)
    inverse = k.local(n)
    k.store(inverse, 0, k.f32(float(ACTIVATION_MAX), n) / T.max(largest, k.f32(1e-30, n)), n)
    sums = []
    for group in range(n):
        factor = bind(k, k.splat(k.load(inverse, group), n))
        rounded = []
        for i in vectors:
            prefetch_vector(k, x, start + ((n + group) * size + i))  # the next groups
            value = k.load(x, start + (group * size + i), n) * factor
            rounded.append(bind(k, nearest(k, value, n)))
        store_bytes(k, k.arg("xq"), dest + group * size, rounded)
        total = reduce(add, rounded)
        held = k.local(n, "int32")
        k.store(held, 0, total, n)
        sums.append(k.load(held, 0, n))
    total = reduce_each(k, sums, lambda a, b: a + b)
    k.store(k.arg("xsum"), at, total if times == 1 else total * k.i32(times, n), n)
