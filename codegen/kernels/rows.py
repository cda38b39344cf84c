"""Helpers of kernels that work along rows: horizontal reductions and loops over a contiguous run."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Combine = Callable[[Any, Any, int], Any]


def horizontal(k: Any, accumulator: Any, lanes: int, combine: Combine, dtype: str = "float32") -> Any:
    """Reduce a local buffer of `lanes` elements to a scalar expression, halving it log2(lanes) times."""
    width = lanes
    while width > 1:
        width //= 2
        k.store(accumulator, 0, combine(k.load(accumulator, 0, width), k.load(accumulator, width, width), width), width)
    return k.load(accumulator, 0)


def reduce_run(
    k: Any,
    count: int,
    start: Any,
    load: Callable[[Any, int], Any],
    combine: Combine,
    dtype: str = "float32",
) -> Any:
    """Local scalar (a buffer of one element) = start combined with load(i, lanes) for 0 <= i < count.

    `start` makes the neutral element for a number of lanes: start(lanes) -> expression.
    """
    T = k.T
    total = k.local(1, dtype)
    lanes = k.lanes
    whole = count // lanes
    if whole:
        # two accumulators hide the latency of the combining instruction
        ways = 2 if whole >= 4 else 1
        acc = k.local(lanes * ways, dtype)
        for w in range(ways):
            k.store(acc, w * lanes, start(lanes), lanes)
        with T.serial(0, whole // ways) as v:
            for w in range(ways):
                value = load(v * (lanes * ways) + w * lanes, lanes)
                k.store(acc, w * lanes, combine(k.load(acc, w * lanes, lanes), value, lanes), lanes)
        if whole % ways:
            value = load(T.int32((whole - 1) * lanes), lanes)
            k.store(acc, 0, combine(k.load(acc, 0, lanes), value, lanes), lanes)
        if ways == 2:
            k.store(acc, 0, combine(k.load(acc, 0, lanes), k.load(acc, lanes, lanes), lanes), lanes)
        k.store(total, 0, horizontal(k, acc, lanes, combine, dtype))
    else:
        k.store(total, 0, start(1))
    if count % lanes:
        with T.serial(whole * lanes, count) as i:
            k.store(total, 0, combine(k.load(total, 0), load(i, 1), 1))
    return total


def for_run(k: Any, count: int, body: Callable[[Any, int], None]) -> None:
    """body(i, lanes) over a contiguous run: whole vectors, then single elements."""
    whole = count // k.lanes
    if whole:
        with k.T.serial(0, whole) as v:
            body(v * k.lanes, k.lanes)
    if count % k.lanes:
        with k.T.serial(whole * k.lanes, count) as i:
            body(i, 1)
