"""Sparse weights as words of several whole numbers, for spmm_bytes.py, whose forms these are.

Scales of groups of stored values: where two groups meet among four inputs each has slots of its own, as far as the form has them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache, reduce
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


@dataclass(frozen=True)
class Chosen:
    """A form for a weight. carried: uint8 [ceil(N / R), fours, slots], the inputs of four that a slot carries in a row of blocks (bit
    i: input i; 0: no entry). groups: int32 like it, the group of scales of what is carried; None where groups have no scales."""

    form: str
    carried: Array
    groups: Array | None


def choose_form(weight: Unpacked, target: Target) -> Chosen | None:
    """The form that has least to multiply; None where none can hold the weight."""
    if weight.zero_points is not None and weight.scheme.scales.kind == "group":
        return None
    x86 = target.arch == "x86_64"
    most = 128 if target.vnni or not x86 else _MOST_SIGNED  # 128: of signed numbers, below zero
    quads = (weight.scheme.block[1] % 4 == 0 or not x86) and _largest(weight) <= most
    if quads and (found := lay_out(weight, "quads")) is not None:
        return found
    return lay_out(weight, "choices" if weight.scheme.block[1] == 1 else "pairs") if x86 else None


def _largest(weight: Unpacked) -> int:
    """Largest magnitude of a number, at least."""
    if isinstance(weight.scheme.codec.meaning, TableValue):
        return int(np.abs(signed_table(weight)[0].astype(np.int32)).max(initial=0))
    if weight.zero_points is not None:
        return 1 << weight.scheme.codec.code_bits
    offset = getattr(weight.scheme.codec.meaning, "offset", None) or 0
    low, high = int(weight.codes.min(initial=offset)), int(weight.codes.max(initial=offset))
    return max(offset - low, high - offset)


def lay_out(weight: Unpacked, form: str) -> Chosen | None:
    """The weight in a form; None where groups of scales meet among four inputs and no slots hold them apart."""
    kept = np.repeat(weight.block_mask, weight.scheme.block[1], 1)[:, : weight.cols]
    fours = _fours(kept)
    stored, second, groups = _bits(fours), np.zeros(fours.shape[:2], np.uint8), None
    if weight.scheme.scales.kind == "group":
        groups = _fours(_group_of_stored(weight, kept))
        last = groups.max(2, keepdims=True)
        if (fours & (groups < last - 1)).any():
            return None  # more than two groups
        second = _bits(fours & (groups == last))
    carried = _cover(form)[stored, second]
    if (carried == _NONE).any():
        return None
    if groups is None:
        return Chosen(form, carried, None)
    of_slot = [
        reduce(np.maximum, [groups[:, :, i] * (carried[:, :, number] >> i & 1) for i in range(4)])
        for number in range(carried.shape[2])
    ]
    return Chosen(form, carried, np.stack(of_slot, 2))


def _bits(fours: Array) -> Array:
    """uint8 [rows, fours]: four flags as bits."""
    flags = fours.astype(np.uint8)
    return flags[:, :, 0] | flags[:, :, 1] << 1 | flags[:, :, 2] << 2 | flags[:, :, 3] << 3


def _fours(array: Array) -> Array:
    """[N, K] as [N, ceil(K / 4), 4], zeros behind the last."""
    return np.pad(array, ((0, 0), (0, -array.shape[1] % 4))).reshape(len(array), -1, 4)


def _group_of_stored(weight: Unpacked, kept: Array) -> Array:
    """int32 [ceil(N / R), K]: the group of scales of what is stored, 0 elsewhere."""
    c, size = weight.scheme.block[1], weight.scheme.scales.group
    rank = np.cumsum(weight.block_mask, axis=1, dtype=np.int32) - 1  # of a stored block in its strip
    places = np.arange(kept.shape[1], dtype=np.int32)
    group = np.repeat(rank * np.int32(c), c, 1)[:, : kept.shape[1]] + places % c
    return np.asarray(group // np.int32(size) * kept)


def words(weight: Unpacked, chosen: Chosen) -> Words:
    """A weight in the form that was chosen."""
    values, scales = numbers(weight)
    n, r = len(values), weight.scheme.block[0]
    carried = np.repeat(chosen.carried, r, 0)[:n]
    fours, parts = _fours(values), []
    for number, inputs in enumerate(SLOTS[chosen.form]):
        bits = np.stack([carried[:, :, number] >> i & 1 for i in inputs], 2)
        parts.append(fours[:, :, list(inputs)] * bits)
    dtype = np.int8 if chosen.form == "quads" else np.int16
    made = np.ascontiguousarray(np.stack(parts, 2).astype(dtype)).view(np.int32)
    total = values.sum(1, dtype=np.int32)
    found = Words(chosen.form, carried.reshape(n, -1) > 0, made.reshape(n, -1), scales, total)
    if chosen.groups is None:
        return found
    groups = np.repeat(chosen.groups, r, 0)[:n].reshape(n, -1)
    return replace(found, group=groups, group_scales=weight.scales)


def entries(weight: Unpacked, chosen: Chosen, strip: int) -> tuple[int, int]:
    """How many entries a weight has, each of `strip` rows, and runs of entries of one group (0 where groups have no scales)."""
    each = weight.scheme.block[0] // strip
    held = chosen.carried.reshape(len(chosen.carried), -1) > 0
    if chosen.groups is None:
        return int(np.count_nonzero(held)) * each, 0
    strips, _ = np.nonzero(held)
    groups = chosen.groups.reshape(held.shape)[held]
    ends = int(np.count_nonzero(np.diff(strips) | np.diff(groups)))
    return len(strips) * each, (ends + 1) * each


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
