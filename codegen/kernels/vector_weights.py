"""Weights of vector codebooks for vector_gemv.py: which fit, and their physical layout.

How products are looked up is the form of a weight:

* registers (AVX-512, float32 on AVX-512): codes lie in words that a lane of the looked-up numbers holds: [word][output], the codes of
  a word along the inputs.
* memory (x86): `units` codes of an output lie side by side: [word of units][output][units].
* bytes (aarch64): [unit][output].
* nibbles (AVX2, aarch64): [word of 4 units][vector of outputs][4][outputs]. A code's halves stand for entries of their own, which add up.
* mixed (AVX2): [word of 4 units][tile][4][outputs of the vectors], then [outputs of the tables in memory][4]. `starts` says how many
  codes of a span say "subtract".
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.isa import byte_table
from sparsec.codegen.kernels import vector_codes
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import VectorValue
from sparsec.formats.structure import Dense
from sparsec.int8 import rounded_table
from sparsec.target import Target

Array = np.ndarray[Any, Any]

TILE = 64  # outputs of a unit, but in mixed form

# Of a tile in mixed form: outputs looked up in vectors, and in memory.
BY_VECTORS, IN_MEMORY = 64, 16
MIXED_UNITS = NIBBLE_UNITS = 4  # of a word

# Products that may be added up before sums become float32, by form. Bytes in 16 bits: 256 * 255 < 2**16, signed ones 255 * 128 < 2**15;
# of two lookups each for nibbles; mixed: see vector_mixed.py.
MOST_UNITS = {"registers": 256, "memory": 256, "bytes": 128, "nibbles": 124, "mixed": 124}


def most_rows(target: Target, form: str) -> int:
    """Rows of activations that are cheaper one by one than with decoded weights.

    Nibbles on AVX2, 4096 x 4096: two, three and four rows take 0.50, 0.69 and 0.79 of the time; on aarch64 0.63, 0.87 (with smmla 1.25)
    and 1.08 of the instructions.
    """
    if form != "nibbles":
        return 1
    return 4 if target.arch == "x86_64" else 2


def refused(weight: Unpacked, target: Target, x_group: int, *, whole: bool, m: int = 1) -> str:
    """Why `pack` cannot lay a weight out for m rows of activations ("" if it can); whole: int8 activations."""
    scheme = weight.scheme
    meaning, scales = scheme.codec.meaning, scheme.scales
    if not isinstance(meaning, VectorValue) or not isinstance(scheme.structure, Dense):
        return "not a dense weight of vectors"
    if vector_codes.refusal(meaning) or vector_codes.Form.of(meaning) != vector_codes.Form(1, 1, 8):
        return "four inputs do not take 8 bits"
    if meaning.scope.kind != "tensor":
        return "there are several codebooks"
    group = scales.group if scales.kind == "group" else x_group
    form = form_of(target, meaning, group, whole=whole, half=_mirrored(_table(weight, whole=whole)))
    if not form:
        return "half of the products do not say the others"
    if m > most_rows(target, form):
        return "more rows of activations than it takes to make weights worth decoding"
    if group % 16 or group > 4 * MOST_UNITS[form] or (x_group and group != x_group):
        return f"groups of {group} inputs are not whole words of codes"
    return ""


def in_registers(target: Target) -> bool:
    return target.arch == "x86_64" and target.lanes == 16


def form_of(target: Target, meaning: VectorValue, group: int, *, whole: bool, half: bool) -> str:
    """How products are looked up (see the module's docstring), "" if in no way; half: the codebook is mirrored."""
    if in_registers(target):
        return "registers"
    if whole and meaning.bits <= 4 and group <= 4 * MOST_UNITS["nibbles"]:
        return "nibbles"
    if target.arch != "x86_64" and whole:
        return "bytes" if half else ""
    return "mixed" if whole and half and group <= 4 * MOST_UNITS["mixed"] else "memory"


def units_together(group: int, cols: int) -> int:
    """Codes of an output that lie side by side where products are in memory."""
    span = group // 4 or ceil(cols / 32) * 8
    return next(units for units in (16, 8, 4) if span % units == 0)


def pack(
    weight: Unpacked, target: Target, x_group: int, *, whole: bool, m: int = 1
) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    """Parameters and arrays: codes, codebook, scales?"""
    meaning, scales = weight.scheme.codec.meaning, weight.scheme.scales
    assert isinstance(meaning, VectorValue)
    assert weight.codebook is not None
    table = _table(weight, whole=whole)
    half = _mirrored(table)
    group = scales.group if scales.kind == "group" else x_group
    form = form_of(target, meaning, group, whole=whole, half=half)
    tile = BY_VECTORS + IN_MEMORY if form == "mixed" else TILE
    rows = ceil(weight.rows / tile) * tile
    words = vector_codes.streams(weight, rows, ceil(weight.cols / 32) * 32)[:, 0]
    by_unit = np.ascontiguousarray(words).view(np.uint8)
    units = units_together(group, weight.cols) if whole and form == "memory" else 0
    starts: list[tuple[str, Array]] = []
    if form == "mixed":
        codes, negative = _mixed(by_unit, group)
        starts = [("starts", negative)]
    elif form == "nibbles":
        codes = _nibbles(by_unit, 4 * target.lanes, x86=target.arch == "x86_64")
        table = _halves(meaning, rounded_table(weight.codebook)[0])
    elif form == "bytes":
        codes = np.ascontiguousarray(by_unit.T).reshape(-1)
    elif units:
        codes = np.ascontiguousarray(by_unit.reshape(rows, -1, units).transpose(1, 0, 2)).reshape(-1)
    else:
        codes = np.ascontiguousarray((words.view(np.uint16) if whole else words).T).reshape(-1)
    arrays = [("codes", codes), ("book", table.reshape(-1))]
    if whole:
        arrays.append(("book_scale", rounded_table(weight.codebook)[1]))
    arrays += starts
    if weight.scales is not None:
        values = weight.scales.reshape(-1).astype(np.float32)
        if scales.kind != "tensor":
            wide = np.zeros((rows, weight.scales.shape[1]), np.float16 if scales.kind == "group" else np.float32)
            wide[: weight.rows] = weight.scales
            values = np.ascontiguousarray(wide.T).reshape(-1)
        arrays.append(("scales", values))
    params = {
        "m": m, "rows": weight.rows, "k": weight.cols, "whole": whole, "half": half, "x_group": x_group, "group": group,
        "scales": scales.kind, "form": form, "units": units, "tile": tile,
    }  # fmt: skip
    return params, arrays


def span_of(group: int) -> int:
    """Words of a span in mixed form."""
    return (group // 4 or MOST_UNITS["mixed"]) // MIXED_UNITS


def _mixed(codes: Array, group: int) -> tuple[Array, Array]:
    """Codes [rows, units] in mixed form, and the starts of sums, [span][tile][outputs of the vectors]."""
    tiles = codes.reshape(-1, BY_VECTORS + IN_MEMORY, codes.shape[1] // MIXED_UNITS, MIXED_UNITS)
    by_vectors, in_memory = tiles[:, :BY_VECTORS], tiles[:, BY_VECTORS:]
    unpacked = by_vectors.reshape(len(tiles), -1, 32, *tiles.shape[2:])[:, :, byte_table.UNPACKED]
    parts = unpacked.transpose(3, 0, 4, 1, 2), in_memory.transpose(2, 0, 1, 3)
    laid = np.concatenate([part.reshape(*part.shape[:2], -1) for part in parts], axis=2)
    negative = (by_vectors >= 128).sum(axis=3, dtype=np.uint8)
    starts = np.add.reduceat(negative, np.arange(0, negative.shape[2], span_of(group)), axis=2, dtype=np.uint8)
    return laid.reshape(-1), np.ascontiguousarray(starts.transpose(2, 0, 1)).reshape(-1)


def _nibbles(codes: Array, lanes: int, *, x86: bool) -> Array:
    """Codes [rows, units] in nibbles' form."""
    vectors = codes.reshape(-1, lanes, codes.shape[1] // NIBBLE_UNITS, NIBBLE_UNITS)
    ordered = vectors[:, byte_table.UNPACKED] if x86 else vectors
    return np.ascontiguousarray(ordered.transpose(2, 0, 3, 1)).reshape(-1)


def _halves(meaning: VectorValue, entries: Array) -> Array:
    """int16 [2][4 inputs][16]: what the lower and the upper four bits of a code stand for."""
    made = np.zeros((2, 4, 16), np.int16)
    per_half = 4 // meaning.bits
    for number in range(2 * per_half):
        half, place = divmod(number, per_half)
        first, stage = number // meaning.stages * meaning.dim, number % meaning.stages
        index = np.arange(16) >> (place * meaning.bits) & ((1 << meaning.bits) - 1)
        made[half, first : first + meaning.dim] += entries[0, stage, index].T.astype(np.int16)
    return made


def _table(weight: Unpacked, *, whole: bool) -> Array:
    """The codebook as [4 inputs][256], rounded to int16 for int8 activations."""
    meaning = weight.scheme.codec.meaning
    assert isinstance(meaning, VectorValue)
    assert weight.codebook is not None
    if whole:
        return _quads(meaning, rounded_table(weight.codebook)[0]).astype(np.int16)
    return _quads(meaning, weight.codebook)


def _mirrored(table: Array) -> bool:
    """Whether its second half is the negative of the first."""
    return bool((table[:, :128] == -table[:, 128:]).all())


def _quads(meaning: VectorValue, entries: Array) -> Array:
    """The codebook as [4 inputs][256]."""
    stages, count, dim = entries.shape[1:]
    if (stages, dim) == (1, 4):
        return np.ascontiguousarray(entries[0, 0].T)
    code = np.arange(256)
    made = np.zeros((4, 256), entries.dtype)
    for number in range(4 // dim * stages):
        first = number // stages * dim
        made[first : first + dim] += entries[0, number % stages, code >> (number * meaning.bits) & (count - 1)].T
    return made


def tiles_at_once(p: Mapping[str, Any]) -> int:
    """Units that share tables while their sums stay in the level-1 cache."""
    return 64 if p["form"] == "mixed" else 32


def inputs_params(p: Mapping[str, Any]) -> dict[str, Any]:
    """What gemv_inputs.py has to know."""
    block = p["group"] or ceil(p["k"] / 32) * 32
    return {"m": 1, "x_group": p["x_group"], "w": {"k": p["k"], "block": block, "sparse": False, "paired": False}}


def padded_rows(p: Mapping[str, Any]) -> int:
    return ceil(int(p["rows"]) / int(p["tile"])) * int(p["tile"])
