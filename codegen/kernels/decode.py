"""Decoding one panel of a coded weight inside a kernel: `write_panel` emits float32 [K][NR] from the arrays of panels.py.

There is one method for each form of the layout (dense, strip, element) and one for each word that says what a code means
(formats/meaning.py). A new codec needs nothing here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa.lookup import RegisterTable, gather, permute_width
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.panels import (
    Packed,
    arguments,
    groups_are_data,
    has_zero_points,
    pack,
    planes,
    units,
    word,
)

__all__ = ["Packed", "arguments", "pack", "write_panel"]


def write_panel(p: Mapping[str, Any], k: Any, panel: Any, dest: Any) -> None:
    """Emit: dest[0 : K * NR] = the float32 values of panel number `panel`, [K][NR]."""
    _Decoder(p, k, panel, dest).write()


class _Decoder:
    def __init__(self, p: Mapping[str, Any], k: Any, panel: Any, dest: Any) -> None:
        self.p, self.k, self.T, self.panel, self.dest = p, k, k.T, panel, dest
        self.lanes: int = k.lanes
        self.nr, self.depth, self.dim = p["nr"], units(p), p["dim"]
        self.planes = planes(p["bits"])
        self.table: RegisterTable | None = None
        # 0, which the compiler cannot know. What is made of it is made anew for each panel, and holds no register while products are
        # summed between two panels: with 16 of them sums would go to memory instead.
        few = k.target.vector_registers < 32
        self.nothing: Any = bind(k, (panel + k.hi) >> 30) if few else None
        # groups of scales in a row: of a sparse weight they are data
        self.groups: Any = k.load(k.arg("groups"), 0) if groups_are_data(p) else p["groups"]

    def write(self) -> None:
        p = self.p
        if groups_are_data(p):
            self.groups = bind(self.k, self.groups)
        in_registers = p["word"] == "table" and p["entries"] <= permute_width(self.k.target)
        if in_registers and p["scope"] in ("one", "panel"):
            if p["scope"] == "panel":
                base = self.k.load(self.k.arg("scopes"), self.panel)
            else:
                base = self.T.int32(0) if self.nothing is None else self.nothing
            self.table = RegisterTable(self.k, self.k.arg("codebook"), base, p["entries"])
        {"dense": self._dense, "strip": self._strips, "element": self._elements}[p["kind"]]()

    def _row(self, index: Any) -> Any:
        """Panel row of logical input `index`."""
        taps = self.p["taps"]
        if taps == 1:
            return index
        channels = self.p["k"] // taps
        return self.T.truncmod(index, taps) * channels + self.T.truncdiv(index, taps)

    def _places(self, unit: Any) -> list[Any]:
        """Where the inputs of a unit begin in the panel."""
        if self.dim == 1:
            return [bind(self.k, self._row(unit) * self.nr)]
        return [bind(self.k, self._row(unit * self.dim + e) * self.nr) for e in range(self.dim)]

    def _write(self, places: list[Any], lane0: int, unit: Any, values: list[Any]) -> None:
        """Store the vectors of a unit's inputs at lanes [lane0, ...); the last unit may reach past the last input."""
        last = self.p["k"] - (self.depth - 1) * self.dim
        for e, (place, value) in enumerate(zip(places, values, strict=True)):
            if e < last:
                self.k.store(self.dest, place + lane0, value, self.lanes)
                continue
            with self.T.If(unit < self.depth - 1), self.T.Then():
                self.k.store(self.dest, place + lane0, value, self.lanes)

    # --- the three forms ---

    def _dense(self) -> None:
        T, k, p = self.T, self.k, self.p
        vectors = range(self.nr // self.lanes)

        def one(index: Any, scales: list[Any], zeros: list[Any]) -> None:
            places = self._places(index)
            run = self.panel * self.depth + index
            for j in vectors:
                values = self._values(self._run_codes(run, self.nr, j), scales[j], zeros[j], index, j * self.lanes)
                self._write(places, j * self.lanes, index, values)

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
                    places = self._places(index)
                    with T.If((bits >> T.Cast("uint32", b)) & T.uint32(1) != T.uint32(0)):
                        with T.Then():
                            run = bind(k, k.load(block, 0))
                            group = T.truncdiv(run - start, p["group"]) if p["scales"] == "group" else T.int32(0)
                            group = bind(k, group)
                            for j in range(strip // self.lanes):
                                lane0 = s * strip + j * self.lanes
                                scale, zero = self._scale(group, lane0), self._zero_point(group, lane0)
                                values = self._values(self._run_codes(run, strip, j), scale, zero, index, lane0)
                                self._write(places, lane0, index, values)
                            k.store(block, 0, run + 1)
                        with T.Else():
                            for j in range(strip // self.lanes):
                                nothing = [k.f32(0.0, self.lanes)] * self.dim
                                self._write(places, s * strip + j * self.lanes, index, nothing)

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
        size = word(row_bits)
        with T.serial(0, self.depth) as index:
            places = self._places(index)
            for j in range(self.nr // lanes):
                bit0 = j * lanes
                at = (self.panel * self.depth + index) * (row_bits // size) + bit0 // size
                bits = T.Cast("int32", k.load(k.arg("positions"), at) >> T.Cast(f"uint{size}", bit0 % size))
                bits = bind(k, bits & T.int32((1 << lanes) - 1))
                spread = bind(k, k.splat(bits, lanes))
                has = bind(k, (spread >> iota) & one)
                element = bind(k, k.splat(k.load(count, 0), lanes) + T.popcount(spread & below))
                if rank is not None:
                    old = bind(k, k.load(rank, bit0, lanes))
                    group = T.truncdiv(old, k.i32(p["group"], lanes))
                    # a row that is full has no next group: its lane is masked, but must not read past the end
                    group = T.min(group, k.splat(self.groups - 1, lanes))
                    slot = bind(k, (k.splat(self.panel * self.groups, lanes) + group) * k.i32(self.nr, lanes) + iota)
                    scale: Any = bind(k, self._as_f32(gather(k.arg("scales"), slot + k.i32(bit0, lanes)), lanes))
                    zero: Any = None
                    if has_zero_points(p):
                        zero = bind(k, self._as_f32(gather(k.arg("zero_points"), slot + k.i32(bit0, lanes)), lanes))
                    k.store(rank, bit0, old + has, lanes)
                else:
                    scale, zero = self._scale(T.int32(0), bit0), self._zero_point(T.int32(0), bit0)
                values = self._values(self._gathered_codes(element), scale, zero, index, bit0)
                kept = [T.Select(has > k.i32(0, lanes), value, k.f32(0.0, lanes)) for value in values]
                self._write(places, bit0, index, kept)
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
        size = word(row_bits)
        first = run * (row_bits // size)
        bit0 = j * lanes * bits
        per_word = min(lanes, size // bits)  # lanes one word feeds
        parts = []
        for piece in range(lanes // per_word):
            start = bit0 + piece * per_word * bits
            value = T.Cast("int32", k.load(buffer, first + start // size))
            shifts = T.ramp(T.int32(start % size), bits, per_word)
            parts.append(
                (k.splat(value, per_word) >> self._fresh(shifts, per_word))
                & self._fresh(k.i32((1 << bits) - 1, per_word), per_word)
            )
        if len(parts) == 1:
            return parts[0]
        return T.Shuffle(parts, [T.int32(i) for i in range(lanes)])

    def _fresh(self, constant: Any, lanes: int) -> Any:
        """An int32 vector that lives no longer than the panel."""
        return constant if self.nothing is None else constant + self.k.splat(self.nothing, lanes)

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
        at = (self.panel * self.groups + group) * self.nr + lane0
        return bind(k, self._as_f32(k.load(k.arg("scales"), at, self.lanes), self.lanes))

    def _zero_point(self, group: Any, lane0: int) -> Any:
        k, p = self.k, self.p
        if not has_zero_points(p):
            return None
        if p["scales"] == "tensor":
            return bind(k, k.splat(self.T.Cast("float32", k.load(k.arg("zero_points"), 0)), self.lanes))
        at = (self.panel * self.groups + group) * self.nr + lane0
        return bind(k, self._as_f32(k.load(k.arg("zero_points"), at, self.lanes), self.lanes))

    def _values(self, codes: Any, scale: Any, zero: Any, unit: Any, lane0: int) -> list[Any]:
        """float32 vectors a vector of codes stands for, one for each of the `dim` inputs of a unit."""
        p = self.p
        values = {"float": self._float, "affine": self._affine, "table": self._table, "vector": self._vector}[
            p["word"]
        ](codes, zero, unit, lane0)
        return values if scale is None else [value * scale for value in values]

    def _float(self, codes: Any, zero: Any, unit: Any, lane0: int) -> list[Any]:
        return [codes if self.p["width"] == 32 else self._as_f32(codes, self.lanes)]

    def _affine(self, codes: Any, zero: Any, unit: Any, lane0: int) -> list[Any]:
        k, lanes = self.k, self.lanes
        if zero is not None:
            return [self._as_f32(codes, lanes) - zero]
        return [self._as_f32(codes - self._fresh(k.i32(self.p["offset"], lanes), lanes), lanes)]

    def _table(self, codes: Any, zero: Any, unit: Any, lane0: int) -> list[Any]:
        if self.table is not None:
            return [self.table(codes)]
        base = self._table_start(unit, lane0)
        return [gather(self.k.arg("codebook"), codes if base is None else base + codes)]

    def _vector(self, codes: Any, zero: Any, unit: Any, lane0: int) -> list[Any]:
        k, p, lanes, dim = self.k, self.p, self.lanes, self.dim
        book, bits, base = k.arg("codebook"), p["stage_bits"], self._table_start(unit, lane0)
        values: list[Any] = [None] * dim
        for stage in range(p["stages"]):
            part = codes >> k.i32(stage * bits, lanes) if stage else codes
            if stage < p["stages"] - 1:
                part = part & k.i32((1 << bits) - 1, lanes)
            start = part * k.i32(dim, lanes) + k.i32(stage * dim << bits, lanes)
            start = bind(k, start if base is None else start + base)
            for e, entry in enumerate(self._entries(book, start)):
                values[e] = entry if values[e] is None else values[e] + entry
        return values

    def _entries(self, book: Any, start: Any) -> list[Any]:
        """The `dim` vectors of the entries that begin at `start` (one a lane): loaded whole and transposed, which beats gathers."""
        T, k, lanes, dim = self.T, self.k, self.lanes, self.dim
        rows = [T.bind(k.load(book, T.Shuffle([start], [T.int32(lane)]), dim)) for lane in range(lanes)]
        return [T.Shuffle(rows, [T.int32(lane * dim + e) for lane in range(lanes)]) for e in range(dim)]

    def _table_start(self, unit: Any, lane0: int) -> Any:
        """int32 vector: where the table of each lane begins; None when there is one table."""
        k, p, lanes = self.k, self.p, self.lanes
        if p["scope"] == "one":
            return None
        if p["scope"] == "col":
            return k.splat(self.T.truncdiv(unit, p["scope_cols"]) * p["entries"], lanes)
        if p["scope"] == "panel":
            return k.splat(k.load(k.arg("scopes"), self.panel), lanes)
        return k.load(k.arg("scopes"), self.panel * self.nr + lane0, lanes)
