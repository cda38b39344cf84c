"""Pad a tensor by index arithmetic: constant, reflect, edge, wrap; negative pads crop."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target


def _merge(p: Mapping[str, Any]) -> list[tuple[int, int, int]]:
    """(size, before, after) a dimension.

    An unpadded dimension joins the one outside it when that is unpadded too, or when the mode is constant: then whole rows
    are filled with one value.
    """
    merged: list[tuple[int, int, int]] = []
    for n, b, a in zip(p["shape"], p["before"], p["after"], strict=True):
        if merged and b == a == 0:
            m, mb, ma = merged[-1]
            if mb == ma == 0 or p["mode"] == "constant":
                merged[-1] = (m * n, mb * n, ma * n)
                continue
        merged.append((n, b, a))
    return merged


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: rows of the result (all dimensions but the last after merging)."""
    dims = _merge(p)
    out = prod(n + b + a for n, b, a in dims)
    last = sum(dims[-1])
    args = (
        Arg("src", p["dtype"], prod(p["shape"]), "in"),
        Arg("fill", p["dtype"], 1, "in"),
        Arg("dst", p["dtype"], out, "out"),
    )
    return Signature(args, units=out // last, cost=2 * ITEMSIZE[p["dtype"]] * out)


def _source_index(T: Any, mode: str, i: Any, n: int) -> Any:
    """Index in [0, n) that result index `i` (counted from the source's first element) reads."""
    if mode == "edge":
        return T.max(T.min(i, n - 1), 0)
    if mode == "wrap":
        return T.floormod(i, n)
    if n == 1:
        return i * 0
    j = T.Select(i < 0, -i, i)
    return T.Select(j >= n, 2 * (n - 1) - j, j)


def build(p: Mapping[str, Any], k: Any) -> None:
    """A loop over rows; inside, the part before, the part taken from the source (vectors) and the part after."""
    T = k.T
    mode, dims = p["mode"], _merge(p)
    src, fill, dst = k.arg("src"), k.arg("fill"), k.arg("dst")
    *outer, (n, before, after) = dims
    width = n + before + after
    lanes = k.lanes

    def run(first: Any, last: Any, value: Any, vector: bool) -> None:
        """dst[base + i] for i in [first, last), constants; value(i, lanes)."""
        count = max(0, last - first)
        whole = count // lanes if vector else 0
        if whole:
            with T.serial(0, whole) as v:
                k.store(dst, base + first + v * lanes, value(first + v * lanes, lanes), lanes)
        if count > whole * lanes:
            with T.serial(first + whole * lanes, last) as i:
                k.store(dst, base + i, value(i, 1))

    left = max(0, before)
    right = min(width, before + n)
    with T.serial(k.lo, k.hi) as row:
        base = T.bind(row * width)
        rest, source = row, T.int32(0)
        inside: Any = None
        stride = n
        for m, b, a in reversed(outer):
            i = T.bind(rest % (m + b + a) - b)
            rest = rest // (m + b + a)
            if mode == "constant":
                if b > 0 or a > 0:
                    ok = T.And(i >= 0, i < m)
                    inside = ok if inside is None else T.And(inside, ok)
                source = source + i * stride
            else:
                source = source + (_source_index(T, mode, i, m) if b or a else i) * stride
            stride *= m
        source = T.bind(source)

        def copied(i: Any, w: int) -> Any:
            return k.load(src, source + i - before, w)

        def edge(i: Any, w: int) -> Any:
            if mode == "constant":
                return k.splat(k.load(fill, 0), w)
            return k.load(src, source + _source_index(T, mode, i - before, n))

        def body() -> None:
            run(0, left, edge, mode == "constant")
            run(left, right, copied, True)
            run(max(left, right), width, edge, mode == "constant")

        if inside is None:
            body()
        else:
            with T.If(inside):
                with T.Then():
                    body()
                with T.Else():
                    run(0, width, edge, True)
