"""The ONNX body that turns the stored arrays of a weight back into float32 W: `formats.decode`, in standard operators.

Everything counts codes: where a code stands for `dim` inputs, `cols`, block widths and groups are divided by it, and
only the values at the end are as wide as W. Index arithmetic is int64. Positions that are not stored read the element
-1 of a stream with one zero appended, so that a weight without any stored block needs no special case.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from sparsec.formats.layout import plane_widths, zero_point_bits
from sparsec.formats.meaning import FloatValue, Side, TableValue, VectorValue
from sparsec.formats.scheme import Scheme
from sparsec.onnx_body import Body

__all__ = ["decode_body"]


def decode_body(
    body: Body, arrays: Mapping[str, ir.Value], scheme: Scheme, rows: int, cols: int, row_ids: ir.Value | None = None
) -> ir.Value:
    """float32 W[rows, cols], or its rows `row_ids` (int64 [n], nonnegative), from the arrays of `scheme.roles`."""
    if scheme.is_plain:
        plain = arrays["codes"]
        return plain if row_ids is None else body.op("Gather", plain, row_ids, axis=0)
    dim = scheme.codec.dim
    width = -(-cols // dim)
    if scheme.is_dense:
        if row_ids is None:
            codes = _all_codes(body, arrays, scheme, rows, width)
        else:
            codes = _codes_of_rows(body, arrays, scheme, rows, width, row_ids)
        values = _values(body, arrays, scheme, rows, width, codes, None, row_ids)
        return values if dim == 1 else _elements(body, values, cols, dim)
    index, stored, group = _stored_index(body, arrays["positions"], scheme, rows, width)
    codes = _codes_at(body, arrays, scheme, index)
    values = _values(body, arrays, scheme, rows, width, codes, group, None)
    if dim > 1:
        stored = body.op("Unsqueeze", stored, body.ints_const([-1]))
    weight = body.op("Where", stored, values, body.float_const(0))
    if dim > 1:
        weight = _elements(body, weight, cols, dim)
    return weight if row_ids is None else body.op("Gather", weight, row_ids, axis=0)


def _elements(body: Body, vectors: ir.Value, cols: int, dim: int) -> ir.Value:
    """[n, cols] of values [n, codes, dim]; the last code of a row may reach past it."""
    flat = body.op("Reshape", vectors, body.ints_const([0, -1]))
    if cols % dim == 0:
        return flat
    return body.op("Slice", flat, body.ints_const([0]), body.ints_const([cols]), body.ints_const([1]))


def _values(
    body: Body,
    arrays: Mapping[str, ir.Value],
    scheme: Scheme,
    rows: int,
    cols: int,
    codes: ir.Value,
    group: ir.Value | None,
    row_ids: ir.Value | None,
) -> ir.Value:
    """Codes [n, cols] to float32, with their scales, zero points and codebook scope; vector codecs: [n, cols, dim]."""
    meaning = scheme.codec.meaning

    def shared(role: str) -> ir.Value | None:
        value = arrays.get(role)
        if value is None:
            return None
        of_rows = None if scheme.scales.kind == "tensor" else row_ids
        if role == "zero_points":
            value = _zero_points(body, value, arrays["scales"], scheme, cols, of_rows)
        elif of_rows is not None:
            value = body.op("Gather", value, of_rows, axis=0)
        if scheme.scales.kind == "tensor":
            return value
        if scheme.scales.kind == "channel":
            return value
        if group is not None:
            return body.op("GatherElements", value, group, axis=1)
        column_group = body.op("Div", body.arange(cols), body.int_const(scheme.scales.group // meaning.dim))
        return body.op("Gather", value, column_group, axis=1)

    scale = shared("scales")
    if scale is not None and scheme.scales.kind == "group":
        scale = body.cast(scale, "FLOAT")
    scope = None
    if isinstance(meaning, TableValue | VectorValue) and meaning.scope.count(rows, cols * meaning.dim) > 1:
        span = meaning.scope.span
        if meaning.scope.kind == "rows":
            line = body.arange(rows) if row_ids is None else row_ids
            line = body.op("Unsqueeze", line, body.ints_const([1]))
        else:
            line, span = body.arange(cols), span // meaning.dim
        scope = body.op("Div", line, body.int_const(span))
    return meaning.onnx_decode(body, codes, Side(scale, shared("zero_points"), arrays.get("codebook"), scope))


def _zero_points(
    body: Body, stream: ir.Value, scales: ir.Value, scheme: Scheme, cols: int, row_ids: ir.Value | None
) -> ir.Value:
    """uint8 in the shape of the scales, or of their rows `row_ids`; `cols` as codes count."""
    width = zero_point_bits(scheme.codec.code_bits)
    if row_ids is not None:
        groups = -(-cols * scheme.codec.dim // scheme.scales.group) if scheme.scales.kind == "group" else 1
        return _lanes_at(body, stream, width, _elements_of_rows(body, row_ids, groups))
    shape = body.op("Shape", scales)
    size = body.op("Reshape", body.op("Size", scales), body.ints_const([1]))
    lanes = _lanes(body, stream, width)
    return body.op("Reshape", body.op("Slice", lanes, body.ints_const([0]), size), shape)


def _lanes(body: Body, plane: ir.Value, width: int) -> ir.Value:
    """Flat uint8 values of a bit stream, with the padding of its last byte."""
    if width == 8:
        return plane
    shifts = body.const((np.arange(8 // width) * width).astype(np.uint8))
    spread = body.op("BitShift", body.op("Unsqueeze", plane, body.ints_const([1])), shifts, direction="RIGHT")
    return body.op("Reshape", _masked(body, spread, width), body.ints_const([-1]))


def _first_lanes(body: Body, plane: ir.Value, width: int, count: int) -> ir.Value:
    """The first `count` uint8 values of a bit stream of so many, without padding."""
    lanes = _lanes(body, plane, width)
    if count % (8 // width) == 0:
        return lanes
    return body.op("Slice", lanes, body.ints_const([0]), body.ints_const([count]))


def _lanes_at(body: Body, plane: ir.Value, width: int, element: ir.Value) -> ir.Value:
    """uint8: values of a bit stream at some places, reading only the bytes that hold them."""
    per_byte = body.int_const(8 // width)
    value = body.op("Gather", plane, body.op("Div", element, per_byte), axis=0)
    if width == 8:
        return value
    lane = body.op("Mul", body.op("Mod", element, per_byte), body.int_const(width))
    return _masked(body, body.op("BitShift", value, body.cast(lane, "UINT8"), direction="RIGHT"), width)


def _masked(body: Body, value: ir.Value, width: int) -> ir.Value:
    return body.op("BitwiseAnd", value, body.const(np.array((1 << width) - 1, np.uint8)))


def _joined(body: Body, parts: list[ir.Value], bits: int) -> ir.Value:
    """Codes from the values of their planes, lowest bits first."""
    wide = bits > 8
    if wide:
        parts = [body.cast(part, "UINT32") for part in parts]
    codes, shift = parts[0], plane_widths(bits)[0]
    for part, width in zip(parts[1:], plane_widths(bits)[1:], strict=True):
        by = np.array(shift, np.uint32 if wide else np.uint8)
        high = body.op("BitShift", part, body.const(by), direction="LEFT")
        codes = body.op("BitwiseOr", codes, high)
        shift += width
    return codes


def _planes(arrays: Mapping[str, ir.Value], scheme: Scheme) -> list[tuple[ir.Value, int]]:
    widths = plane_widths(scheme.codec.code_bits)
    return [(arrays[f"codes{i}" if i else "codes"], width) for i, width in enumerate(widths)]


def _all_codes(body: Body, arrays: Mapping[str, ir.Value], scheme: Scheme, rows: int, cols: int) -> ir.Value:
    """Codes [rows, cols] of a dense structure."""
    shape = body.ints_const([rows, cols])
    if not scheme.codec.code_bits:
        return body.op("Reshape", arrays["codes"], shape)
    parts = [_first_lanes(body, plane, width, rows * cols) for plane, width in _planes(arrays, scheme)]
    return body.op("Reshape", _joined(body, parts, scheme.codec.code_bits), shape)


def _codes_of_rows(
    body: Body, arrays: Mapping[str, ir.Value], scheme: Scheme, rows: int, cols: int, row_ids: ir.Value
) -> ir.Value:
    """Codes [n, cols] of some rows of a dense structure, reading only the bytes that hold them."""
    if not scheme.codec.code_bits:
        table = body.op("Reshape", arrays["codes"], body.ints_const([rows, cols]))
        return body.op("Gather", table, row_ids, axis=0)
    element = _elements_of_rows(body, row_ids, cols)
    parts = [_lanes_at(body, plane, width, element) for plane, width in _planes(arrays, scheme)]
    return _joined(body, parts, scheme.codec.code_bits)


def _elements_of_rows(body: Body, row_ids: ir.Value, each: int) -> ir.Value:
    """int64 [n, each]: where the elements of some rows of `each` stand in a stream."""
    first = body.op("Mul", body.op("Unsqueeze", row_ids, body.ints_const([1])), body.int_const(each))
    return body.op("Add", first, body.arange(each))


def _codes_at(body: Body, arrays: Mapping[str, ir.Value], scheme: Scheme, index: ir.Value) -> ir.Value:
    """Codes at positions of the stored stream; zero where the index is -1."""
    if not scheme.codec.code_bits:
        meaning = scheme.codec.meaning
        dtype = np.float16 if isinstance(meaning, FloatValue) and meaning.width == 16 else np.float32
        stream = body.op("Concat", arrays["codes"], body.const(np.zeros(1, dtype)), axis=0)
        return body.op("Gather", stream, index, axis=0)
    zero = body.const(np.zeros(1, np.uint8))
    parts = [
        body.op("Gather", body.op("Concat", _lanes(body, plane, width), zero, axis=0), index, axis=0)
        for plane, width in _planes(arrays, scheme)
    ]
    return _joined(body, parts, scheme.codec.code_bits)


def _stored_index(
    body: Body, positions: ir.Value, scheme: Scheme, rows: int, cols: int
) -> tuple[ir.Value, ir.Value, ir.Value | None]:
    """Of each element of W: its place in the stored stream or -1, whether it is stored, and its scale group."""
    (r, c), dim = scheme.block, scheme.codec.dim
    c //= dim
    strips, columns = -(-rows // r), -(-cols // c)
    grid = body.ints_const([strips, columns])
    bits = body.cast(_first_lanes(body, positions, 1, strips * columns), "INT64")
    rank = body.op("Sub", body.op("CumSum", bits, body.int_const(0)), body.int_const(1))
    row, col = body.arange(rows), body.arange(cols)
    size_r, size_c = body.int_const(r), body.int_const(c)

    def expand(flat: ir.Value) -> ir.Value:
        wide = body.op("Reshape", flat, grid)
        if r > 1:
            wide = body.op("Gather", wide, body.op("Div", row, size_r), axis=0)
        return body.op("Gather", wide, body.op("Div", col, size_c), axis=1) if c > 1 else wide

    stored = body.cast(expand(bits), "BOOL")
    index = expand(rank)
    if (r, c) != (1, 1):
        index = body.op("Mul", index, body.int_const(r * c))
        inner_row = body.op("Mul", body.op("Mod", row, size_r), size_c)
        index = body.op("Add", index, body.op("Unsqueeze", inner_row, body.ints_const([1])))
        index = body.op("Add", index, body.op("Mod", col, size_c))
    index = body.op("Where", stored, index, body.int_const(-1))
    if scheme.scales.kind != "group":
        return index, stored, None
    in_strip = body.op("CumSum", body.op("Reshape", bits, grid), body.int_const(1), exclusive=1)
    group = body.op("Div", body.op("Mul", expand(in_strip), size_c), body.int_const(scheme.scales.group // dim))
    return index, stored, body.op("Where", stored, group, body.int_const(0))
