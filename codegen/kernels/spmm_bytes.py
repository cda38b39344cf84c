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
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels import spmm_weights
from sparsec.codegen.kernels.byte_weights import signed_table
from sparsec.codegen.kernels.quantise import inverse_scale, largest_of_run
from sparsec.codegen.kernels.spmm_plan import TileKind
from sparsec.codegen.kernels.spmm_weights import Entries
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import AffineValue, TableValue
from sparsec.int8 import ACTIVATION_MAX
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Inputs (of four) of each slot.
SLOTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "quads": ((0, 1, 2, 3),),
    "pairs": ((0, 1), (2, 3)),
    "choices": ((0, 1), (2, 3), (0, 2), (0, 3), (1, 2), (1, 3)),
}
# Largest weight that x86 without VNNI multiplies in bytes: 2 * 255 * 64 fits 16 bits.
_MOST_SIGNED = 64


@dataclass(frozen=True)
class Words:
    """A weight as entries: `mask` bool and `words` int32 [N, slots], `scales` float32 [N] and `sums` of the numbers, int32 [N];
    where groups have scales those, float32 [N, groups], and the `group` of every slot of every row, int32 [N, slots]."""

    form: str
    mask: Array
    words: Array
    scales: Array
    sums: Array
    group: Array | None = None
    group_scales: Array | None = None


def refusal(weight: Unpacked, target: Target, x_group: int) -> str:
    """Why a weight cannot be laid out in words ("" if it can)."""
    scheme = weight.scheme
    meaning = scheme.codec.meaning
    if not dot.supported(target):
        return f"target '{target.name}' has no products of bytes"
    if x_group:
        return f"groups of {x_group} inputs have scales of their own"
    if not isinstance(meaning, AffineValue | TableValue):
        return f"codec {scheme.codec} is not stored in bytes"
    if isinstance(meaning, TableValue) and meaning.scope.kind == "inputs":
        return "codebooks of input groups have scales of their own"
    if weight.cols > 60_000:
        return "sums of this many products overflow 32 bits"
    return ""


def numbers(weight: Unpacked) -> tuple[Array, Array]:
    """(int16 [N, K] whole numbers, 0 where nothing is stored; float32 [N] scales): W is their product. `refusal` must be empty."""
    meaning, (n, k) = weight.scheme.codec.meaning, (weight.rows, weight.cols)
    (r, c), grid = weight.scheme.block, weight.block_mask.shape
    codes = np.zeros((*grid, r, c), np.int16)
    codes[weight.block_mask] = weight.codes
    codes = codes.transpose(0, 2, 1, 3).reshape(grid[0] * r, grid[1] * c)[:n, :k]
    scales = np.ones(n, np.float32)
    if weight.scales is not None and weight.scheme.scales.kind != "group":
        scales = np.broadcast_to(weight.scales, (n, 1))[:, 0].astype(np.float32)
    if isinstance(meaning, TableValue):
        table, steps = signed_table(weight)
        books = np.zeros(n, np.int64)
        if len(table) > 1:
            books = np.arange(n) // meaning.scope.span
        scales = scales * steps[books]
        values = table[books[:, None], codes].astype(np.int16)
    elif weight.zero_points is not None:
        assert weight.scheme.scales.kind != "group", "zero points of groups"
        values = codes - np.broadcast_to(weight.zero_points, (n, 1)).astype(np.int16)
    else:
        assert isinstance(meaning, AffineValue)
        values = codes - np.int16(meaning.offset or 0)
    return np.where(spmm_weights.element_mask(weight), values, np.int16(0)), scales


def choose_form(weight: Unpacked, target: Target) -> str:
    """The form that has least to multiply; "" where none can hold the weight."""
    if weight.zero_points is not None and weight.scheme.scales.kind == "group":
        return ""
    values, _ = numbers(weight)
    largest = int(np.abs(values.astype(np.int32)).max(initial=0))
    quads = weight.scheme.block[1] % 4 == 0 or target.arch != "x86_64"
    if quads and weight.scheme.scales.kind == "group" and _groups(weight, "quads") is None:
        quads = False
    if quads and (largest < 128 if target.vnni or target.arch != "x86_64" else largest <= _MOST_SIGNED):
        return "quads"
    form = "choices" if weight.scheme.block[1] == 1 else "pairs"
    if target.arch != "x86_64" or (weight.scheme.scales.kind == "group" and _groups(weight, form) is None):
        return ""
    return form


