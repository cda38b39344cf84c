"""Strips of a sparse weight laid out for token_strips.py: which encoded weights fit, and in which order their inputs are stored.

A tile is one strip of R rows. What it stores comes in blocks of B inputs with one scale a row, whose inputs are numbered. Numbers are
signed bytes. Free places at the end of a group or strip read an input that is always zero.

Arrays: `steps` uint8 [blocks] pairs of quads that a block stores; `starts` int32 [tiles + 1] first block of every tile; `inputs` uint16
[blocks][B]; `codes` as in byte_weights.py; `scales`; `table` and `table_scale`.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.kernels import byte_weights
from sparsec.codegen.kernels.byte_weights import Packed
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.structure import Dense
from sparsec.target import Target

Array = np.ndarray[Any, Any]
# Inputs of a block.
_BLOCK = 32


def padded_inputs(k: int) -> int:
    """Inputs in whole blocks of 16; the next one is always zero."""
    return ceil(k / 16) * 16


def refusal(weight: Unpacked, target: Target, x_group: int) -> str:
    """Why `pack` cannot lay this weight out ("" if it can)."""
    if target.arch != "x86_64":
        return f"target '{target.name}' has no products of pairs of bytes"
    if isinstance(weight.scheme.structure, Dense):
        return "the weight is dense"
    if why := byte_weights.refusal(weight, target, x_group):
        return why
    scales = weight.scheme.scales
    if scales.kind == "group" and scales.group not in (8, 16) and scales.group % _BLOCK:
        return f"groups of {scales.group} are no whole blocks of {_BLOCK}"
    return ""


def pack(weight: Unpacked, target: Target, label: str) -> Packed:
    """Lay a weight out. `refusal` must be empty."""
    scheme = weight.scheme
    scales, bits, tile = scheme.scales, scheme.codec.code_bits, scheme.block[0]
    mask = weight.block_mask
    tiles = len(mask)
    grouped = scales.kind == "group"
    size = min(scales.group, _BLOCK) if grouped else _BLOCK
    strip, column = np.nonzero(mask)
    rank = np.arange(len(strip)) - np.concatenate([[0], np.cumsum(mask.sum(1))])[strip]
    number = strip * (mask.shape[1] // size + 1) + rank // size
    names, index = np.unique(number, return_inverse=True)
    strip_of, piece_of = np.divmod(names, mask.shape[1] // size + 1)
    stored = np.zeros((len(names), size, tile), np.uint8)
    stored[index, rank % size] = weight.codes[:, :, 0]
    inputs = np.full((len(names), size), padded_inputs(weight.cols), np.uint16)
    inputs[index, rank % size] = column
    starts = np.concatenate([[0], np.cumsum(np.bincount(strip_of, minlength=tiles))]).astype(np.int32)
    params: dict[str, Any] = {
        "kind": "table", "bits": bits, "rows": weight.rows, "k": weight.cols, "tile": tile, "tiles": tiles, "sparse": True,
        "scales": scales.kind, "scope": "one", "block": size,
    }  # fmt: skip
    # whether the products of a block, of which a lane holds half, can be added in 16 bits
    largest = int(np.abs(byte_weights.signed_table(weight)[0].astype(np.int32)).max(initial=0))
    params["narrow"] = not target.vnni and size // 2 * largest * 255 <= 32767
    arrays: list[tuple[str, Array]] = [
        ("steps", ((np.bincount(index, minlength=len(names)) + 7) // 8).astype(np.uint8)),
        ("starts", starts),
        ("inputs", inputs.reshape(-1)),
    ]
    arrays += byte_weights.code_arrays(stored.transpose(0, 2, 1), bits, target.lanes, tables=True)
    if scales.kind != "none":
        assert weight.scales is not None
        values = weight.scales.reshape(-1)
        if scales.kind != "tensor":
            rows = np.zeros((tiles * tile, weight.scales.shape[1]), np.float32)
            rows[: weight.rows] = weight.scales
            values = rows.reshape(-1)
            if grouped:
                by_tile = rows.reshape(tiles, tile, -1)
                values = by_tile[strip_of, :, piece_of // (scales.group // size)].reshape(-1)
        arrays.append(("scales", values.astype("float16" if grouped else "float32")))
    arrays += byte_weights.table_arrays(weight, params, target)
    for (name, array), arg in zip(arrays, arguments(params, target, len(names)), strict=True):
        assert (array.size, str(array.dtype)) == (arg.size, arg.dtype), (label, name, array.size, array.dtype, arg)
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays], len(names))


def arguments(p: Mapping[str, Any], target: Target, blocks: int | None = None) -> list[Arg]:
    """The kernel's pointer arguments for a packed weight, in the order of `Packed.arrays`; how many blocks there are is data."""

    def sized(each: int) -> int:
        return FROM_DATA if blocks is None else blocks * each

    args = [
        Arg("steps", "uint8", sized(1), "in"),
        Arg("starts", "int32", p["tiles"] + 1, "in"),
        Arg("inputs", "uint16", sized(p["block"]), "in"),
    ]
    for plane, _ in enumerate(byte_weights.planes(p["bits"])):
        size = sized(p["tile"] * byte_weights.plane_bytes(p, plane))
        args.append(Arg(f"codes{plane}", "uint8", size, "in"))
    if p["scales"] != "none":
        size = {"tensor": 1, "channel": p["tiles"] * p["tile"], "group": sized(p["tile"])}[p["scales"]]
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", size, "in"))
    args.append(Arg("table", "uint8", p["tables"] * byte_weights.table_bytes(p, target), "in"))
    args.append(Arg("table_scale", "float32", p["tables"], "in"))
    return args
