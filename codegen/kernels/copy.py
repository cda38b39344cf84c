"""Strided copy: out[dst_offset + i.dst_strides] = in[src_offset + i.src_strides] over an index space.

Transpose, Slice, Expand, Concat, Pad and layout changes are all this one loop nest.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.program import Arg, Signature

from sparsec.target import Target


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: the outermost dimension after merging."""
    shape, _, _ = _merge(p)
    count = 1
    for dim in shape:
        count *= dim
    args = (Arg("src", p["dtype"], p["src_size"], "in"), Arg("dst", p["dtype"], p["dst_size"], "out"))
    return Signature(args, units=shape[0], cost=8 * count)


def _merge(p: Mapping[str, Any]) -> tuple[list[int], list[int], list[int]]:
    """Drop dimensions of one element and join neighbours that are contiguous in both source and destination."""
    dims = [(n, s, d) for n, s, d in zip(p["shape"], p["src_strides"], p["dst_strides"], strict=True) if n != 1] or [
        (1, 1, 1)
    ]
    merged = [dims[0]]
    for n, s, d in dims[1:]:
        m, ms, md = merged[-1]
        if ms == s * n and md == d * n:
            merged[-1] = (m * n, s, d)
        else:
            merged.append((n, s, d))
    return [m[0] for m in merged], [m[1] for m in merged], [m[2] for m in merged]


def build(p: Mapping[str, Any], k: Any) -> None:
    """A loop a dimension; the innermost is vectorised when the destination is contiguous in it."""
    T = k.T
    shape, src_strides, dst_strides = _merge(p)
    src, dst = k.arg("src"), k.arg("dst")

    def nest(dim: int, s: Any, d: Any) -> None:
        if dim == len(shape):
            k.store(dst, d, k.load(src, s))
            return
        last = dim == len(shape) - 1
        start, stop = (k.lo, k.hi) if dim == 0 else (0, shape[dim])
        if last and dim > 0 and src_strides[dim] == 1 and dst_strides[dim] == 1 and shape[dim] >= 4:
            lanes = min(k.lanes, 1 << (shape[dim].bit_length() - 1))
            whole = shape[dim] // lanes
            with T.serial(0, whole) as v:
                k.store(dst, d + v * lanes, k.load(src, s + v * lanes, lanes), lanes)
            with T.serial(whole * lanes, shape[dim]) as i:
                k.store(dst, d + i, k.load(src, s + i))
            return
        with T.serial(start, stop) as i:
            nest(dim + 1, s + i * src_strides[dim], d + i * dst_strides[dim])

    nest(0, T.int32(p["src_offset"]), T.int32(p["dst_offset"]))
