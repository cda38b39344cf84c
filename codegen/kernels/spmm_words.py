"""Sparse weights as words of several whole numbers, for spmm_bytes.py, whose forms these are.

Scales of groups of stored values: where two groups meet among four inputs each has slots of its own, as far as the form has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np

from sparsec.codegen.isa import dot
from sparsec.codegen.kernels import spmm_weights
from sparsec.codegen.kernels.byte_weights import signed_table
from sparsec.codegen.kernels.spmm_weights import Entries
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import AffineValue, TableValue
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Inputs (of four) of each slot.
SLOTS: dict[str, tuple[tuple[int, ...], ...]] = {
    "quads": ((0, 1, 2, 3),),
    "pairs": ((0, 1), (2, 3)),
    "choices": ((0, 1), (2, 3), (0, 2), (0, 3), (1, 2), (1, 3)),
}
_NONE = 255
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
    quads = quads and _carried(weight, "quads") is not None
    if quads and (largest < 128 if target.vnni or target.arch != "x86_64" else largest <= _MOST_SIGNED):
        return "quads"
    form = "choices" if weight.scheme.block[1] == 1 else "pairs"
    return form if target.arch == "x86_64" and _carried(weight, form) is not None else ""


def words(weight: Unpacked, form: str) -> Words:
    """A weight in one of the forms; `choose_form` must allow it."""
    values, scales = numbers(weight)
    carried = _carried(weight, form)
    assert carried is not None
    n = len(values)
    fours = _fours(values)
    parts = []
    for number, inputs in enumerate(SLOTS[form]):
        bits = np.stack([carried[:, :, number] >> i & 1 for i in inputs], 2)
        parts.append(fours[:, :, list(inputs)] * bits)
    made = np.ascontiguousarray(np.stack(parts, 2).astype(np.int8 if form == "quads" else np.int16)).view(np.int32)
    total = values.astype(np.int64).sum(1).astype(np.int32)
    found = Words(form, carried.reshape(n, -1) > 0, made.reshape(n, -1), scales, total)
    if weight.scheme.scales.kind != "group":
        return found
    return replace(found, group=_group_of_slots(weight, carried, 1), group_scales=weight.scales)


def entries(weight: Unpacked, form: str, strip: int) -> tuple[int, int]:
    """How many entries a weight has, each of `strip` rows, and runs of entries of one group (0 where groups have no scales)."""
    carried = _carried(weight, form)
    assert carried is not None
    carried = carried[::strip]
    if weight.scheme.scales.kind != "group":
        return int(np.count_nonzero(carried)), 0
    groups = _group_of_slots(weight, carried, strip)
    held = carried.reshape(len(carried), -1) > 0
    strips, _ = np.nonzero(held)
    ends = np.diff(strips) | np.diff(groups[held])
    return len(strips), int(np.count_nonzero(ends)) + 1


def _fours(array: Array) -> Array:
    """[N, K] as [N, ceil(K / 4), 4], zeros behind the last."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % 4))).reshape(len(array), -1, 4)


def _group_of_stored(weight: Unpacked) -> Array:
    """int32 [N, K]: the group of scales of what is stored, 0 elsewhere."""
    (r, c), size = weight.scheme.block, weight.scheme.scales.group
    rank = np.repeat(np.cumsum(weight.block_mask, axis=1) - 1, r, 0)[: weight.rows]  # of a stored block in its strip
    places = np.arange(weight.cols)
    group = (rank[:, places // c] * c + places % c) // size
    return np.where(spmm_weights.element_mask(weight), group, 0).astype(np.int32)


def _group_of_slots(weight: Unpacked, carried: Array, strip: int) -> Array:
    """int32 [N / strip, slots]: the group of scales of what each slot carries, 0 of no entry."""
    groups = _fours(_group_of_stored(weight)[::strip])
    of_slot = [
        np.where(carried[:, :, [number]] >> np.arange(4) & 1, groups, 0).max(2) for number in range(carried.shape[2])
    ]
    return np.stack(of_slot, 2).reshape(len(groups), -1)


def _carried(weight: Unpacked, form: str) -> Array | None:
    """uint8 [N, fours, slots]: the inputs of four that a slot carries (bit i: input i; 0: no entry). None where two groups of
    scales meet among four inputs and no slots hold them apart."""
    kept = _fours(spmm_weights.element_mask(weight))
    stored = kept @ np.array([1, 2, 4, 8])
    second = np.zeros_like(stored)  # those of another group than the first
    if weight.scheme.scales.kind == "group":
        groups = _fours(_group_of_stored(weight))
        first = np.where(kept, groups, np.iinfo(np.int32).max).min(2, keepdims=True)
        if (kept & (groups > first + 1)).any():
            return None  # more than two: groups of less than four
        second = (kept & (groups > first)) @ np.array([1, 2, 4, 8])
    table = _cover(form)
    found = table[stored, second]
    return None if (found == _NONE).any() else found


@cache
def _cover(form: str) -> Array:
    """uint8 [stored, of the second group, slots]: which inputs each slot carries; _NONE where there are not slots enough."""
    table = np.zeros((16, 16, len(SLOTS[form])), np.uint8)
    for stored in range(16):
        for second in range(16):
            if second & ~stored:
                continue
            row = np.zeros(len(SLOTS[form]), np.uint8)
            fits = all(_place(part, form, row) for part in (stored & ~second, second))
            table[stored, second] = row if fits else _NONE
    return table


def _place(part: int, form: str, row: Array) -> bool:
    """Give the inputs `part` to free slots of `row`: one that holds all of them, else one for each half. False: none is left."""
    if part == 0:
        return True
    for number, inputs in enumerate(SLOTS[form]):
        if row[number] == 0 and not part & ~sum(1 << i for i in inputs):
            row[number] = part
            return True
    halves = (part & 3, part & 12) if part & 3 and part & 12 else (part & 5, part & 10)
    return all(halves) and all(_place(half, form, row) for half in halves)


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
