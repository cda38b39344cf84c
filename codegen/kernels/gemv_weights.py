"""Reading weights as bytes inside gemv.py: tables, and the quads of a step (byte_weights.py has the layouts)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import reduce
from operator import or_
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.memory import prefetch_stream
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.isa.word_table import WordTable, in_registers
from sparsec.codegen.kernels import byte_weights, nibbles
from sparsec.codegen.kernels.gemv_rounding import STEP

Reader = Callable[[int, int], Any]


class Weights:
    """Writes the code that turns codes into bytes (`w`: parameters of the weight, `k`: KernelBuilder).

    table_scale: what numbers from the current table are multiplied by; None where there is no table. once: codes are read once
    or a few times, not over and over for many rows. decoded: products read `decoded`, a tile's weights as bytes.
    """

    def __init__(self, w: Mapping[str, Any], k: Any, *, once: bool, decoded: bool = False) -> None:
        self.w, self.k, self.T, self.once, self.decoded = w, k, k.T, once, decoded
        self.dot = dot.ByteDot(k)
        self.planes = byte_weights.planes(w["bits"])
        self.table_scale: Any = None
        # words looked up one by one are a lot of code
        self.slow = w["kind"] == "vector" and not self._in_registers
        self._table: Any = None  # uint8 vectors, words in registers, or where the words begin

    # --- tables ---

    @property
    def _in_registers(self) -> bool:
        return in_registers(self.k.target, byte_weights.table_words(self.w), self.w["code_bits"])

    def set_table(self, tile: Any) -> None:
        """Load the table of a tile, if that is what tables belong to."""
        T, w = self.T, self.w
        self.table_scale = None
        if w["kind"] != "affine" and w["scope"] != "inputs":
            self._load(T.truncdiv(tile, w["span"]) if w["scope"] == "rows" else T.int32(0))

    def set_table_of_block(self, block: Any) -> None:
        """Load the table of a block of inputs, if that is what tables belong to."""
        if self.w["scope"] == "inputs":
            self._load(self.T.truncdiv(block, self.w["span"]))

    def _load(self, number: Any) -> None:
        k, w, nb = self.k, self.w, self.dot.bytes
        if w["kind"] == "vector":
            size = byte_weights.table_words(w)
            first = bind(k, number * size)
            self._table = first
            if self._in_registers:
                self._table = WordTable.load(k, k.arg("table"), first, size)
        else:
            size = byte_weights.table_bytes(w, k.target)
            self._table = k.local(size, "uint8")
            for at in range(0, size, nb):
                k.store(self._table, at, k.load(k.arg("table"), number * size + at, nb), nb)
        self.table_scale = bind(k, k.load(k.arg("table_scale"), number))

    # --- what products read ---

    def offsets(self, first: Any, block: Any, step: Any) -> list[Any]:
        """Where the weights of a step of a tile begin, by plane of codes. first: number of the tile's first block."""
        if not self.decoded:
            return self.code_offsets(first + block, step)
        return [bind(self.k, (block * (self.w["block"] // 4) + step * (STEP // 4)) * (self.w["tile"] * 4))]

    def read(self, at: list[Any]) -> Reader:
        """(quad, vector) -> its weights as bytes, from `offsets` on."""
        if not self.decoded:
            return self.reader(at)
        nb, row = self.dot.bytes, self.w["tile"] * 4
        return lambda quad, v: self._held(self.k.load(self.k.arg("decoded"), at[0] + (quad * row + v * nb), nb))

    # --- codes ---

    def code_offsets(self, block: Any, step: Any) -> list[Any]:
        """Where the codes of a step begin, by plane."""
        offsets = []
        for plane, (width, _) in enumerate(self.planes):
            whole = byte_weights.plane_bytes(self.w, plane) // 4
            offsets.append(bind(self.k, (block * whole + step * (STEP // 4 * width // 8)) * self.w["tile"] * 4))
        return offsets

    def reader(self, at: list[Any]) -> Reader:
        """(quad, vector) -> its weights as bytes; codes from `at` on (by plane)."""
        if self.w["kind"] != "vector":
            return self._scalar_reader(at)
        reader = self._vector_reader(at[0])
        return self._paired(reader) if self.w["paired"] else reader

    def _paired(self, read: Reader) -> Reader:
        """Words are looked up row by row; smmla wants what `dot.pair_quads` says."""
        held: dict[tuple[int, int], Any] = {}

        def paired(quad: int, v: int) -> Any:
            both = quad // 2 * 2, quad // 2 * 2 + 1
            for number in both:
                if (number, v) not in held:
                    held[number, v] = read(number, v)
            first, second = (held[number, v] for number in both)
            return self._held(self.dot.pair(first, second, quad % 2))

        return paired

    def _scalar_reader(self, at: list[Any]) -> Reader:
        k, nb, bits = self.k, self.dot.bytes, self.w["bits"]
        loaded: dict[tuple[int, int, int], Any] = {}
        rest: dict[int, Any] = {}
        halves: dict[tuple[int, int, int], Any] = {}

        def byte(plane: int, number: int, v: int) -> Any:
            """What a vector's rows have in a byte of a plane."""
            if (plane, number, v) not in loaded:
                place = at[plane] + number * (self.w["tile"] * 4) + v * nb
                loaded[plane, number, v] = self._held(k.load(k.arg(f"codes{plane}"), place, nb))
                if self.once:
                    prefetch_stream(k, k.arg(f"codes{plane}"), place, 1)
            return loaded[plane, number, v]

        def code(quad: int, v: int) -> Any:
            parts = []
            for plane, (width, shift) in enumerate(self.planes):
                number, bit = divmod(quad * width, 8)
                parts.append(self.dot.field(byte(plane, number, v), bit, width, shift))
            return reduce(or_, parts)

        def two_halves(number: int, v: int) -> Any:
            """A byte whose halves are looked up (nibbles.py)."""
            if bits != 3:
                return byte(0, number, v)
            if number < len(nibbles.BYTES):
                return byte(*nibbles.BYTES[number], v)
            if v not in rest:
                masks = [k.splat(self.T.uint8(mask), nb) for mask in nibbles.REST]
                parts = [byte(*where, v) & mask for where, mask in zip(nibbles.BYTES, masks, strict=True)]
                rest[v] = self._held(reduce(or_, parts))
            return rest[v]

        def read(quad: int, v: int) -> Any:
            if self.w["kind"] != "table":
                return self._held(code(quad, v))
            table, number, half = nibbles.place(bits, quad)
            if (number, half, v) not in halves:
                halves[number, half, v] = self._held(self.dot.field(two_halves(number, v), 4 * half, 4))
            return self._held(self.dot.lookup(k.load(self._table, table * nb, nb), halves[number, half, v]))

        return read

    def _vector_reader(self, at: Any) -> Reader:
        """Sums of words looked up by the codes of a unit of one or two quads."""
        T, k, w, n, nb = self.T, self.k, self.w, self.dot.lanes, self.dot.bytes
        codes, unit_quads, code_bits = k.arg("codes0"), w["unit_quads"], w["code_bits"]
        loaded: dict[tuple[int, int], Any] = {}
        masks: dict[tuple[int, int], dict[int, Any]] = {}

        def one_by_one(word: int, v: int, bit: int, first: int) -> Any:
            """Entries from `first` on of the table, chosen by the codes at `bit` of a word of every lane."""
            words = k.local(n, "int32")
            for lane in range(n):
                byte = k.load(codes, at + word * (w["tile"] * 4) + (v * n + lane) * 4 + bit // 8)
                code = T.Cast("int32", byte)
                if code_bits < 8:
                    code = (code >> (bit % 8)) & ((1 << code_bits) - 1)
                k.store(words, lane, k.load(k.arg("table"), self._table + code + first))
            return k.load(words, 0, n)

        def read(quad: int, v: int) -> Any:
            unit, part = divmod(quad, unit_quads)
            total = None
            for number in range(w["lookups"]):
                word, bit = divmod((unit * w["lookups"] + number) * code_bits, 32)
                first = (number * unit_quads + part) << code_bits
                if isinstance(self._table, WordTable):
                    if (word, v) not in loaded:
                        loaded[word, v], masks[word, v] = k.local(n, "int32"), {}
                        held = k.load(codes, at + word * (w["tile"] * 4) + v * nb, nb)
                        k.store(loaded[word, v], 0, T.reinterpret(f"int32x{n}", held), n)
                    value = self._table(k.load(loaded[word, v], 0, n), bit, code_bits, first, masks[word, v])
                else:
                    value = one_by_one(word, v, bit, first)
                value = T.reinterpret(f"uint8x{nb}", value)
                total = value if total is None else total + value
            return self._held(total)

        return read

    def _held(self, value: Any) -> Any:
        nb = self.dot.bytes
        held = self.k.local(nb, "uint8")
        self.k.store(held, 0, value, nb)
        return self.k.load(held, 0, nb)