def words(weight: Unpacked, form: str) -> Words:
    """A weight in one of the forms."""
    values, scales = numbers(weight)
    n, fours = len(values), -(-weight.cols // 4)
    spare = fours * 4 - weight.cols
    kept = np.pad(spmm_weights.element_mask(weight), ((0, 0), (0, spare))).reshape(n, fours, 4)
    padded = np.pad(values, ((0, 0), (0, spare))).reshape(n, fours, 4)
    slots = SLOTS[form]
    mask = _cover(form)[kept @ np.array([1, 2, 4, 8])]
    parts = np.stack([padded[:, :, list(inputs)] for inputs in slots], 2)
    if form == "quads":
        made = np.ascontiguousarray(parts.astype(np.int8)).view(np.int32)
    else:
        made = np.ascontiguousarray(parts.astype(np.int16)).view(np.int32)
    total = values.astype(np.int64).sum(1).astype(np.int32)
    found = Words(form, mask.reshape(n, -1), made.reshape(n, -1), scales, total)
    if weight.scheme.scales.kind != "group":
        return found
    return replace(found, group=_groups(weight, form), group_scales=weight.scales)


def _groups(weight: Unpacked, form: str) -> Array | None:
    """int32 [N, slots]: the group of what a slot holds of a row (0 where it is no entry); None where some hold two groups."""
    c, size = weight.scheme.block[1], weight.scheme.scales.group
    kept = spmm_weights.element_mask(weight)
    blocks = np.cumsum(weight.block_mask, axis=1) - 1  # rank of a stored block in its strip
    rank = np.repeat(np.repeat(blocks, weight.scheme.block[0], 0)[: weight.rows], c, 1)[:, : weight.cols] * c
    group = np.where(kept, (rank + np.arange(weight.cols) % c) // size, 0).astype(np.int32)
    spare = -weight.cols % 4
    fours = np.pad(group, ((0, 0), (0, spare))).reshape(len(group), -1, 4)
    stored = np.pad(kept, ((0, 0), (0, spare))).reshape(fours.shape)
    mask = _cover(form)[stored @ np.array([1, 2, 4, 8])]
    found = np.zeros(mask.shape, np.int32)
    for number, inputs in enumerate(SLOTS[form]):
        part, inside = fours[:, :, list(inputs)], stored[:, :, list(inputs)]
        found[:, :, number] = part.max(2)
        least = np.where(inside, part, np.iinfo(np.int32).max).min(2)
        if (mask[:, :, number] & (least < part.max(2))).any():
            return None
    return found.reshape(len(group), -1)


def split_runs(made: Words, found: Entries, strip: int) -> Entries:
    """Entries (not padded) whose runs end where groups do, without empty runs; `ranks` are the groups of the runs."""
    assert made.group is not None
    counts = found.runs[:, 1].astype(np.int64)
    run_of = np.repeat(np.arange(len(counts)), counts)
    group_of = made.group[found.strip_of * strip, found.column_of]
    begins = np.flatnonzero(np.diff(run_of, prepend=-1) | np.diff(group_of, prepend=-1))
    lengths = np.diff(np.append(begins, len(run_of)))
    starts = found.starts.copy()
    starts[:, 0] = np.searchsorted(run_of[begins], found.starts[:, 0])
    runs = np.stack([found.runs[run_of[begins], 0], lengths.astype(np.uint16)], 1)
    return replace(found, runs=runs, starts=starts, ranks=group_of[begins])


def entries(weight: Unpacked, form: str, strip: int) -> int:
    """How many entries a weight has, each of `strip` rows."""
    kept = spmm_weights.element_mask(weight)[::strip]
    kept = np.pad(kept, ((0, 0), (0, -kept.shape[1] % 4))).reshape(len(kept), -1, 4)
    return int(_cover(form).sum(1)[kept @ np.array([1, 2, 4, 8])].sum())


def _cover(form: str) -> Array:
    """bool [16, slots]: which slots hold the inputs that are kept of four (bit i: input i)."""
    slots = SLOTS[form]
    table = np.zeros((16, len(slots)), bool)
    for kept in range(16):
        inside = {i for i in range(4) if kept >> i & 1}
        whole = [number for number, inputs in enumerate(slots) if inside and inside <= set(inputs)]
        if whole:
            table[kept, whole[0]] = True
        else:  # the slots before the choices hold every input once
            table[kept, :2] = [bool(inside & set(inputs)) for inputs in slots[:2]] if inside else False
    return table


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
            np.add.at(totals, run_of, np.ascontiguousarray(values).view(np.int8).reshape(-1, strip, 4).sum(2, dtype=np.int32))
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
        T, k, n, panel = self.T, self.k, self.lanes, self.k.arg("panel")
        inverse = bind(k, k.load(k.arg("inverse"), token, n))
        whole = []
        for value in floats:
            held = k.local(n, "int32")
            rounded = T.Cast(f"int32x{n}", T.nearbyint(value * inverse))
            if self.quads:
                rounded = rounded + k.i32(dot.X_OFFSET, n) if self.origins else rounded & k.i32(255, n)
            k.store(held, 0, rounded, n)
            whole.append(k.load(held, 0, n))
        bits = 8 if self.quads else 16
        for number, inputs in enumerate(self.slots):
            word = whole[inputs[0]] if self.quads else whole[inputs[0]] & k.i32((1 << bits) - 1, n)
            for place, i in enumerate(inputs[1:], 1):
                word = word | (whole[i] << k.i32(bits * place, n))
            k.store(panel, dest + number * self.pitch, word, n)

    def weights(self, word: Any) -> Any:
        """A word of weights in every lane."""
        k, n = self.k, self.lanes
        return self._kept(k.splat(word, n), "int32", n)

    def inputs(self, at: Any) -> Any:
        """A vector of the panel."""
        return self._kept(self.k.load(self.k.arg("panel"), at, self.lanes), "int32", self.lanes)

    def _kept(self, value: Any, dtype: str, lanes: int) -> Any:
        held = self.k.local(lanes, dtype)
        self.k.store(held, 0, value, lanes)
        return self.k.load(held, 0, lanes)

    def add(self, total: Any, x: Any, weights: Any) -> Any:
        """total + the products of a word of inputs and of weights, lane by lane."""
        T, n = self.T, self.lanes
        if self.quads:
            dtype = f"int8x{4 * n}"
            return self.dot.dot(total, T.reinterpret(dtype, weights), T.reinterpret(dtype, x), signed_weights=True)
        dtype = f"int16x{2 * n}"
        return total + self.dot.multiply_add(T.reinterpret(dtype, x), T.reinterpret(dtype, weights))
