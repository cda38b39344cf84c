"""Rows of a coded table (sparsec::Gather): the table stays packed, only the rows looked up are decoded.

Physical form, a row of W at a time (a code stands for one input, or for `dim` of a vector codec): codes are padded to whole
groups of 8, so that plane w of a row starts at byte group * w; sparse structures add a bitmap over the blocks of each strip of R
rows and the first group of each strip's codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gather import index_tensor
from sparsec.codegen.kernels.indices import checked_index
from sparsec.codegen.program import FROM_DATA, Arg, Signature
from sparsec.errors import SparsecError
from sparsec.formats.encoded import EncodedWeight, Unpacked, unpack
from sparsec.formats.layout import pack_planes, plane_widths
from sparsec.formats.meaning import AffineValue, Meaning, TableValue, VectorValue
from sparsec.op_view import view
from sparsec.target import Target

Array = np.ndarray[Any, Any]
_GROUP = 8  # codes: the smallest count that is whole bytes at every width


def pack(weight: Unpacked) -> tuple[dict[str, Any], dict[str, Array]]:
    """Parameters and arrays (by argument name) of the kernel for a weight."""
    codec, scales = weight.scheme.codec, weight.scheme.scales
    r, dim = weight.scheme.block[0], codec.dim
    c = max(weight.scheme.block[1] // dim, 1)  # in codes, like everything here
    units = -(-weight.cols // dim)
    unit = _GROUP if codec.code_bits else 1
    arrays: dict[str, Array] = {}
    if weight.scheme.is_dense:
        per_row = -(-units // unit) * unit
        stored = np.zeros((weight.rows, per_row), weight.codes.dtype)
        stored[:, :units] = weight.codes.reshape(weight.rows, units)
        flat = stored.reshape(-1)
    else:
        counts = weight.block_mask.sum(1)
        groups = -(-counts * c // unit)  # of one row of each strip
        first = np.concatenate([[0], np.cumsum(groups * r)])
        # one more group: a row without stored values still reads its first one
        flat = np.zeros((int(first[-1]) + 1) * unit, weight.codes.dtype)
        begin = np.concatenate([[0], np.cumsum(counts)])
        for strip in range(len(counts)):
            rows = weight.codes[begin[strip] : begin[strip + 1]].transpose(1, 0, 2).reshape(r, -1)
            placed = flat[first[strip] * unit : first[strip + 1] * unit].reshape(r, -1)
            placed[:, : rows.shape[1]] = rows
        arrays["positions"] = np.packbits(weight.block_mask, axis=1, bitorder="little").reshape(-1)
        arrays["starts"] = first.astype(np.int32)
    if codec.code_bits:
        arrays |= {f"codes{plane}": packed for plane, packed in enumerate(pack_planes(flat, codec.code_bits))}
    else:
        arrays["codes0"] = flat
    if weight.scales is not None:
        arrays["scales"] = weight.scales.astype(np.float16 if scales.kind == "group" else np.float32).reshape(-1)
    if weight.zero_points is not None:
        arrays["zero_points"] = weight.zero_points.reshape(-1)
    if weight.codebook is not None:
        arrays["codebook"] = weight.codebook.reshape(-1)
    groups = 1 if weight.scales is None else weight.scales.shape[1]
    if scales.kind == "group" and not weight.scheme.is_dense:
        arrays["groups"] = np.array([groups], np.int32)
    meaning = codec.meaning
    # how many codes of a sparse table are stored, and in how many groups of scales, is data
    data = () if weight.scheme.is_dense else ("codes0", "codes1", "codes2", "codes3", "scales", "zero_points")
    params: dict[str, Any] = {
        "rows": weight.rows,
        "cols": weight.cols,
        "block": None if weight.scheme.is_dense else list(weight.scheme.block),
        "bits": codec.code_bits,
        "dim": dim,
        "stages": meaning.stages if isinstance(meaning, VectorValue) else 1,
        "offset": meaning.offset or 0 if isinstance(meaning, AffineValue) else 0,
        "scales": scales.kind,
        "group": scales.group // dim,
        "scale_groups": FROM_DATA if "groups" in arrays else groups,
        "scope": meaning.scope.kind if isinstance(meaning, TableValue | VectorValue) else "",
        "span": _span(meaning),
        "arrays": {
            name: [str(array.dtype), FROM_DATA if name in data else int(array.size)] for name, array in arrays.items()
        },
    }
    return params, arrays


def _span(meaning: Meaning) -> int:
    """Rows, or codes of a row, that share a table."""
    if not isinstance(meaning, TableValue | VectorValue):
        return 0
    return meaning.scope.span // (meaning.dim if meaning.scope.kind == "inputs" else 1)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: rows looked up. Arguments: indices, the packed arrays in sorted order, the result [count, cols] float32."""
    arrays = [Arg(name, dtype, size, "in") for name, (dtype, size) in sorted(p["arrays"].items())]
    args = (
        Arg("indices", p["index_dtype"], p["count"], "in"),
        *arrays,
        Arg("dst", "float32", p["count"] * p["cols"], "out"),
    )
    return Signature(args, units=p["count"], cost=8 * p["count"] * p["cols"], may_fail=True)


