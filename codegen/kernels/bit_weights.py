"""Weights of one or two bits as bits of their codes, for bit_gemv.py: which fit, and their physical layout.

Two bits fit where their four levels are `base + first * b1 + second * b0`: evenly spaced ones, and learned ones whose outer
distances are equal, as those of a mirrored codebook are. Codes are numbered anew to say so. Of four consecutive inputs (a quad) the
bits b1 make half a byte, the least significant bit that of the first input; the bits b0 (of codes of one bit: those of the next
quad) make the other half:

    codes[tile][byte along the inputs][vector of rows][row]

For bit_digits.py the other half is the next quad's as well, and a row has a byte of bits b1 and behind it one of bits b0:

    codes[tile][two quads of the inputs][vector of rows][row][b1, b0]

The rows of a vector lie in the order that `row_order` (`digit_order`) gives, so that sums come out in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.kernels.weights import scales_by_tile
from sparsec.codegen.program import Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import AffineValue, TableValue
from sparsec.formats.structure import Dense
from sparsec.int8 import rounded_table
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Inputs whose sums fit a signed 16-bit number, 256 * 127 < 2**15; half as many where two bits join one sum.
MOST_INPUTS = 256
# Inputs whose sums fit two digits of a byte each (bit_digits.py), and what `first + second` may be there: 255 * 128 < 2**15.
DIGIT_INPUTS = 32
_DIGIT_LEVELS = 128
# Rows from which on evenly spaced levels of two bits are faster than their products: tables cost as much as these save.
_MANY_ROWS = 1024


def refused(weight: Unpacked, target: Target, x_group: int) -> str:
    """Why `pack` cannot lay a weight out ("" if it can)."""
    scheme = weight.scheme
    codec, meaning, scales = scheme.codec, scheme.codec.meaning, scheme.scales
    if target.arch != "x86_64" or target.vnni:
        return f"target '{target.name}' multiplies faster than it looks up"
    if not isinstance(scheme.structure, Dense):
        return "the weight is sparse"
    if not isinstance(meaning, AffineValue | TableValue) or codec.code_bits > 2:
        return f"codec {codec} has no codes of one or two bits"
    if weight.zero_points is not None or (isinstance(meaning, TableValue) and meaning.scope.kind != "tensor"):
        return "zero points and several codebooks"
    group = scales.group if scales.kind == "group" else x_group
    if x_group and group != x_group:
        return f"groups of {x_group} inputs do not follow the groups of the weight"
    if group % 8 or group > MOST_INPUTS // codec.code_bits:
        return f"groups of {group} inputs are not eights that 16 bits can sum"
    if weight.cols > 60_000:
        return "sums of this many products overflow 32 bits"
    if (
        codec.code_bits == 2
        and isinstance(meaning, AffineValue)
        and (scales.kind == "group" or weight.rows < _MANY_ROWS)
    ):
        return "products with evenly spaced levels are as fast"
    if bits_of(weight) is None:
        return "levels of two bits that are not sums of one for each bit"
    return ""


def _levels(weight: Unpacked) -> tuple[Array, float]:
    """(int [2**bits], scale): what the codes stand for."""
    meaning = weight.scheme.codec.meaning
    if weight.codebook is not None:
        entries, scale = rounded_table(weight.codebook)
        return entries[0].astype(np.int64), float(scale[0])
    assert isinstance(meaning, AffineValue)
    return np.arange(1 << weight.scheme.codec.code_bits) - (meaning.offset or 0), 1.0


def bits_of(weight: Unpacked) -> tuple[tuple[int, int, int], Array] | None:
    """((base, first, second), new number of every code), None where levels are no such sums."""
    levels, _ = _levels(weight)
    used = np.flatnonzero(np.bincount(weight.codes.reshape(-1), minlength=len(levels)))
    used = used[np.argsort(levels[used], kind="stable")]
    at = [int(level) for level in levels[used]] or [0]
    number = np.zeros(len(levels), np.uint8)
    if weight.scheme.codec.code_bits == 1:
        number[used[1:]] = 1
        return (at[0], at[-1] - at[0], 0), number
    if len(at) == 4:
        number[used] = np.arange(4)
        if at[3] - at[2] != at[1] - at[0]:
            return None
        return (at[0], at[2] - at[0], at[1] - at[0]), number
    if len(at) == 3 and at[2] - at[1] == at[1] - at[0]:
        number[used] = [0, 1, 3]
        return (at[0], at[1] - at[0], at[1] - at[0]), number
    number[used] = np.arange(len(used))
    return (at[0], at[-1] - at[0] if len(at) == 3 else 0, at[min(1, len(at) - 1)] - at[0]), number


def row_order(lanes: int) -> Array:
    """Which row of a vector of `4 * lanes` rows lies at each byte.

    Sums are made of bytes in 16-bit words, those of even and of odd bytes, which unpacking turns into vectors of int32, 128 bits at
    a time: first and second halves of even bytes, then of odd ones.
    """
    row = np.arange(4 * lanes)
    vector, lane = row // lanes, row % lanes
    place = 16 * (lane // 4) + 2 * (4 * (vector % 2) + lane % 4) + vector // 2
    order = np.empty_like(row)
    order[place] = row
    return order


def digit_order(lanes: int) -> Array:
    """Which row of `2 * lanes` rows lies at each 16-bit word of a vector for bit_digits.py: where unpacking takes it from."""
    row = np.arange(2 * lanes)
    vector, lane = row // lanes, row % lanes
    order = np.empty_like(row)
    order[8 * (lane // 4) + 4 * vector + lane % 4] = row
    return order


def pack(weight: Unpacked, target: Target, x_group: int) -> tuple[dict[str, Any], list[tuple[str, Array]]]:
    """Parameters and arrays: codes, levels, level_scale, scales?

    levels: `base`; what inputs that are not chosen are multiplied with; `first` and `second` as numbers of 16 bits (digits: of 8);
    pairs of quads in a block.
    """
    scheme = weight.scheme
    scales, bits = scheme.scales, scheme.codec.code_bits
    found = bits_of(weight)
    assert found is not None
    (base, first, second), number = found
    nb = 4 * target.lanes
    one_sum = bits == 1 or first == second
    group = scales.group if scales.kind == "group" else x_group
    digits = bits == 2 and 0 < group <= DIGIT_INPUTS and first + second <= _DIGIT_LEVELS
    vectors = min(2 if one_sum or digits else 1, ceil(weight.rows / nb))  # of rows, whose sums stay in registers
    tile = nb * vectors
    tiles = ceil(weight.rows / tile)
    block = group or min(MOST_INPUTS // bits, ceil(weight.cols / 32) * 32)
    params: dict[str, Any] = {
        "rows": weight.rows, "k": weight.cols, "bits": bits, "tile": tile, "x_group": x_group, "group": group, "block": block,
        "scales": scales.kind, "one_sum": one_sum, "digits": digits,
    }  # fmt: skip
    codes = np.zeros((tiles * tile, width(params)), np.uint8)
    codes[: weight.rows, : weight.cols] = number[weight.codes.reshape(weight.rows, weight.cols)]
    quads = codes.reshape(tiles * tile, -1, 4)
    powers = np.array([1, 2, 4, 8], np.uint8)
    halves: list[Array] = [
        ((quads >> shift & 1) @ powers).astype(np.uint8) for shift in ((0,) if bits == 1 else (1, 0))
    ]
    if digits:
        halves = [half[:, ::2] | half[:, 1::2] << 4 for half in halves]
        by_row = np.stack(halves, axis=1).reshape(tiles, -1, nb // 2, 2, halves[0].shape[1])
        by_vector: Array = by_row[:, :, digit_order(target.lanes)].reshape(tiles, -1, nb, halves[0].shape[1])
        times = first | second << 8
    else:
        low, high = (halves[0][:, ::2], halves[0][:, 1::2]) if bits == 1 else halves
        by_vector = (low | high << 4).reshape(tiles, vectors, nb, -1)[:, :, row_order(target.lanes)]
        times = first & 0xFFFF if one_sum else (first & 0xFFFF) | (second & 0xFFFF) << 16
    # S = base * sum of x + first * (U1 - N) + second * (U0 - N): U as the kernel sums it, N the sum of all -x that are positive
    together = 2 * first if bits == 2 and one_sum else first + second
    arrays: list[tuple[str, Array]] = [
        ("codes", np.ascontiguousarray(by_vector.transpose(0, 3, 1, 2)).reshape(-1)),
        ("levels", np.array([base, together, times, block // 8], np.int64).astype(np.uint32).view(np.int32)),
        ("level_scale", np.array([_levels(weight)[1]], np.float32)),
    ]
    if weight.scales is not None:
        arrays.append(("scales", scales_by_tile(weight, tile)))
    return params, arrays


def width(p: Mapping[str, Any]) -> int:
    """Inputs of a row, zeros behind the last: whole blocks and whole vectors of bytes."""
    unit, cols = max(int(p["block"]), 32), int(p["k"])
    return ceil(cols / unit) * unit


def spans(p: Mapping[str, Any]) -> int:
    """Blocks of inputs whose sums are finished together."""
    return width(p) // int(p["block"]) if not p["group"] else ceil(p["k"] / p["group"])


def arguments(p: Mapping[str, Any]) -> list[Arg]:
    """The kernel's pointer arguments for a packed weight, in the order of `pack`."""
    rows = ceil(p["rows"] / p["tile"]) * p["tile"]
    args = [
        Arg("codes", "uint8", rows * width(p) * p["bits"] // 8, "in"),
        Arg("levels", "int32", 4, "in"),
        Arg("level_scale", "float32", 1, "in"),
    ]
    if p["scales"] != "none":
        count = {"tensor": 1, "channel": rows, "group": rows * ceil(p["k"] / (p["group"] or 1))}[p["scales"]]
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", count, "in"))
    return args
