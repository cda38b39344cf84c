"""Compressed weights for panels of NR outputs: the physical layout (decode.py emits the reading of it).

`pack` lays the logical arrays of an encoded weight out for a kernel whose panels are NR rows of W wide. Every structure meets
every codec here, in one of three forms:

* dense: codes of all NR rows for each unit, side by side.
* strip: blocks of R rows (R a multiple of the vector width): per strip a bitmap over units and the codes of its stored blocks in
  order of units. Cost follows the stored blocks.
* element: any other structure, as single stored codes: per panel and unit one bit a row, codes in (unit, row) order; each lane
  finds its code by counting the set bits below it.

A unit is what one code stands for: one input, or `dim` inputs of a vector codec. Blocks of C > 1 units become C columns with the
same bits, which leaves the order of stored values in a row, and so the groups of scales, unchanged. `taps` > 1 writes row
k = i * taps + t of a convolution's weight to panel row t * (K / taps) + i, the (kh, kw, channel) order of gathered receptive
fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from sparsec.codegen.isa.lookup import padded_entries, permute_width
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.layout import pack_planes, plane_widths
from sparsec.formats.meaning import AffineValue, FloatValue, Meaning, TableValue, VectorValue
from sparsec.formats.structure import Dense
from sparsec.target import Target

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Packed:
    """A weight in physical form: `params` for the kernel, `arrays` in the order of `arguments(params)`."""

    params: dict[str, Any]
    arrays: list[tuple[str, Array]]


def word(bits: int) -> int:
    """Width in bits of the words a run of `bits` bits is stored in."""
    return 32 if bits % 32 == 0 else 16 if bits % 16 == 0 else 8


def planes(bits: int) -> list[tuple[int, int]]:
    """(width, shift) of the planes of a code, low bits first."""
    widths = plane_widths(bits)
    return [(width, sum(widths[:i])) for i, width in enumerate(widths)]


def _pack_rows(codes: Array, width: int) -> Array:
    """Pack codes [n, lanes] of `width` bits so that each row fills whole bytes; words as `_word` says, flat."""
    n, lanes = codes.shape
    row_bits = -(-lanes * width // 8) * 8
    if width == 8:
        return codes.astype(np.uint8).reshape(-1)
    if lanes * width % 8 == 0 and width in (1, 2, 4):
        return pack_planes(codes.astype(np.uint8).reshape(-1), width)[0].view(f"uint{word(row_bits)}")
    bits = ((codes[:, :, None] >> np.arange(width, dtype=np.uint8)) & 1).astype(np.uint8).reshape(n, lanes * width)
    packed = np.packbits(bits, axis=1, bitorder="little")
    assert packed.shape[1] * 8 == row_bits
    return packed.reshape(-1).view(f"uint{word(row_bits)}")


def pack(
    weight: Unpacked, nr: int, target: Target, *, rows: Array | None = None, taps: int = 1, label: str = "weight"
) -> Packed:
    """Lay a weight out for panels of `nr` rows.

    `rows`: int [panels * nr], the logical row at each physical one (-1: padding); default: logical order, padded at the end.
    """
    count = -(-weight.rows // nr) * nr
    if rows is None:
        rows = np.where(np.arange(count) < weight.rows, np.arange(count), -1)
    codec, scales = weight.scheme.codec, weight.scheme.scales
    lanes, k = target.lanes, -(-weight.cols // codec.dim)
    r, _ = weight.scheme.block
    panels = len(rows) // nr
    dense = isinstance(weight.scheme.structure, Dense)
    strip_rows = gcd(r, nr)
    strips_whole = strip_rows % lanes == 0 and _whole_strips(rows, strip_rows, weight.rows)
    kind = "dense" if dense else "strip" if strips_whole else "element"
    params: dict[str, Any] = {
        "k": weight.cols, "nr": nr, "panels": panels, "kind": kind, "taps": taps, "bits": codec.code_bits, "dim": codec.dim,
        "scales": scales.kind, "group": scales.group // codec.dim, "strip": strip_rows if kind == "strip" else 0,
        **_meaning(codec.meaning),
    }  # fmt: skip

    element_mask, element_codes = _elements(weight, rows)
    arrays: list[tuple[str, Array]] = []
    if kind == "dense":
        stored = element_codes.reshape(panels, nr, k).transpose(0, 2, 1).reshape(panels * k, nr)
    elif kind == "element":
        by_panel = element_mask.reshape(panels, nr, k).transpose(0, 2, 1)  # panel, k, row
        stored = element_codes.reshape(panels, nr, k).transpose(0, 2, 1)[by_panel].reshape(-1, 1)
        starts = np.zeros(panels, np.int64)
        starts[1:] = np.cumsum(by_panel.reshape(panels, -1).sum(1))[:-1]
        arrays += [
            ("positions", _pack_rows(by_panel.reshape(panels * k, nr).astype(np.uint8), 1)),
            ("starts", _int32(starts)),
        ]
    else:
        strips = element_mask.reshape(-1, strip_rows, k)[:, 0, :]
        blocks = element_codes.reshape(-1, strip_rows, k).transpose(0, 2, 1)
        stored = blocks[strips]
        starts = np.zeros(len(strips), np.int64)
        starts[1:] = np.cumsum(strips.sum(1))[:-1]
        words = np.zeros((len(strips), -(-k // 32) * 32), bool)
        words[:, :k] = strips
        arrays += [("positions", np.packbits(words, axis=1, bitorder="little").reshape(-1).view(np.uint32))]
        arrays += [("starts", _int32(starts))]
    arrays += _code_arrays(stored, codec, kind)
    arrays += _scale_arrays(weight, rows, panels, nr, params)
    groups = weight.scales.shape[1] if weight.scales is not None else 0
    arrays += _codebook_arrays(weight, rows, panels, nr, target, params)
    for (_, array), arg in zip(arrays, arguments(params, len(stored), groups), strict=True):
        assert array.size == arg.size, (label, arg.name, array.size, arg.size)
        assert str(array.dtype) == arg.dtype, (label, arg.name, array.dtype, arg.dtype)
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays])


def _int32(values: Array) -> Array:
    assert values.size == 0 or values.max() < 2**31
    return values.astype(np.int32)


def _meaning(meaning: Meaning) -> dict[str, Any]:
    """What the kernel has to know of a codec: its word of the vocabulary and that word's parameters."""
    if isinstance(meaning, FloatValue):
        return {"word": "float", "width": meaning.width}
    if isinstance(meaning, AffineValue):
        return {"word": "affine", "offset": meaning.offset}
    if isinstance(meaning, TableValue):
        return {"word": "table"}
    return {"word": "vector", "stage_bits": meaning.bits, "stages": meaning.stages}