class _Row:
    """Emits the decoding of values of one row; `lanes` is 8 (a whole group) or 1."""

    def __init__(self, p: Mapping[str, Any], k: Any, row: Any) -> None:
        self.p, self.k, self.T, self.row = p, k, k.T, row

    def codes(self, start: Any, at: Any, lanes: int) -> Any:
        """Stored codes (int32) or values (float32) at `at` from group `start` on; 8 lanes: `at` is a multiple of 8."""
        T, k = self.T, self.k
        if not self.p["bits"]:
            value = k.load(k.arg("codes0"), start + at, lanes)
            return value if self.p["arrays"]["codes0"][0] == "float32" else self._cast("float32", value, lanes)
        total: Any = None
        shift = 0
        for plane, width in enumerate(plane_widths(self.p["bits"])):
            buffer = k.arg(f"codes{plane}")
            first = start * width
            if lanes == 1:
                byte = T.Cast("int32", k.load(buffer, first + ((at * width) >> 3)))
                part = (byte >> ((at * width) & 7)) & T.int32((1 << width) - 1)
            elif width == 8:
                part = self._cast("int32", k.load(buffer, first + at, 8), 8)
            else:  # the group's bytes as one word, spread over the lanes
                begin = first + (at >> 3) * width
                word: Any = T.int32(0)
                for byte in range(width):
                    word = word | (T.Cast("int32", k.load(buffer, begin + byte)) << T.int32(8 * byte))
                shifts = T.ramp(T.int32(0), width, 8)
                part = (k.splat(bind(k, word), 8) >> shifts) & k.i32((1 << width) - 1, 8)
            total = part if shift == 0 else total | (part << k.i32(shift, lanes))
            shift += width
        return bind(k, total)

    def value(self, code: Any, rank: Any, unit: Any, lanes: int, count: int = 1) -> Any:
        """Decoded float32 of `lanes` codes, or the first `count` values of one code of a vector codec.

        `rank` counts stored codes of the row (for scale groups), `unit` is the place in the row.
        """
        T, k, p = self.T, self.k, self.p
        if p["scope"]:
            value = self._vector(code, self._table(unit), count) if p["dim"] > 1 else self._entry(code, unit, lanes)
        elif not p["bits"]:
            value = code
        elif "zero_points" in p["arrays"]:
            zero = T.Cast("int32", k.load(k.arg("zero_points"), self._scale_index(rank)))
            value = self._cast("float32", code - k.splat(zero, lanes), lanes)
        else:
            value = self._cast("float32", code - k.i32(p["offset"], lanes), lanes)
        if p["scales"] == "none":
            return value
        scale = T.Cast("float32", k.load(k.arg("scales"), self._scale_index(rank)))
        return value * k.splat(scale, max(lanes, count))

    def _table(self, unit: Any) -> Any:
        """Number of the table of this row or input."""
        p = self.p
        if p["scope"] == "tensor":
            return self.T.int32(0)
        return self.T.truncdiv(self.row if p["scope"] == "rows" else unit, p["span"])

    def _entry(self, code: Any, unit: Any, lanes: int) -> Any:
        if self.p["scope"] != "tensor":
            code = code + self.k.splat(self._table(unit) * (1 << self.p["bits"]), lanes)
        return self.k.arg("codebook")[code]

    def _vector(self, code: Any, table: Any, count: int) -> Any:
        """Sum over stages of the first `count` values of their entries."""
        T, k, p = self.T, self.k, self.p
        bits = p["bits"] // p["stages"]
        total = None
        for stage in range(p["stages"]):
            part = (code >> T.int32(stage * bits)) & T.int32((1 << bits) - 1)
            entry = ((table * p["stages"] + stage) << bits) + part
            value = k.load(k.arg("codebook"), entry * p["dim"], count)
            total = value if total is None else total + value
        return total

    def _scale_index(self, rank: Any) -> Any:
        p = self.p
        if p["scales"] == "tensor":
            return 0
        if p["scales"] == "channel":
            return self.row
        groups = self.k.load(self.k.arg("groups"), 0) if p["scale_groups"] == FROM_DATA else p["scale_groups"]
        return self.row * groups + self.T.truncdiv(rank, p["group"])

    def _cast(self, dtype: str, value: Any, lanes: int) -> Any:
        return self.T.Cast(dtype if lanes == 1 else f"{dtype}x{lanes}", value)


