"""Values of sparse weights inside spmm.py: how they are stored, and their decoding to float32.

Values lie in the order of spmm_weights.py, S to an entry. Plain float32 ones are read in place. Any other codec is decoded into
per-thread scratch once for all pixel tiles of a unit, in at most two passes: a flat one over the codes (a vector at a time,
without regard to rows), and, where a value depends on its row or column (scales and zero points of groups, codebooks with
scopes), one over the runs. Scales of the tensor or of rows are not applied here: the epilogue multiplies sums by them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.codegen.isa.lookup import RegisterTable, gather, padded_entries, permute_width
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.spmm_weights import Entries, entry_values
from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked
from sparsec.formats.layout import pack_planes, plane_widths
from sparsec.formats.meaning import AffineValue, FloatValue, TableValue

Array = np.ndarray[Any, Any]

PAD = 8  # groups of entries start at multiples of it where codes are narrower than a byte
SLACK = 64  # elements after the last that the vector loops may read


def describe(weight: Unpacked) -> dict[str, Any]:
    """The parameters of a weight's values (JSON-able; no sizes that depend on the order of entries)."""
    codec, scales = weight.scheme.codec, weight.scheme.scales
    meaning = codec.meaning
    p: dict[str, Any] = {"bits": codec.code_bits, "scales": scales.kind}
    if isinstance(meaning, FloatValue):
        p |= {"word": "float", "width": meaning.width}
    elif isinstance(meaning, AffineValue):
        p |= {"word": "affine", "offset": meaning.offset}
    else:
        assert isinstance(meaning, TableValue), "codes of several inputs are refused by the rule"
        assert weight.codebook is not None
        books, size = weight.codebook.shape
        p |= {"word": "table", "books": books, "book": padded_entries(size), "scope": "one"}
        if books > 1:
            p |= {"scope": meaning.scope.kind, "span": meaning.scope.span}
    if scales.kind == "group":
        p |= {"group": scales.group}
    return p


def is_plain(p: Mapping[str, Any]) -> bool:
    """Whether values are read in place."""
    return bool(
        p["word"] in ("whole", "fixed") or (p["word"] == "float" and p["width"] == 32 and p["scales"] != "group")
    )


def needs_runs(p: Mapping[str, Any]) -> bool:
    """Whether values depend on their row or column."""
    scoped = p["word"] == "table" and p["scope"] != "one"
    return bool(p["scales"] == "group" or scoped or (has_zero_points(p) and p["scales"] == "channel"))


def has_zero_points(p: Mapping[str, Any]) -> bool:
    """Whether zero points are stored beside the scales."""
    return bool(p["word"] == "affine" and p["offset"] is None)


def entry_pad(p: Mapping[str, Any]) -> int:
    """`pad` of spmm_weights.arrange."""
    return PAD if p["bits"] > 0 and p["bits"] != 8 else 1


def arrays(weight: Unpacked, entries: Entries, strip: int, p: Mapping[str, Any]) -> list[tuple[str, Array]]:
    """Named arrays in the order of `arguments`."""
    flat = entry_values(weight, entries, strip).reshape(-1)
    strips = int(entries.bounds[-1])
    found: list[tuple[str, Array]] = []
    if p["bits"] == 0:
        extra = 0 if is_plain(p) else SLACK
        found.append(("values", np.concatenate([flat, np.zeros(extra, flat.dtype)])))
    else:
        found += code_arrays(np.concatenate([flat, np.zeros(SLACK, flat.dtype)]), p["bits"])

    def by_row(values: Array) -> Array:
        padded = np.zeros((strips * strip, values.shape[1]), values.dtype)
        padded[: weight.rows] = values
        return padded.reshape(-1)

    if needs_runs(p):
        found.append(("ranks", entries.ranks))
    if weight.scales is not None:
        if p["scales"] == "group":
            found.append(("groups", np.array([weight.scales.shape[1]], np.int32)))
            found.append(("scales", by_row(weight.scales.astype(np.float16))))
        else:
            found.append(("row_scales", by_row(np.broadcast_to(weight.scales, (weight.rows, 1)).astype(np.float32))))
    if has_zero_points(p):
        assert weight.zero_points is not None
        zero = weight.zero_points
        found.append(("zero_points", zero.reshape(-1) if p["scales"] == "tensor" else by_row(zero)))
    if p["word"] == "table":
        assert weight.codebook is not None
        book = np.zeros((p["books"], p["book"]), np.float32)
        book[:, : weight.codebook.shape[1]] = weight.codebook
        found.append(("codebook", book.reshape(-1)))
    return found


def code_arrays(codes: Array, bits: int) -> list[tuple[str, Array]]:
    """Codes in the order of the kernel as named planes; values of a float codec (0 bits) as they are."""
    if bits == 0:
        return [("values", codes)]
    return [(f"codes{plane}", packed) for plane, packed in enumerate(pack_planes(codes, bits))]


def arguments(p: Mapping[str, Any], strip: int, strips: int) -> list[Arg]:
    """The kernel's pointer arguments for the values."""
    args: list[Arg] = []
    if p["bits"] == 0:
        args.append(Arg("values", f"float{p['width']}", FROM_DATA, "in"))
    else:
        for plane, _ in enumerate(plane_widths(p["bits"])):
            args.append(Arg(f"codes{plane}", "uint8", FROM_DATA, "in"))
    if needs_runs(p):
        args.append(Arg("ranks", "int32", FROM_DATA, "in"))
    if p["scales"] == "group":
        args.append(Arg("groups", "int32", 1, "in"))
        args.append(Arg("scales", "float16", FROM_DATA, "in"))
    elif p["scales"] != "none":
        args.append(Arg("row_scales", "float32", strips * strip, "in"))
    if has_zero_points(p):
        size = {"tensor": 1, "channel": strips * strip, "group": FROM_DATA}[p["scales"]]
        args.append(Arg("zero_points", "uint8", size, "in"))
    if p["word"] == "table":
        args.append(Arg("codebook", "float32", p["books"] * p["book"], "in"))
    return args


