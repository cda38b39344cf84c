"""Sparse weights times activations in 16-bit fixed point inside spmm.py (sparsec/fixed.py has the numbers and their error).

A 32-bit lane of the panel holds one input of two pixels: of vectors 2v and 2v + 1 of floats. So a vector of the panel is twice as
many pixels as one of float32, and an entry takes as many loads for twice as many products. Packing finds the steps of a chunk's
inputs, a pixel at a time, and rounds them. Sums of a run stay in 16 bits, where they cannot overflow, then join float32 sums.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil
from typing import Any

import numpy as np

from sparsec import fixed as numbers
from sparsec.codegen.isa import fixed
from sparsec.codegen.isa.vecmath import bind, held, nearest
from sparsec.codegen.kernels.spmm_plan import TileKind
from sparsec.codegen.kernels.spmm_weights import Entries, entry_values
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked

Array = np.ndarray[Any, Any]

# Vectors of floats whose largest inputs are found side by side, before they are rounded: what is read twice stays in level 1.
_TOGETHER = 4
_MAGNITUDE = 0x7FFFFFFF  # bits of a float but its sign
# A run of zeros has no step of its own; this keeps the division finite.
_TINY = 1e-30


def describe() -> dict[str, Any]:
    """`values` of the kernel's parameters."""
    return {"word": "fixed", "bits": 0, "scales": "channel"}


def is_fixed(p: Mapping[str, Any]) -> bool:
    """Whether parameters of values are of 16-bit numbers."""
    return bool(p["word"] == "fixed")


def arrays(weight: Unpacked, entries: Entries, strip: int, chunk: int) -> list[tuple[str, Array]]:
    """Named arrays in the order of `arguments`."""
    values = entry_values(weight, entries, strip)
    strips, chunks = int(entries.bounds[-1]), ceil(weight.cols / chunk)
    real = entries.strip_of >= 0
    place = np.maximum(entries.column_of, 0) // chunk * strips + np.maximum(entries.strip_of, 0)
    totals = np.zeros((chunks * strips, strip))
    np.add.at(totals, place[real], np.abs(values[real].astype(np.float64)))
    counts = np.bincount(place[real], minlength=chunks * strips).reshape(chunks, strips, 1)
    steps = numbers.weight_steps(totals.reshape(chunks, strips, strip), counts)
    rounded = np.rint(values / steps[np.maximum(entries.strip_of, 0)])
    return [("values", rounded.astype(np.int16).reshape(-1)), ("row_scales", steps.astype(np.float32).reshape(-1))]


def arguments(strip: int, strips: int) -> list[Arg]:
    """The kernel's pointer arguments for the values."""
    return [Arg("values", "int16", FROM_DATA, "in"), Arg("row_scales", "float32", strips * strip, "in")]


def work_arguments(p: Mapping[str, Any], pixels: int, slack: int) -> list[Arg]:
    """Scratch: steps of the tile's inputs by chunk (`pixels`: of the widest tile), and inputs before they are rounded."""
    steps = Arg("steps", "float32", (p["chunks"] if p["whole"] else 1) * pixels, "work")
    return [steps, Arg("floats", "float32", p["chunk"] * pixels + slack, "work")]


def in_floats(kind: TileKind, lanes: int) -> TileKind:
    """A tile in vectors of floats."""
    pixels = kind.vectors * 2 * lanes - (2 * lanes - kind.tail if kind.tail else 0)
    return replace(kind, vectors=ceil(pixels / lanes), tail=pixels % lanes)


class Fixed:
    """Writes the code that rounds inputs and multiplies words (`k`: KernelBuilder). pitch: words between two columns of the panel."""

    def __init__(self, p: Mapping[str, Any], k: Any, pitch: int) -> None:
        self.p, self.k, self.T, self.lanes, self.pitch = p, k, k.T, k.lanes, pitch

    def round(self, kind: TileKind, source: tuple[Any, Any, Any], columns: Any, dest: Any, steps: Any) -> None:
        """`columns` columns of a tile to panel[dest ...], what they were rounded with to steps[steps ...].

        source: (buffer, index, stride): the first column's first pixel, and floats between two columns."""
        T, k, n = self.T, self.k, self.lanes
        buffer, first, stride = source
        vectors = in_floats(kind, n).vectors
        for v0 in range(0, vectors, _TOGETHER):
            group = range(v0, min(v0 + _TOGETHER, vectors))
            # |x| compared as whole numbers, where NaN is above all: what is not finite stays so, by its step
            largest = {v: k.local(n, "int32") for v in group}
            for best in largest.values():
                k.store(best, 0, k.i32(0, n), n)
            with T.serial(0, columns) as c:
                at = bind(k, first + c * stride)
                for v, best in largest.items():
                    x = T.reinterpret(f"int32x{n}", k.load(buffer, at + v * n, n)) & k.i32(_MAGNITUDE, n)
                    k.store(best, 0, T.max(k.load(best, 0, n), x), n)
            inverse = {}
            for v, best in largest.items():
                most = bind(k, T.reinterpret(f"float32x{n}", k.load(best, 0, n)))
                k.store(k.arg("steps"), steps + v * n, most * k.f32(numbers.INPUT_STEP, n), n)
                inverse[v] = bind(k, k.f32(float(numbers.LARGEST), n) / T.max(most, k.f32(_TINY, n)))
            with T.serial(0, columns) as c:
                at, to = bind(k, first + c * stride), bind(k, dest + c * self.pitch)
                for v in range(v0, group.stop, 2):
                    low, high = (
                        nearest(k, k.load(buffer, at + u * n, n) * inverse[u], n) if u in group else k.i32(0, n)
                        for u in (v, v + 1)
                    )
                    k.store(k.arg("panel"), to + v // 2 * n, fixed.join(k, low, high), n)

    def steps(self, chunk: Any) -> Any:
        """Where the steps of a chunk's inputs are."""
        return bind(self.k, chunk * (2 * self.pitch)) if self.p["whole"] else self.T.int32(0)

    def weights(self, word: Any) -> Any:
        """A weight in every lane."""
        n = 2 * self.lanes
        return held(self.k, self.k.splat(word, n), n, "int16")

    def inputs(self, at: Any) -> Any:
        """A vector of the panel."""
        return held(self.k, self.k.load(self.k.arg("panel"), at, self.lanes), self.lanes, "int32")

    def add(self, total: Any, x: Any, weights: Any) -> Any:
        """total + the products of inputs and a weight, 16-bit numbers two by two."""
        T, dtype = self.T, f"int16x{2 * self.lanes}"
        product = fixed.multiply(self.k, T.reinterpret(dtype, x), weights)
        return self.plus(total, T.reinterpret(f"int32x{self.lanes}", product))

    def plus(self, a: Any, b: Any) -> Any:
        """Sums of 16-bit numbers."""
        T, dtype = self.T, f"int16x{2 * self.lanes}"
        return T.reinterpret(f"int32x{self.lanes}", T.reinterpret(dtype, a) + T.reinterpret(dtype, b))

    def sums(self, kind: TileKind, acc: Any, s: int, steps: Any) -> list[Any]:
        """Sums of row `s` of a strip in vectors of floats, but for the row's step."""
        T, k, n = self.T, self.k, self.lanes
        found: list[Any] = []
        for v in range(kind.vectors):
            words = bind(k, k.load(acc, (s * kind.vectors + v) * n, n))
            for half in fixed.halves(k, words):
                step = k.load(k.arg("steps"), steps + len(found) * n, n)
                found.append(T.Cast(f"float32x{n}", half) * step)
        return found[: in_floats(kind, n).vectors]
