"""Sparse weights and int8 activations inside spmm.py: entries of several inputs, summed exactly in int32.

A 32-bit lane of the activation panel belongs to one token and holds several of its rounded inputs; an entry is such a *slot* of a
strip and S words of weights. Of every four consecutive inputs there are, by `form`,

* quads: one slot of four bytes, for products of bytes (vpmaddubsw, vpdpbusd, sdot). On x86 the inputs are unsigned, x + 128, and
  sums start from -128 times the sum of the row's weights (`origins`).
* pairs: two slots of two 16-bit numbers each, inputs (0, 1) and (2, 3), for vpmaddwd (x86).
* choices: six slots, all pairs of the four: what a row keeps of four inputs is one entry as long as it is at most two (2:4).

Where a row does not store all inputs of an entry the other weights are zeros. Rounding is sparsec/int8.py's.

Scales of groups of stored values: a run ends where a group ends, and joins float32 sums with its own S scales (`run_scales`,
`origins` by run). What a slot holds must then be of one group.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind, held, nearest
from sparsec.codegen.kernels.quantise import inverse_scale, largest_of_run
from sparsec.codegen.kernels.spmm_plan import TileKind
from sparsec.codegen.kernels.spmm_weights import Entries
from sparsec.codegen.kernels.spmm_words import SLOTS, Words
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.int8 import ACTIVATION_MAX
from sparsec.target import Target

Array = np.ndarray[Any, Any]


def describe(form: str, cols: int, *, groups: bool) -> dict[str, Any]:
    """`values` of the kernel's parameters."""
    return {"word": "whole", "form": form, "cols": cols, "bits": 0, "scales": "channel", "groups": groups}


def is_whole(p: Mapping[str, Any]) -> bool:
    """Whether parameters of values are of words of whole numbers."""
    return bool(p["word"] == "whole")


def has_origins(p: Mapping[str, Any], target: Target) -> bool:
    """Whether sums start from a number of their row."""
    return bool(p["form"] == "quads" and target.arch == "x86_64")


def arrays(made: Words, entries: Entries, strip: int, p: Mapping[str, Any], target: Target) -> list[tuple[str, Array]]:
    """Named arrays in the order of `arguments`."""
    strips, n = int(entries.bounds[-1]), len(made.scales)
    rows = np.zeros((strips * strip, made.words.shape[1]), np.int32)
    rows[:n] = made.words
    at = np.maximum(entries.strip_of, 0)[:, None] * strip + np.arange(strip)
    values = rows[at, np.maximum(entries.column_of, 0)[:, None]]

    def padded(array: Array) -> Array:
        return np.pad(array, (0, strips * strip - n))

    found = [("values", values.reshape(-1)), ("row_scales", padded(made.scales))]
    if p["groups"]:
        assert made.group_scales is not None
        scales = np.zeros((strips * strip, made.group_scales.shape[1]), np.float16)
        scales[:n] = made.group_scales
        lines = entries.runs[:, :1].astype(np.int64) * strip + np.arange(strip)
        found.append(("run_scales", scales[lines, entries.ranks[:, None]].reshape(-1)))
    if has_origins(p, target):
        totals = padded(made.sums)
        if p["groups"]:
            run_of = np.repeat(np.arange(len(entries.runs)), entries.runs[:, 1])
            totals = np.zeros((len(entries.runs), strip), np.int32)
            np.add.at(
                totals, run_of, np.ascontiguousarray(values).view(np.int8).reshape(-1, strip, 4).sum(2, dtype=np.int32)
            )
            totals = totals.reshape(-1)
        found.append(("origins", -dot.X_OFFSET * totals))
    return found


def arguments(p: Mapping[str, Any], strip: int, strips: int, target: Target) -> list[Arg]:
    """The kernel's pointer arguments for the values."""
    args = [Arg("values", "int32", FROM_DATA, "in"), Arg("row_scales", "float32", strips * strip, "in")]
    if p["groups"]:
        args.append(Arg("run_scales", "float16", FROM_DATA, "in"))
    if has_origins(p, target):
        args.append(Arg("origins", "int32", FROM_DATA if p["groups"] else strips * strip, "in"))
    return args


def work_arguments(pitch: int) -> list[Arg]:
    """Scratch: what the tokens of a tile are rounded with."""
    return [Arg("inverse", "float32", pitch, "work"), Arg("xscale", "float32", pitch, "work")]


class Rounding:
    """Writes the code that rounds tokens and multiplies words (`k`: KernelBuilder)."""

    def __init__(self, p: Mapping[str, Any], k: Any, pitch: int) -> None:
        self.p, self.v, self.k, self.T, self.lanes, self.pitch = p, p["values"], k, k.T, k.lanes, pitch
        self.dot = dot.ByteDot(k)
        self.slots = SLOTS[self.v["form"]]
        self.quads = self.v["form"] == "quads"
        self.origins = has_origins(self.v, k.target)
        self.groups = bool(self.v["groups"])
        self.sums = "float32" if self.groups else "int32"

    def scales(self, kind: TileKind, pixel: Any) -> None:
        """`inverse` and `xscale` of a tile's tokens; lanes behind the last token repeat it."""
        T, k, cols = self.T, self.k, self.v["cols"]
        last = kind.vectors * self.lanes - 1 if not kind.tail else (kind.vectors - 1) * self.lanes + kind.tail - 1
        with T.serial(0, kind.vectors * self.lanes) as token:
            start = bind(k, (pixel + T.min(token, T.int32(last))) * cols)
            largest = bind(k, largest_of_run(k, k.arg("x"), start, cols))
            k.store(k.arg("xscale"), token, largest * T.float32(1.0 / ACTIVATION_MAX))
            k.store(k.arg("inverse"), token, inverse_scale(k, largest))

    def four(self, floats: list[Any], token: Any, dest: Any) -> None:
        """Four inputs of a vector of tokens (from `token` of the tile on) to the slots at `dest` of the panel."""
        k, n, panel = self.k, self.lanes, self.k.arg("panel")
        inverse = bind(k, k.load(k.arg("inverse"), token, n))
        whole = []
        for value in floats:
            rounded = nearest(k, value * inverse, n)
            if self.quads:
                rounded = rounded + k.i32(dot.X_OFFSET, n) if self.origins else rounded & k.i32(255, n)
            whole.append(held(k, rounded, n, "int32"))
        bits = 8 if self.quads else 16
        for number, inputs in enumerate(self.slots):
            word = whole[inputs[0]] if self.quads else whole[inputs[0]] & k.i32((1 << bits) - 1, n)
            for place, i in enumerate(inputs[1:], 1):
                word = word | (whole[i] << k.i32(bits * place, n))
            k.store(panel, dest + number * self.pitch, word, n)

    def weights(self, word: Any) -> Any:
        """A word of weights in every lane."""
        k, n = self.k, self.lanes
        return held(k, k.splat(word, n), n, "int32")

    def inputs(self, at: Any) -> Any:
        """A vector of the panel."""
        return held(self.k, self.k.load(self.k.arg("panel"), at, self.lanes), self.lanes, "int32")

    def add(self, total: Any, x: Any, weights: Any) -> Any:
        """total + the products of a word of inputs and of weights, lane by lane."""
        T, n = self.T, self.lanes
        if self.quads:
            dtype = f"int8x{4 * n}"
            return self.dot.dot(total, T.reinterpret(dtype, weights), T.reinterpret(dtype, x), signed_weights=True)
        dtype = f"int16x{2 * n}"
        return total + self.dot.multiply_add(T.reinterpret(dtype, x), T.reinterpret(dtype, weights))
