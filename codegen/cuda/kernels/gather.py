"""Gather and GatherND, the parameters of kernels/gather.py: a thread for each run of 8 elements of a slice, or for each element."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda import vectors
from sparsec.codegen.cuda.indices import checked_indices
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.kernels.gather import signature as signature
from sparsec.target import Target

_BLOCK = 128


def _width(p: Mapping[str, Any]) -> int:
    return vectors.WIDTH if p["inner"] % vectors.WIDTH == 0 else 1


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """Threads for all slices; of an empty slice one checks its index."""
    runs = max(1, p["inner"] // _width(p))
    return lines(-(-p["outer"] * p["count"] * runs // _BLOCK), _BLOCK)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One run of one slice."""
    T, count, inner, dims, width = k.T, p["count"], p["inner"], p["dims"], _width(p)
    runs = max(1, inner // width)
    src, dst = k.arg("src"), k.arg("dst")
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < p["outer"] * count * runs), T.Then():
        unit, at = k.let(T.truncdiv(index, runs)), k.let(T.truncmod(index, runs) * width)
        entry = k.let((unit if p["batched"] else T.truncmod(unit, count)) * len(dims))
        given = [(k.load(k.arg("indices"), entry + axis), n) for axis, n in enumerate(dims)]

        def copy(found: list[Any]) -> None:
            slot: Any = T.truncdiv(unit, count)
            for value, n in zip(found, dims, strict=True):
                slot = slot * n + value
            if not inner:
                return
            source, to = k.let(slot * inner + at), k.let(unit * inner + at)
            if width == 1:
                k.store(dst, to, k.load(src, source))
                return
            with T.If(vectors.aligned(k, [(src, source), (dst, to)])):
                with T.Then():
                    if src.dtype == dst.dtype:
                        vectors.move(k, dst, to, src, source)
                    else:  # rounded on the way
                        before, after = vectors.run(k, src.dtype), vectors.run(k, dst.dtype)
                        vectors.move(k, before, 0, src, source)
                        with T.serial(0, width) as lane:
                            k.store(after, lane, k.load(before, lane))
                        vectors.move(k, dst, to, after, 0)
                with T.Else(), T.serial(0, width) as lane:
                    k.store(dst, to + lane, k.load(src, source + lane))

        checked_indices(k, given, p["index_dtype"], copy)
