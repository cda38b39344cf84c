"""Upper or lower triangle of matrices, zero elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: rows of all matrices."""
    size = p["batch"] * p["rows"] * p["cols"]
    args = (Arg("src", p["dtype"], size, "in"), Arg("dst", p["dtype"], size, "out"))
    return Signature(args, units=p["batch"] * p["rows"], cost=2 * ITEMSIZE[p["dtype"]] * size)


def build(p: Mapping[str, Any], k: Any) -> None:
    """Row r keeps columns >= r + diagonal (upper) or <= r + diagonal (lower)."""
    T = k.T
    cols, upper = p["cols"], p["upper"]
    src, dst = k.arg("src"), k.arg("dst")
    zero = T.Cast(p["dtype"], T.int32(0))
    with T.serial(k.lo, k.hi) as unit:
        base = T.bind(unit * cols)
        cut = unit % p["rows"] + p["diagonal"] + (0 if upper else 1)
        cut = T.bind(T.max(T.min(cut, cols), 0))
        with T.serial(0, cut) as c:
            k.store(dst, base + c, zero if upper else k.load(src, base + c))
        with T.serial(cut, cols) as c:
            k.store(dst, base + c, k.load(src, base + c) if upper else zero)