def load_codes(k: Any, code_bits: int, at: Any, width: int) -> Any:
    """int32 vector: the codes from element `at` on, a multiple of 8 where they are narrower than a byte."""
    T = k.T
    total, shift = None, 0
    for plane, bits in enumerate(plane_widths(code_bits)):
        buffer = k.arg(f"codes{plane}")
        if bits == 8:
            part = T.Cast(f"int32x{width}", k.load(buffer, at, width))
        else:
            per = 8 // bits
            count = width // per
            first = T.truncdiv(at * bits, 8)
            packed = k.load(buffer, first, count)
            spread = (
                T.broadcast(packed, width)
                if count == 1
                else T.Shuffle([packed] * per, [T.int32(i // per) for i in range(width)])
            )
            shifts = T.Shuffle([T.int32(i % per * bits) for i in range(width)], [T.int32(i) for i in range(width)])
            part = (T.Cast(f"int32x{width}", spread) >> shifts) & k.i32((1 << bits) - 1, width)
        if shift:
            part = part << k.i32(shift, width)
        total = part if total is None else total | part
        shift += bits
    return total


class Decoder:
    """Writes the decoding of a span of entries to float32 scratch `dest`."""

    def __init__(self, p: Mapping[str, Any], k: Any, strip: int, rows: int, dest: Any) -> None:
        self.p, self.k, self.T, self.strip, self.rows, self.dest = p, k, k.T, strip, rows, dest
        self.width: int = max(8, k.lanes)

    def flat(self, first: Any, end: Any, base: Any) -> None:
        """dest[(e - base) * S + s] for the entries first <= e < end, rounded up to whole vectors."""
        T, k, p, width = self.T, self.k, self.p, self.width
        table = None
        codebook = p["word"] == "table" and p["scope"] == "one"
        if codebook and p["book"] <= permute_width(k.target):
            table = RegisterTable(k, k.arg("codebook"), T.int32(0), p["book"])
        zero: Any = None
        if has_zero_points(p) and p["scales"] == "tensor":
            zero = bind(k, k.splat(T.Cast("float32", k.load(k.arg("zero_points"), 0)), width))
        start = bind(k, first * self.strip)
        with T.serial(0, T.truncdiv((end - first) * self.strip + (width - 1), width)) as i:
            at = bind(k, start + i * width)
            if p["bits"] == 0:
                value = T.Cast(f"float32x{width}", k.load(k.arg("values"), at, width))
            else:
                codes = bind(k, load_codes(k, p["bits"], at, width))
                if codebook:
                    value = table(codes) if table is not None else gather(k.arg("codebook"), codes)
                else:
                    offset = p.get("offset") or 0
                    value = T.Cast(f"float32x{width}", codes - k.i32(offset, width))
                    if zero is not None:
                        value = value - zero
            k.store(self.dest, at - base * self.strip, value, width)

    def run(
        self, run: Any, strip: Any, count: Any, position: Any, chunk: Any, base: Any, pitch: int, columns: int
    ) -> None:
        """Finish the values of one run: `count` entries from `position` on of `strip`, in chunk number `chunk`."""
        T, k, p, width = self.T, self.k, self.p, self.width
        first = bind(k, (position - base) * self.strip)
        iota = T.ramp(T.int32(0), 1, width)
        length = bind(k, count * self.strip)
        with T.serial(0, T.truncdiv(length + (width - 1), width)) as i:
            # lanes past the run repeat its last value: they are stored where the next run is still to be finished
            lane = bind(k, k.splat(i * width, width) + iota)
            inside = bind(k, T.min(lane, k.splat(length - 1, width)))
            entry = bind(k, T.truncdiv(inside, k.i32(self.strip, width)) if self.strip > 1 else inside)
            row = bind(k, k.splat(strip * self.strip, width) + (inside - entry * k.i32(self.strip, width)))
            value: Any = k.load(self.dest, first + i * width, width)
            raw = bind(k, value)
            value = raw
            if p["word"] == "table" and p["scope"] != "one":
                if p["scope"] == "rows":
                    book = T.truncdiv(T.min(row, k.i32(self.rows - 1, width)), k.i32(p["span"], width))
                else:
                    offset = T.Cast(f"int32x{width}", gather(k.arg("offsets"), k.splat(position, width) + entry))
                    column = T.truncdiv(offset, k.i32(pitch // 2, width)) + k.splat(chunk * columns, width)
                    book = T.truncdiv(column, k.i32(p["span"], width))
                # what lies behind the run are codes too, or garbage past the last: keep the index inside
                code = T.max(T.min(T.Cast(f"int32x{width}", raw), k.i32(p["book"] - 1, width)), k.i32(0, width))
                value = gather(k.arg("codebook"), book * k.i32(p["book"], width) + code)
            if p["scales"] == "group":
                group = T.truncdiv(k.splat(k.load(k.arg("ranks"), run), width) + entry, k.i32(p["group"], width))
                slot = bind(k, row * k.splat(k.load(k.arg("groups"), 0), width) + group)
            else:
                slot = row
            if has_zero_points(p) and p["scales"] != "tensor":
                value = value - T.Cast(f"float32x{width}", gather(k.arg("zero_points"), slot))
            if p["scales"] == "group":
                value = value * T.Cast(f"float32x{width}", gather(k.arg("scales"), slot))
            keep = T.Select(lane < k.splat(length, width), value, raw)
            k.store(self.dest, first + i * width, keep, width)