def build(p: Mapping[str, Any], k: Any) -> None:
    """A unit checks its index and decodes the row: dense rows 8 values at a time, sparse rows block by block."""
    T = k.T
    cols, dst, dim = p["cols"], k.arg("dst"), p["dim"]
    units = -(-cols // dim)
    with T.serial(k.lo, k.hi) as unit:
        row = _Row(p, k, checked_index(k, k.arg("indices"), unit, p["rows"], p["index_dtype"]))
        out = T.bind(unit * cols)
        if p["block"]:
            _sparse_row(p, k, row, dst, out)
            return
        start = T.bind(row.row * (-(-units // _GROUP) if p["bits"] else units))
        # Eight values share their scale and codebook, or they are decoded one by one.
        uniform = p["group"] % _GROUP == 0 and (p["scope"] != "inputs" or p["span"] % _GROUP == 0)
        whole = units // _GROUP * _GROUP if uniform and dim == 1 else 0
        if whole:
            with T.serial(0, whole // _GROUP) as g:
                at = T.bind(g * _GROUP)
                k.store(dst, out + at, row.value(row.codes(start, at, 8), at, at, 8), 8)
        full = cols // dim
        if whole < full:
            with T.serial(whole, full) as at:
                k.store(dst, out + at * dim, row.value(row.codes(start, at, 1), at, at, 1, dim), dim)
        if full < units:
            value = row.value(row.codes(start, T.int32(full), 1), T.int32(full), T.int32(full), 1, cols % dim)
            k.store(dst, out + full * dim, value, cols % dim)


def _sparse_row(p: Mapping[str, Any], k: Any, row: _Row, dst: Any, out: Any) -> None:
    T = k.T
    (r, c), cols, dim = p["block"], p["cols"], p["dim"]
    blocks = -(-cols // c)
    strip = T.bind(T.truncdiv(row.row, r))
    first = T.bind(k.load(k.arg("starts"), strip))
    groups = T.truncdiv(k.load(k.arg("starts"), strip + 1) - first, r)
    start = T.bind(first + (row.row % r) * groups)
    seen = k.local(1, "int32")
    k.store(seen, 0, T.int32(0))
    with T.serial(0, blocks) as b:
        byte = T.Cast("int32", k.load(k.arg("positions"), strip * (-(-blocks // 8)) + (b >> 3)))
        has = T.bind((byte >> (b & 7)) & 1)
        rank = T.bind(k.load(seen, 0))

        def emit(width: int, b: Any = b, has: Any = has, rank: Any = rank) -> None:
            """One block; `width` of its inputs lie inside W."""
            with T.If(has != 0):
                with T.Then():
                    for i in range(-(-width // dim)):
                        code = row.codes(start, rank + i, 1)
                        count = min(dim, width - i * dim)
                        value = row.value(code, rank + i, b * (c // dim) + i, 1, count)
                        k.store(dst, out + b * c + i * dim, value, count)
                    k.store(seen, 0, rank + c // dim)
                with T.Else():
                    for i in range(width):
                        k.store(dst, out + b * c + i, T.float32(0))

        if cols % c == 0:
            emit(c)
            return
        with T.If(b < blocks - 1):
            with T.Then():
                emit(c)
            with T.Else():
                emit(cols % c)


def lower_lookup(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Gather of every scheme."""
    parsed = view(node)
    assert parsed.indices is not None
    indices = index_tensor(low, parsed.indices)
    if isinstance(indices, Refusal):
        return indices
    try:
        weight = parsed.weight()
    except SparsecError as error:
        return Refusal(str(error))
    name = parsed.weight_inputs.values[0].name or "table"
    dest = low.new(parsed.output)
    if dest.size == 0:
        return None
    note = f"{list(indices.shape)} of [{parsed.rows}, {parsed.cols}], {parsed.scheme}"
    ids = {"index_dtype": indices.dtype, "count": indices.size}
    if not isinstance(weight, EncodedWeight):
        plain = {"dtype": "float32", "outer": 1, "batched": False, "dims": [parsed.rows], "inner": parsed.cols, **ids}
        ins = [low.const(weight, name), indices]
        low.call("gather", plain, ins, [dest], node=node.name or "", op="Gather", note=note)
        return None
    params, arrays = pack(unpack(weight))
    packed = [low.const(array, f"{name}.{role}") for role, array in sorted(arrays.items())]
    low.call("lookup", {**params, **ids}, [indices, *packed], [dest], node=node.name or "", op="Gather", note=note)
    return None
