"""Weights of vector codebooks for vector_gemv.py: which fit, and their physical layout.

Codes lie in words that a lane of the looked-up numbers holds: [word][output], the codes of a word along the inputs. Where products
are looked up in memory, `units` codes of an output lie side by side: [word of units][output][units].
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.kernels import vector_codes
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import VectorValue
from sparsec.formats.structure import Dense
from sparsec.int8 import rounded_table
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Outputs of a unit, and units that share tables while their sums stay in the level-1 cache.
TILE, TILES_AT_ONCE = 64, 32


def refused(weight: Unpacked, target: Target, x_group: int, *, whole: bool) -> str:
    """Why `pack` cannot lay a weight out ("" if it can); whole: int8 activations."""
    scheme = weight.scheme
    meaning, scales = scheme.codec.meaning, scheme.scales
    if not isinstance(meaning, VectorValue) or not isinstance(scheme.structure, Dense):
        return "not a dense weight of vectors"
    if vector_codes.refusal(meaning) or vector_codes.Form.of(meaning) != vector_codes.Form(1, 1, 8):
        return "four inputs do not take 8 bits"
    if meaning.scope.kind != "tensor":
        return "there are several codebooks"
    if whole and target.arch != "x86_64" and not _mirrored(_table(weight, whole=True)):
        return "half of the products do not say the others"
    group = scales.group if scales.kind == "group" else x_group
    if group % 16 or group > 4 * most_units(target) or (x_group and group != x_group):
        return f"groups of {group} inputs are not whole words of codes"
    return ""


def in_registers(target: Target) -> bool:
    return target.arch == "x86_64" and target.lanes == 16


def most_units(target: Target) -> int:
    """Products whose bytes may be added up in 16 bits: 256 * 255 < 2**16, signed ones 255 * 128 < 2**15."""
    return 256 if target.arch == "x86_64" else 128


def units_of_bytes(target: Target) -> int:
    """Units whose bytes are looked up in one pass over the outputs: on aarch64 the table of one fills half the registers."""
    return 2 if target.arch == "x86_64" else 1


def units_together(group: int, cols: int) -> int:
    """Codes of an output that lie side by side where products are in memory."""
    span = group // 4 or ceil(cols / 32) * 8
    return next(units for units in (16, 8, 4) if span % units == 0)


def pack(
    weight: Unpacked, target: Target, x_group: int, *, whole: bool
) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    """Parameters and arrays: codes, codebook, scales?"""
    meaning, scales = weight.scheme.codec.meaning, weight.scheme.scales
    assert isinstance(meaning, VectorValue)
    assert weight.codebook is not None
    tile = TILE
    rows = ceil(weight.rows / tile) * tile
    group = scales.group if scales.kind == "group" else x_group
    padded = ceil(weight.cols / 32) * 32
    words = vector_codes.streams(weight, rows, padded)[:, 0]
    table = _table(weight, whole=whole)
    half = _mirrored(table)
    form = "registers" if in_registers(target) else "bytes" if whole and half else "memory"
    units = units_together(group, weight.cols) if whole and form == "memory" else 0
    if form == "bytes":
        order = np.arange(rows)
        if target.arch == "x86_64":  # what unpacking leaves as it is, see vector_bytes.py
            order = order.reshape(-1, 2, 2, 8).transpose(0, 2, 1, 3).reshape(-1)
        together, lanes = units_of_bytes(target), 4 * target.lanes
        by_unit = np.ascontiguousarray(words).view(np.uint8).T[:, order]
        vectors = by_unit.reshape(-1, together, rows // lanes, lanes)
        codes = np.ascontiguousarray(vectors.transpose(0, 2, 1, 3)).reshape(-1)
    elif units:
        beside = np.ascontiguousarray(words).view(np.uint8).reshape(rows, -1, units)
        codes = np.ascontiguousarray(beside.transpose(1, 0, 2)).reshape(-1)
    else:
        codes = np.ascontiguousarray((words.view(np.uint16) if whole else words).T).reshape(-1)
    arrays = [("codes", codes), ("book", table.reshape(-1))]
    if whole:
        arrays.append(("book_scale", rounded_table(weight.codebook)[1]))
    if weight.scales is not None:
        values = weight.scales.reshape(-1).astype(np.float32)
        if scales.kind != "tensor":
            wide = np.zeros((rows, weight.scales.shape[1]), np.float16 if scales.kind == "group" else np.float32)
            wide[: weight.rows] = weight.scales
            values = np.ascontiguousarray(wide.T).reshape(-1)
        arrays.append(("scales", values))
    params = {
        "rows": weight.rows, "k": weight.cols, "whole": whole, "half": half, "x_group": x_group, "group": group, "scales": scales.kind,
        "form": form, "units": units,
    }  # fmt: skip
    return params, arrays


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


def inputs_params(p: Mapping[str, Any]) -> dict[str, Any]:
    """What gemv_inputs.py has to know."""
    block = p["group"] or ceil(p["k"] / 32) * 32
    return {"m": 1, "x_group": p["x_group"], "w": {"k": p["k"], "block": block, "sparse": False, "paired": False}}


def padded_rows(p: Mapping[str, Any]) -> int:
    return ceil(int(p["rows"]) / TILE) * TILE
