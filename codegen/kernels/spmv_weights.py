"""Sparse weights laid out for spmv.py: rows in groups of lanes, a stored weight of each lane's row at every step.

This is SELL-C-sigma (Kreutzer et al., "A unified sparse matrix data format for efficient general sparse matrix-vector
multiplication on modern processors with wide SIMD units", 2014) with sigma the whole matrix: rows sorted by how much they store
are cut into *groups* of C rows, one a lane. A group takes as many *steps* as its longest row stores; step s holds the s-th
stored weight of every row, so sums need no reduction and groups of G scales are the same steps in all lanes. Lanes that are
done have an offset that reads zero. *Pieces* are runs of groups with about equal steps: what threads share.

Arrays: `starts` int32 [groups + 1]: first step of every group; `bounds` int32 [pieces + 1]: first group of every piece; `rows`
int32 [groups * C]: output row of each lane, -1 for none; `offsets` uint16 [steps][C]: columns, K for a lane that is done; then
codes [steps][C] (planes, as in spmm_values.py) and scales, zero points and constants of rows in the order of lanes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.codegen.kernels import spmm_values
from sparsec.codegen.kernels.spmm_weights import balanced_bounds, element_mask
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.layout import plane_widths
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Work of a group beside its steps (storing sums row by row), in steps, when pieces are balanced.
_GROUP_COST = 4.0


@dataclass(frozen=True)
class Steps:
    """A weight in physical form: kernel parameters, named arrays, and what is data: steps in all."""

    params: dict[str, Any]
    arrays: list[tuple[str, Array]]
    rows: Array
    steps: int

    def by_lane(self, values: Array) -> Array:
        """values[N, ...] in the order of lanes, zeros where there is no row."""
        picked = values[np.maximum(self.rows, 0)]
        picked[self.rows < 0] = 0
        return picked


def group_rows(target: Target) -> int:
    """C: rows of a group. Codes narrower than a byte want at least 8."""
    return max(8, target.lanes)


def pack(weight: Unpacked, target: Target, pieces: int) -> Steps:
    """Lay a weight out for at most `pieces` pieces of work; codecs of one input a code, K < 65535."""
    n, k = weight.rows, weight.cols
    c, mask = group_rows(target), element_mask(weight)
    counts = mask.sum(1)
    groups = -(-n // c)
    rows = np.full(groups * c, -1, np.int32)
    rows[:n] = np.argsort(-counts, kind="stable")
    longest = counts[rows[::c]]
    starts = np.concatenate([[0], np.cumsum(longest)]).astype(np.int64)
    steps = int(starts[-1])
    assert steps * c < 2**31, "too many stored weights for 32-bit positions"
    lane_of = np.empty(n, np.int64)
    lane_of[rows[:n]] = np.arange(n)
    row, column = np.nonzero(mask)
    rank = np.arange(len(row)) - (np.cumsum(counts) - counts)[row]
    at = (starts[lane_of[row] // c] + rank) * c + lane_of[row] % c
    offsets = np.full(steps * c, k, np.uint16)
    offsets[at] = column
    codes = np.zeros(steps * c, weight.codes.dtype)
    (r, cols), grid = weight.scheme.block, weight.block_mask.shape
    index = np.zeros(grid, np.int64)
    index[weight.block_mask] = np.arange(len(weight.codes))
    codes[at] = weight.codes[index[row // r, column // cols], row % r, column % cols]

    pieces = min(pieces, groups)
    params = {
        "n": n, "k": k, "groups": groups, "pieces": pieces, "values": spmm_values.describe(weight),
    }  # fmt: skip
    bounds = balanced_bounds(longest + _GROUP_COST, pieces, 1)
    made = Steps(params, [], rows, steps)
    tables: list[tuple[str, Array]] = [("starts", starts.astype(np.int32)), ("bounds", bounds.astype(np.int32))]
    made.arrays.extend([*tables, ("rows", rows), ("offsets", offsets), *_value_arrays(weight, codes, made)])
    for (name, array), arg in zip(made.arrays, arguments(params, target, made), strict=True):
        assert (array.size, str(array.dtype)) == (arg.size, arg.dtype), (name, array.size, array.dtype, arg)
    return made


def _value_arrays(weight: Unpacked, codes: Array, made: Steps) -> list[tuple[str, Array]]:
    p = made.params["values"]
    found = spmm_values.code_arrays(codes, p["bits"])
    c = len(made.rows) // made.params["groups"]

    def physical(values: Array) -> Array:
        # group of rows, group of scales, lane
        return made.by_lane(values).reshape(-1, c, values.shape[1]).transpose(0, 2, 1).reshape(-1)

    if p["scales"] == "group":
        assert weight.scales is not None
        found.append(("scale_groups", np.array([weight.scales.shape[1]], np.int32)))
        found.append(("scales", physical(weight.scales.astype(np.float16))))
    elif p["scales"] != "none":
        assert weight.scales is not None
        found.append(
            ("scales", made.by_lane(np.broadcast_to(weight.scales, (weight.rows, 1)).astype(np.float32)[:, 0]))
        )
    if spmm_values.has_zero_points(p):
        assert weight.zero_points is not None
        zero = weight.zero_points
        found.append(
            ("zero_points", physical(zero if p["scales"] == "group" else np.broadcast_to(zero, (weight.rows, 1))))
        )
    if p["word"] == "table":
        assert weight.codebook is not None
        book = np.zeros((p["books"], p["book"]), np.float32)
        book[:, : weight.codebook.shape[1]] = weight.codebook
        found.append(("codebook", book.reshape(-1)))
        if p["scope"] == "rows":
            found.append(("books", np.where(made.rows >= 0, made.rows // p["span"], 0).astype(np.int32) * p["book"]))
    return found


def arguments(p: Mapping[str, Any], target: Target, made: Steps | None = None) -> list[Arg]:
    """The kernel's pointer arguments, in the order of `Steps.arrays`; how many steps (and groups of scales) there are is data."""
    values, lanes = p["values"], p["groups"] * group_rows(target)
    stored = None if made is None else made.steps * group_rows(target)
    args = [
        Arg("starts", "int32", p["groups"] + 1, "in"),
        Arg("bounds", "int32", p["pieces"] + 1, "in"),
        Arg("rows", "int32", lanes, "in"),
        Arg("offsets", "uint16", FROM_DATA if stored is None else stored, "in"),
    ]
    if values["bits"] == 0:
        args.append(Arg("values", f"float{values['width']}", FROM_DATA if stored is None else stored, "in"))
    for plane, width in enumerate(plane_widths(values["bits"]) if values["bits"] else []):
        args.append(Arg(f"codes{plane}", "uint8", FROM_DATA if stored is None else stored * width // 8, "in"))
    of_groups = lanes
    if values["scales"] == "group":
        args.append(Arg("scale_groups", "int32", 1, "in"))
        of_groups = FROM_DATA if made is None else lanes * int(dict(made.arrays)["scale_groups"][0])
    if values["scales"] != "none":
        args.append(Arg("scales", "float16" if values["scales"] == "group" else "float32", of_groups, "in"))
    if spmm_values.has_zero_points(values):
        args.append(Arg("zero_points", "uint8", of_groups, "in"))
    if values["word"] == "table":
        args.append(Arg("codebook", "float32", values["books"] * values["book"], "in"))
        if values["scope"] == "rows":
            args.append(Arg("books", "int32", lanes, "in"))
    return args
