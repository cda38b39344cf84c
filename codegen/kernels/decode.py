"""Compressed weights inside kernels: the physical layout, and the code that decodes one panel of NR outputs.

`pack` lays the logical arrays of an encoded weight out for a kernel whose panels are NR rows of W wide; `write_panel` emits the
decoding of one panel to float32 [K][NR]. Every structure meets every codec here, in one of three forms:

* dense: codes of all NR rows for each k, side by side.
* strip: blocks of R rows (R a multiple of the vector width): per strip a bitmap over k and the codes of its stored blocks in
  order of k. Cost follows the stored blocks.
* element: any other structure, as single stored values: per panel and k one bit a row, values in (k, row) order; each lane
  finds its value by counting the set bits below it.

Blocks of C > 1 inputs become C columns with the same bits, which leaves the order of stored values in a row, and so the groups
of scales, unchanged. `taps` > 1 writes row k = i * taps + t of a convolution's weight to panel row t * (K / taps) + i, the
(kh, kw, channel) order of gathered receptive fields.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import gcd
from typing import Any

import numpy as np

from sparsec.codegen.isa.lookup import RegisterTable, gather, permute_width
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.program import Arg
from sparsec.formats.codec import Affine, Codebook, Float, Ternary
from sparsec.formats.encoded import Unpacked
from sparsec.formats.structure import Dense
from sparsec.target import Target

Array = np.ndarray[Any, Any]
_PLANES = (8, 4, 2, 1)


@dataclass(frozen=True)
class Packed:
    """A weight in physical form: `params` for the kernel, `arrays` in the order of `arguments(params)`."""

    params: dict[str, Any]
    arrays: list[tuple[str, Array]]


def _word(bits: int) -> int:
    """Width in bits of the words a run of `bits` bits is stored in."""
    return 32 if bits % 32 == 0 else 16 if bits % 16 == 0 else 8


def _planes(bits: int) -> list[tuple[int, int]]:
    """(width, shift) of the planes of a code, low bits first."""
    planes, shift = [], 0
    for width in _PLANES:
        if bits & width:
            planes.append((width, shift))
            shift += width
    return planes


def _pack_rows(codes: Array, width: int) -> Array:
    """Pack codes [n, lanes] of `width` bits so that each row fills whole bytes; words as `_word` says, flat."""
    n, lanes = codes.shape
    row_bits = -(-lanes * width // 8) * 8
    if width == 8:
        return codes.astype(np.uint8).reshape(-1)
    bits = ((codes[:, :, None] >> np.arange(width, dtype=np.uint8)) & 1).astype(np.uint8).reshape(n, lanes * width)
    packed = np.packbits(bits, axis=1, bitorder="little")
    assert packed.shape[1] * 8 == row_bits
    return packed.reshape(-1).view(f"uint{_word(row_bits)}")


def pack(
    weight: Unpacked, nr: int, target: Target, *, rows: Array | None = None, taps: int = 1, label: str = "weight"
) -> Packed:
    """Lay a weight out for panels of `nr` rows.

    `rows`: int [panels * nr], the logical row at each physical one (-1: padding); default: logical order, padded at the end.
    """
    count = -(-weight.rows // nr) * nr
    if rows is None:
        rows = np.where(np.arange(count) < weight.rows, np.arange(count), -1)
    lanes, k = target.lanes, weight.cols
    r, _ = weight.scheme.block
    codec, scales = weight.scheme.codec, weight.scheme.scales
    panels = len(rows) // nr
    dense = isinstance(weight.scheme.structure, Dense)
    strip_rows = gcd(r, nr)
    strips_whole = strip_rows % lanes == 0 and _whole_strips(rows, strip_rows, weight.rows)
    kind = "dense" if dense else "strip" if strips_whole else "element"
    params: dict[str, Any] = {
        "k": k, "nr": nr, "panels": panels, "kind": kind, "taps": taps, "codec": _codec_name(codec), "bits": codec.code_bits,
        "scales": scales.kind, "group": scales.group, "strip": strip_rows if kind == "strip" else 0,
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
    params["stored"] = len(stored)
    arrays += _code_arrays(stored, codec, kind)
    arrays += _scale_arrays(weight, rows, panels, nr, params)
    arrays += _codebook_arrays(weight, rows, panels, nr, target, params)
    for (_, array), arg in zip(arrays, arguments(params), strict=True):
        assert array.size == arg.size, (label, arg.name, array.size, arg.size)
        assert str(array.dtype) == arg.dtype, (label, arg.name, array.dtype, arg.dtype)
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays])


def _int32(values: Array) -> Array:
    assert values.size == 0 or values.max() < 2**31
    return values.astype(np.int32)


def _codec_name(codec: Any) -> str:
    if isinstance(codec, Float):
        return f"fp{codec.width}"
    if isinstance(codec, Affine):
        return "uint" if codec.unsigned else "int"
    if isinstance(codec, Ternary):
        return "ternary"
    if isinstance(codec, Codebook):
        return "codebook"
    raise TypeError(f"no kernel decodes codec {codec}")


def _whole_strips(rows: Array, r: int, count: int) -> bool:
    """Whether every aligned run of r physical rows is one logical strip (or padding only)."""
    runs = rows.reshape(-1, r)
    first = runs[:, :1]
    wanted = first + np.arange(r)
    wanted = np.where((first < 0) | (wanted >= count), -1, wanted)
    return bool(((first[:, 0] < 0) | (first[:, 0] % r == 0)).all() and (runs == wanted).all())


def _elements(weight: Unpacked, rows: Array) -> tuple[Array, Array]:
    """Element mask and codes [physical rows, K]; rows that are padding hold nothing."""
    (r, c), (nb, kb) = weight.scheme.block, weight.block_mask.shape
    codes = np.zeros((nb, kb, r, c), weight.codes.dtype)
    codes[weight.block_mask] = weight.codes
    codes = codes.transpose(0, 2, 1, 3).reshape(nb * r, kb * c)[: weight.rows, : weight.cols]
    mask = np.repeat(np.repeat(weight.block_mask, r, 0), c, 1)[: weight.rows, : weight.cols]
    index = np.maximum(rows, 0)
    mask, codes = mask[index], codes[index]
    codes[rows < 0] = 0
    if not isinstance(weight.scheme.structure, Dense):
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
    for plane, (width, shift) in enumerate(_planes(codec.code_bits)):
        part = (stored >> shift) & ((1 << width) - 1)
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
    params["groups"] = groups = 1 if weight.scheme.scales.kind == "tensor" else weight.scales.shape[1]

    def physical(array: Array, dtype: str) -> Array:
        if weight.scheme.scales.kind == "tensor":
            return array.reshape(-1).astype(dtype)
        picked = array[np.maximum(rows, 0)] * (rows >= 0)[:, None]
        return picked.reshape(panels, nr, groups).transpose(0, 2, 1).reshape(-1).astype(dtype)

    arrays = [("scales", physical(weight.scales, "float16" if weight.scheme.scales.kind == "group" else "float32"))]
    if weight.zero_points is not None:
        arrays.append(("zero_points", physical(weight.zero_points, "uint8")))
    return arrays


def _codebook_arrays(
    weight: Unpacked, rows: Array, panels: int, nr: int, target: Target, params: dict[str, Any]
) -> list[tuple[str, Array]]:
    if weight.codebook is None:
        return []
    book, codec = weight.codebook, weight.scheme.codec
    in_registers = book.shape[1] <= permute_width(target)
    entries = 16 if in_registers else book.shape[1]
    padded = np.zeros((len(book), entries), np.float32)
    padded[:, : book.shape[1]] = book
    params["entries"], params["books"] = entries, len(book)
    assert isinstance(codec, Codebook)
    size = codec.span
    if len(book) == 1:
        params["scope"] = "one"
        return [("codebook", padded.reshape(-1))]
    if codec.scope == "inputs":
        params |= {"scope": "col", "scope_cols": size}
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


def arguments(p: Mapping[str, Any]) -> list[Arg]:
    """The kernel's pointer arguments for a packed weight, in the order of `Packed.arrays`."""
    k, nr, panels, kind, stored = p["k"], p["nr"], p["panels"], p["kind"], p["stored"]
    args: list[Arg] = []
    if kind == "element":
        bits = -(-nr // 8) * 8
        args.append(Arg("positions", f"uint{_word(bits)}", panels * k * (bits // _word(bits)), "in"))
        args.append(Arg("starts", "int32", panels, "in"))
    elif kind == "strip":
        strips = panels * nr // p["strip"]
        args.append(Arg("positions", "uint32", strips * -(-k // 32), "in"))
        args.append(Arg("starts", "int32", strips, "in"))
    run = {"dense": nr, "strip": p["strip"], "element": 1}[kind]
    if p["bits"] == 0:
        args.append(Arg("codes", p["codec"].replace("fp", "float"), stored * run + (kind == "element"), "in"))
    for plane, (width, _) in enumerate(_planes(p["bits"])):
        if kind == "element":
            args.append(Arg(f"codes{plane}", "uint8", -(-stored * width // 8) + 1, "in"))
        elif width == 8:
            args.append(Arg(f"codes{plane}", "uint8", stored * run, "in"))
        else:
            bits = -(-run * width // 8) * 8
            args.append(Arg(f"codes{plane}", f"uint{_word(bits)}", stored * bits // _word(bits), "in"))
    if p["scales"] != "none":
        size = 1 if p["scales"] == "tensor" else panels * p["groups"] * nr
        args.append(Arg("scales", "float16" if p["scales"] == "group" else "float32", size, "in"))
        if p["codec"] == "uint":
            args.append(Arg("zero_points", "uint8", size, "in"))
    if p["codec"] == "codebook":
        args.append(Arg("codebook", "float32", p["books"] * p["entries"], "in"))
        if p["scope"] in ("panel", "lane"):
            args.append(Arg("scopes", "int32", panels if p["scope"] == "panel" else panels * nr, "in"))
    return args


def write_panel(p: Mapping[str, Any], k: Any, panel: Any, dest: Any) -> None:
    """Emit: dest[0 : K * NR] = the float32 values of panel number `panel`, [K][NR]."""
    _Decoder(p, k, panel, dest).write()


class _Decoder:
    def __init__(self, p: Mapping[str, Any], k: Any, panel: Any, dest: Any) -> None:
        self.p, self.k, self.T, self.panel, self.dest = p, k, k.T, panel, dest
        self.lanes: int = k.lanes
        self.nr, self.depth = p["nr"], p["k"]
        self.planes = _planes(p["bits"])
        self.table: RegisterTable | None = None

    def write(self) -> None:
        p = self.p
        if p["codec"] == "codebook" and p["entries"] <= permute_width(self.k.target) and p["scope"] in ("one", "panel"):
            base = self.k.load(self.k.arg("scopes"), self.panel) if p["scope"] == "panel" else self.T.int32(0)
            self.table = RegisterTable(self.k, self.k.arg("codebook"), base)
        {"dense": self._dense, "strip": self._strips, "element": self._elements}[p["kind"]]()

    def _row(self, index: Any) -> Any:
        """Panel row of logical input `index`."""
        taps = self.p["taps"]
        if taps == 1:
            return index
        channels = self.depth // taps
        return self.T.truncmod(index, taps) * channels + self.T.truncdiv(index, taps)

    # --- the three forms ---

    def _dense(self) -> None:
        T, k, p = self.T, self.k, self.p
        vectors = range(self.nr // self.lanes)

        def one(index: Any, scales: list[Any], zeros: list[Any]) -> None:
            row = bind(k, self._row(index) * self.nr)
            run = self.panel * self.depth + index
            for j in vectors:
                value = self._value(self._run_codes(run, self.nr, j), scales[j], zeros[j], index, j * self.lanes)
                k.store(self.dest, row + j * self.lanes, value, self.lanes)

        if p["scales"] == "group":
            group = p["group"]
            with T.serial(0, p["groups"]) as g:
                scales = [self._scale(g, j * self.lanes) for j in vectors]
                zeros = [self._zero_point(g, j * self.lanes) for j in vectors]
                with T.serial(0, T.min(self.depth - g * group, group)) as i:
                    one(bind(k, g * group + i), scales, zeros)
            return
        scales = [self._scale(T.int32(0), j * self.lanes) for j in vectors]
        zeros = [self._zero_point(T.int32(0), j * self.lanes) for j in vectors]
        with T.serial(0, self.depth) as index:
            one(index, scales, zeros)

    def _strips(self) -> None:
        T, k, p = self.T, self.k, self.p
        strip = p["strip"]
        words = -(-self.depth // 32)
        block = k.local(1, "int32")  # index of the next stored block
        for s in range(self.nr // strip):
            number = bind(k, self.panel * (self.nr // strip) + s)
            start = bind(k, k.load(k.arg("starts"), number))
            k.store(block, 0, start)
            with T.serial(0, words) as w:
                bits = bind(k, k.load(k.arg("positions"), number * words + w))
                with T.serial(0, T.min(self.depth - w * 32, 32)) as b:
                    index = bind(k, w * 32 + b)
                    at = bind(k, self._row(index) * self.nr + s * strip)
                    with T.If((bits >> T.Cast("uint32", b)) & T.uint32(1) != T.uint32(0)):
                        with T.Then():
                            run = bind(k, k.load(block, 0))
                            group = T.truncdiv(run - start, p["group"]) if p["scales"] == "group" else T.int32(0)
                            group = bind(k, group)
                            for j in range(strip // self.lanes):
                                lane0 = s * strip + j * self.lanes
                                scale, zero = self._scale(group, lane0), self._zero_point(group, lane0)
                                value = self._value(self._run_codes(run, strip, j), scale, zero, index, lane0)
                                k.store(self.dest, at + j * self.lanes, value, self.lanes)
                            k.store(block, 0, run + 1)
                        with T.Else():
                            for j in range(strip // self.lanes):
                                k.store(self.dest, at + j * self.lanes, k.f32(0.0, self.lanes), self.lanes)

    def _elements(self) -> None:
        T, k, p, lanes = self.T, self.k, self.p, self.lanes
        grouped = p["scales"] == "group"
        iota = T.ramp(T.int32(0), 1, lanes)
        one = k.i32(1, lanes)
        below = (one << iota) - one
        count = k.local(1, "int32")
        k.store(count, 0, k.load(k.arg("starts"), self.panel))
        rank = k.local(self.nr, "int32") if grouped else None
        if rank is not None:
            for j in range(self.nr // lanes):
                k.store(rank, j * lanes, k.i32(0, lanes), lanes)
        row_bits = -(-self.nr // 8) * 8
        word = _word(row_bits)
        with T.serial(0, self.depth) as index:
            row = bind(k, self._row(index) * self.nr)
            for j in range(self.nr // lanes):
                bit0 = j * lanes
                at = (self.panel * self.depth + index) * (row_bits // word) + bit0 // word
                bits = T.Cast("int32", k.load(k.arg("positions"), at) >> T.Cast(f"uint{word}", bit0 % word))
                bits = bind(k, bits & T.int32((1 << lanes) - 1))
                spread = bind(k, k.splat(bits, lanes))
                has = bind(k, (spread >> iota) & one)
                element = bind(k, k.splat(k.load(count, 0), lanes) + T.popcount(spread & below))
                if rank is not None:
                    old = bind(k, k.load(rank, bit0, lanes))
                    group = T.truncdiv(old, k.i32(p["group"], lanes))
                    # a row that is full has no next group: its lane is masked, but must not read past the end
                    group = T.min(group, k.i32(p["groups"] - 1, lanes))
                    slot = bind(k, (k.splat(self.panel * p["groups"], lanes) + group) * k.i32(self.nr, lanes) + iota)
                    scale: Any = bind(k, self._as_f32(gather(k.arg("scales"), slot + k.i32(bit0, lanes)), lanes))
                    zero: Any = None
                    if p["codec"] == "uint":
                        zero = bind(k, self._as_f32(gather(k.arg("zero_points"), slot + k.i32(bit0, lanes)), lanes))
                    k.store(rank, bit0, old + has, lanes)
                else:
                    scale, zero = self._scale(T.int32(0), bit0), self._zero_point(T.int32(0), bit0)
                value = self._value(self._gathered_codes(element), scale, zero, index, bit0)
                k.store(self.dest, row + bit0, T.Select(has > k.i32(0, lanes), value, k.f32(0.0, lanes)), lanes)
                k.store(count, 0, k.load(count, 0) + T.popcount(bits))

    # --- codes ---

    def _run_codes(self, run: Any, width: int, j: int) -> Any:
        """Codes (int32 vector), or float values, of lanes [j * lanes, ...) of run number `run` of `width` codes."""
        _T, k, lanes = self.T, self.k, self.lanes
        if not self.planes:
            return k.load(k.arg("codes"), run * width + j * lanes, lanes)
        total = None
        for plane, (bits, shift) in enumerate(self.planes):
            part = self._plane(k.arg(f"codes{plane}"), run, width, bits, j)
            if shift:
                part = part << k.i32(shift, lanes)
            total = part if total is None else total | part
        return bind(k, total)

    def _plane(self, buffer: Any, run: Any, width: int, bits: int, j: int) -> Any:
        T, k, lanes = self.T, self.k, self.lanes
        if bits == 8:
            return T.Cast(f"int32x{lanes}", k.load(buffer, run * width + j * lanes, lanes))
        row_bits = -(-width * bits // 8) * 8
        word = _word(row_bits)
        first = run * (row_bits // word)
        bit0 = j * lanes * bits
        per_word = min(lanes, word // bits)  # lanes one word feeds
        parts = []
        for piece in range(lanes // per_word):
            start = bit0 + piece * per_word * bits
            value = T.Cast("int32", k.load(buffer, first + start // word))
            shifts = T.ramp(T.int32(start % word), bits, per_word)
            parts.append((k.splat(value, per_word) >> shifts) & k.i32((1 << bits) - 1, per_word))
        if len(parts) == 1:
            return parts[0]
        return T.Shuffle(parts, [T.int32(i) for i in range(lanes)])

    def _gathered_codes(self, element: Any) -> Any:
        """Codes of arbitrary stored elements (an int32 vector of indices)."""
        T, k, lanes = self.T, self.k, self.lanes
        if not self.planes:
            return gather(k.arg("codes"), element)
        total = None
        for plane, (bits, shift) in enumerate(self.planes):
            position = bind(k, element * k.i32(bits, lanes))
            byte = gather(k.arg(f"codes{plane}"), position >> k.i32(3, lanes))
            part = (T.Cast(f"int32x{lanes}", byte) >> (position & k.i32(7, lanes))) & k.i32((1 << bits) - 1, lanes)
            if shift:
                part = part << k.i32(shift, lanes)
            total = part if total is None else total | part
        return bind(k, total)

    # --- values ---

    def _as_f32(self, value: Any, lanes: int) -> Any:
        return self.T.Cast(f"float32x{lanes}", value)

    def _scale(self, group: Any, lane0: int) -> Any:
        k, p = self.k, self.p
        if p["scales"] == "none":
            return None
        if p["scales"] == "tensor":
            return bind(k, k.splat(k.load(k.arg("scales"), 0), self.lanes))
        at = (self.panel * p["groups"] + group) * self.nr + lane0
        return bind(k, self._as_f32(k.load(k.arg("scales"), at, self.lanes), self.lanes))

    def _zero_point(self, group: Any, lane0: int) -> Any:
        k, p = self.k, self.p
        if p["codec"] != "uint":
            return None
        if p["scales"] == "tensor":
            return bind(k, k.splat(self.T.Cast("float32", k.load(k.arg("zero_points"), 0)), self.lanes))
        at = (self.panel * p["groups"] + group) * self.nr + lane0
        return bind(k, self._as_f32(k.load(k.arg("zero_points"), at, self.lanes), self.lanes))

    def _value(self, codes: Any, scale: Any, zero: Any, index: Any, lane0: int) -> Any:
        """float32 vector of decoded values; `index` is the logical input, for codebooks per input group."""
        k, p, lanes = self.k, self.p, self.lanes
        codec = p["codec"]
        if codec in ("fp32", "fp16"):
            value = codes if codec == "fp32" else self._as_f32(codes, lanes)
        elif codec == "codebook":
            value = self._lookup(codes, index, lane0)
        elif codec == "uint":
            value = self._as_f32(codes, lanes) - zero
        else:
            offset = 1 if codec == "ternary" else 1 << (p["bits"] - 1)
            value = self._as_f32(codes - k.i32(offset, lanes), lanes)
        return value if scale is None else value * scale

    def _lookup(self, codes: Any, index: Any, lane0: int) -> Any:
        T, k, p, lanes = self.T, self.k, self.p, self.lanes
        if self.table is not None:
            return self.table(codes)
        book = k.arg("codebook")
        if p["scope"] == "one":
            return gather(book, codes)
        if p["scope"] == "col":
            base: Any = k.splat(T.truncdiv(index, p["scope_cols"]) * p["entries"], lanes)
        elif p["scope"] == "panel":
            base = k.splat(k.load(k.arg("scopes"), self.panel), lanes)
        else:
            base = k.load(k.arg("scopes"), self.panel * self.nr + lane0, lanes)
        return gather(book, base + codes)