def _whole_strips(rows: Array, r: int, count: int) -> bool:
    """Whether every aligned run of r physical rows is one logical strip (or padding only)."""
    runs = rows.reshape(-1, r)
    first = runs[:, :1]
    wanted = first + np.arange(r)
    wanted = np.where((first < 0) | (wanted >= count), -1, wanted)
    return bool(((first[:, 0] < 0) | (first[:, 0] % r == 0)).all() and (runs == wanted).all())


def _elements(weight: Unpacked, rows: Array) -> tuple[Array, Array]:
    """Mask and codes [physical rows, units]; rows that are padding hold nothing."""
    (r, c), (nb, kb) = weight.scheme.block, weight.block_mask.shape
    dim = weight.scheme.codec.dim
    c, units = max(c // dim, 1), -(-weight.cols // dim)
    if isinstance(weight.scheme.structure, Dense):
        codes = weight.codes.reshape(weight.rows, units)
        if len(rows) != weight.rows or (rows < 0).any() or (np.diff(rows) != 1).any():
            codes = codes[np.maximum(rows, 0)]
            codes[rows < 0] = 0
        return np.broadcast_to((rows >= 0)[:, None], codes.shape), codes
    codes = np.zeros((nb, kb, r, c), weight.codes.dtype)
    codes[weight.block_mask] = weight.codes
    codes = codes.transpose(0, 2, 1, 3).reshape(nb * r, kb * c)[: weight.rows, :units]
    mask = np.repeat(np.repeat(weight.block_mask, r, 0), c, 1)[: weight.rows, :units]
    index = np.maximum(rows, 0)
    mask, codes = mask[index], codes[index]
    codes[rows < 0] = 0
    # The last strip of a blocked structure may reach past the last row; keep its bits so that the strip stays whole.
    strip_first = np.maximum.accumulate(np.where(rows >= 0, np.arange(len(rows)), 0))
    padding = rows < 0
    inside = padding & (np.arange(len(rows)) - strip_first < r) & ((np.arange(len(rows)) % r) > (strip_first % r))
    mask[padding] = False
    mask[inside] = mask[strip_first[inside]]
    return mask, codes


def _code_arrays(stored: Array, codec: Any, kind: str) -> list[tuple[str, Array]]:
    if codec.code_bits == 0:
        flat = stored.reshape(-1)
        return [("codes", np.concatenate([flat, np.zeros(1, flat.dtype)]) if kind == "element" else flat)]
    arrays = []
    for plane, (width, shift) in enumerate(planes(codec.code_bits)):
        part = ((stored >> shift) & ((1 << width) - 1)).astype(np.uint8)
        if kind == "element":
            # one stream of codes, a spare byte at the end for the lanes that hold nothing
            bits = ((part.reshape(-1, 1) >> np.arange(width, dtype=np.uint8)) & 1).astype(np.uint8).reshape(-1)
            stream = np.packbits(bits, bitorder="little")
            arrays.append((f"codes{plane}", np.concatenate([stream, np.zeros(1, np.uint8)])))
        else:
            arrays.append((f"codes{plane}", _pack_rows(part, width)))
    return arrays


def _scale_arrays(
    weight: Unpacked, rows: Array, panels: int, nr: int, params: dict[str, Any]
) -> list[tuple[str, Array]]:
    if weight.scales is None:
        params["groups"] = 0
        return []
    groups = 1 if weight.scheme.scales.kind == "tensor" else weight.scales.shape[1]
    params["groups"] = FROM_DATA if groups_are_data(params) else groups

    def physical(array: Array, dtype: str) -> Array:
        if weight.scheme.scales.kind == "tensor":
            return array.reshape(-1).astype(dtype)
        picked = array[np.maximum(rows, 0)] * (rows >= 0)[:, None]
        return picked.reshape(panels, nr, groups).transpose(0, 2, 1).reshape(-1).astype(dtype)

    arrays = [("groups", np.array([groups], np.int32))] if groups_are_data(params) else []
    arrays += [("scales", physical(weight.scales, "float16" if weight.scheme.scales.kind == "group" else "float32"))]
    if weight.zero_points is not None:
        arrays.append(("zero_points", physical(weight.zero_points, "uint8")))
    return arrays


def _codebook_arrays(
    weight: Unpacked, rows: Array, panels: int, nr: int, target: Target, params: dict[str, Any]
) -> list[tuple[str, Array]]:
    if weight.codebook is None:
        return []
    meaning = weight.scheme.codec.meaning
    assert isinstance(meaning, TableValue | VectorValue)
    book = weight.codebook.reshape(len(weight.codebook), -1)
    in_registers = isinstance(meaning, TableValue) and book.shape[1] <= permute_width(target)
    entries = padded_entries(book.shape[1]) if in_registers else book.shape[1]
    padded = np.zeros((len(book), entries), np.float32)
    padded[:, : book.shape[1]] = book
    params["entries"], params["books"] = entries, len(book)
    size = meaning.scope.span
    if len(book) == 1:
        params["scope"] = "one"
        return [("codebook", padded.reshape(-1))]
    if meaning.scope.kind == "inputs":
        params |= {"scope": "col", "scope_cols": size // meaning.dim}
        return [("codebook", padded.reshape(-1))]
    base = np.where(rows >= 0, rows // size, 0).astype(np.int32)
    per_panel = base.reshape(panels, nr)
    valid = (rows >= 0).reshape(panels, nr)
    uniform = all(len(set(b[v].tolist())) <= 1 for b, v in zip(per_panel, valid, strict=True))
    if uniform:
        first = np.array([b[v][0] if v.any() else 0 for b, v in zip(per_panel, valid, strict=True)], np.int32)
        params["scope"] = "panel"
        return [("codebook", padded.reshape(-1)), ("scopes", first * np.int32(entries))]
    params["scope"] = "lane"
    return [("codebook", padded.reshape(-1)), ("scopes", base * np.int32(entries))]


def units(p: Mapping[str, Any]) -> int:
    """Codes in a row of W."""
    return int(-(-p["k"] // p["dim"]))


def has_zero_points(p: Mapping[str, Any]) -> bool:
    """Whether a zero point is stored beside every scale."""
    return p["word"] == "affine" and p["offset"] is None


def groups_are_data(p: Mapping[str, Any]) -> bool:
    """Whether the rows of other weights of this shape and scheme may have more groups of stored values, or fewer."""
    return bool(p["kind"] != "dense" and p["scales"] == "group")


def arguments(p: Mapping[str, Any], stored: int | None = None, groups: int | None = None) -> list[Arg]:
    """The kernel's pointer arguments for a packed weight, in the order of `Packed.arrays`. How many runs of codes of a sparse
    weight are `stored`, and how many `groups` of scales its longest row has, is data."""
    k, nr, panels, kind = units(p), p["nr"], p["panels"], p["kind"]
    if kind == "dense":
        stored = panels * k
    args: list[Arg] = []
    if kind == "element":
        bits = -(-nr // 8) * 8
        args.append(Arg("positions", f"uint{word(bits)}", panels * k * (bits // word(bits)), "in"))
        args.append(Arg("starts", "int32", panels, "in"))
    elif kind == "strip":
        strips = panels * nr // p["strip"]
        args.append(Arg("positions", "uint32", strips * -(-k // 32), "in"))
        args.append(Arg("starts", "int32", strips, "in"))
    run = {"dense": nr, "strip": p["strip"], "element": 1}[kind]

    count = stored or 0

    def codes(name: str, dtype: str, size: int) -> None:
        args.append(Arg(name, dtype, FROM_DATA if stored is None else size, "in"))

    if p["bits"] == 0:
        codes("codes", f"float{p['width']}", count * run + (kind == "element"))
    for plane, (width, _) in enumerate(planes(p["bits"])):
        if kind == "element":
            codes(f"codes{plane}", "uint8", -(-count * width // 8) + 1)
        elif width == 8:
            codes(f"codes{plane}", "uint8", count * run)
        else:
            bits = -(-run * width // 8) * 8
            codes(f"codes{plane}", f"uint{word(bits)}", count * bits // word(bits))
    if p["scales"] != "none":
        size = 1 if p["scales"] == "tensor" else panels * p["groups"] * nr
        if groups_are_data(p):
            args.append(Arg("groups", "int32", 1, "in"))
            size = FROM_DATA if groups is None else panels * groups * nr
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", size, "in"))
        if has_zero_points(p):
            args.append(Arg("zero_points", "uint8", size, "in"))
    if p["word"] in ("table", "vector"):
        args.append(Arg("codebook", "float32", p["books"] * p["entries"], "in"))
        if p["scope"] in ("panel", "lane"):
            args.append(Arg("scopes", "int32", panels if p["scope"] == "panel" else panels * nr, "in"))
    return args
