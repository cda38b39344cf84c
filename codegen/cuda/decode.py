"""Reading compressed weights inside a GPU product: words of codes -> the first operand of mma.m16n8k16 (fragments.py has the layout)."""

from __future__ import annotations

from collections.abc import Mapping
from math import log2
from typing import Any

import numpy as np

from sparsec.codegen.cuda import fragments
from sparsec.codegen.cuda.fragments import halves, lane_words, vector_words

Expr = Any
# A float whose mantissa holds a field as a whole number above a power of two: (bits of the power twice, the power, width of the mantissa)
_MAGIC = {"float16": (0x64006400, 1024.0, 10), "bfloat16": (0x43004300, 128.0, 7)}
SUFFIX = {"float16": "f16", "bfloat16": "bf16"}


def twice(value: float, storage: str) -> int:
    """A constant in both halves of a word."""
    return int(halves(np.array([value], np.float32), storage)[0]) * 0x10001


class Decoder:
    """Emits a warp's decoding of one panel. `scaled`: values of group scales are multiplied here, else they are left to the kernel."""

    def __init__(self, k: Any, p: Mapping[str, Any], panel: Expr, lane: Expr, scaled: bool) -> None:
        self.k, self.T, self.p, self.panel = k, k.T, p, panel
        self.lane, self.g, self.q = lane, k.let(lane >> 2), k.let(lane & 3)
        self.storage: str = k.target.storage
        self.scaled = scaled and p["scales"] == "group"
        self.first_step: Expr = (
            k.load(k.arg("starts"), panel) if {"strip", "blocks"} & p.keys() else panel * fragments.steps(p)
        )
        self.codes = lane_words(p)
        self.scales = (p["tiles"] if self.scaled else 0) + (-(-2 * p["tiles"] // 4) if p["zeros"] else 0)
        self.table: Any = None  # where the table is in shared memory
        self.table_at: Expr = 0

    # --- the table ---

    def table_floats(self) -> int:
        """Elements of float32 that the table and its copies take in shared memory."""
        return fragments.table_words(self.p) * fragments.copies(self.p)

    def fill_table(self, shared: Any, first: Expr, thread: Expr, threads: int, fresh: Expr | None = None) -> None:
        """Copy the panel's table to element `first` of `shared`; a barrier must follow. fresh: whether it is not there yet, where the
        block has computed another panel and all panels share a table."""
        if self.p["decode"] != "lookup" or "far" in self.p:
            return
        k, p = self.k, self.p
        words = fragments.entry_words(p)
        self.table, self.table_at = shared, first
        self.my_copy = k.let(self.T.Cast("uint32", (self.lane & (fragments.copies(p) - 1)) * (4 * words)), "uint32")
        if fresh is None or p["books"] > 1:
            self._copy_table(shared, first, thread, threads)
        else:
            with self.T.If(fresh), self.T.Then():
                self._copy_table(shared, first, thread, threads)

    def _copy_table(self, shared: Any, first: Expr, thread: Expr, threads: int) -> None:
        k, p = self.k, self.p
        words = fragments.entry_words(p)
        start = self.T.int32(0)
        if p["books"] > 1:
            book = self.T.truncdiv(self.panel * (16 * p["tiles"]), p["span"])
            start = k.let(self.T.min(book, self.T.int32(p["books"] - 1)) * fragments.table_words(p))
        k.do(
            f"spc_fill_table<{words}, {fragments.copies(p)}>", k.at(shared, first), k.at(k.arg("table"), start),
            fragments.table_words(p) // words, thread, threads,
        )  # fmt: skip

    # --- words of codes, of scales and zero points ---

    def load(self, words: Any, at: int, step: Expr) -> None:
        """words[at : at + self.codes] = the lane's codes of a step."""
        k, vector = self.k, vector_words(self.p)
        base = self.codes_of(step) + self.lane * vector
        for i in range(self.codes // vector):
            k.do(f"spc_stream{vector}", k.at(words, at + i * vector), k.at(k.arg("codes"), base + i * 32 * vector))

    def prefetch(self, step: Expr) -> None:
        """Ask for what of a step is read only when it is multiplied: a register for it would be held all the time."""
        if self.p["scales"] == "group" and not self.scaled:
            self.k.do("spc_prefetch", self.k.at(self.k.arg("scales"), self.place(step)))

    def codes_of(self, step: Expr) -> Expr:
        """Where the codes of a step begin; they are 32 * self.codes words."""
        return (self.first_step + step) * (32 * self.codes)

    def load_shared(self, words: Any, shared: Any, start: Expr, tile: int) -> None:
        """The words of one tile from codes of a step that lie in shared memory, to their places among words[0 : self.codes]."""
        k, vector, tiles, codes = self.k, vector_words(self.p), self.p["tiles"], fragments.code_words(self.p)
        runs = [(codes * tile // tiles, -(-codes * (tile + 1) // tiles))]
        if self.p.get("pairs"):
            runs.append((codes + 2 * tile, codes + 2 * tile + 2))
        for first, last in runs:
            by = vector if first % vector == 0 and last % vector == 0 else 1
            for i in range(first, last, by):
                place = start + i // vector * (32 * vector) + self.lane * vector + i % vector
                k.do(f"spc_entry<{by}>", k.at(words, i), k.at(shared, place), k.T.uint32(0))

    def multiply(
        self, sums: Any, words: Any, at: int, tile: int, block: int, values: Any, inputs: Any, first: int
    ) -> None:
        """sums[0 : 4] += the products of a quarter of a step with a tile's `values`.

        inputs[first:]: the other operand, 2 words or, where two of four inputs are stored, 4. words[at:]: as `load` reads them."""
        k, suffix = self.k, SUFFIX[self.storage]
        a = [values[i] for i in (2 * block, 8 + 2 * block, 2 * block + 1, 8 + 2 * block + 1)]
        if not self.p.get("pairs"):
            k.do(f"spc_mma_{suffix}", sums, *a, inputs[first], inputs[first + 1])
            return
        stored = words[at + fragments.code_words(self.p) + 2 * tile + block // 2]
        k.do(f"spc_mma_pairs_{suffix}<{block % 2}>", sums, *a, *(inputs[first + i] for i in range(4)), stored)

    def inputs_of(self, step: Expr) -> Expr:
        """Which 64 inputs (or more, `fragments.step_inputs`) a step multiplies, counted in steps."""
        return step

    def begin(self, words: Any, at: int, step: Expr) -> None:
        """Called before the values of a step are made, with the words of all its tiles (scattered.py needs it)."""

    def begin_shared(self, words: Any, shared: Any, start: Expr, step: Expr) -> None:
        """The same with words that lie in shared memory."""

    def load_scales(self, words: Any, at: int, step: Expr) -> None:
        """words[at : at + self.scales] = the lane's scales and zero points of a step, as far as they meet weights here."""
        k, tiles = self.k, self.p["tiles"]
        if self.scaled:
            self.load_group(words, at, step)
        if self.p["zeros"]:
            first = at + (tiles if self.scaled else 0)
            k.do(f"spc_read_bytes<{2 * tiles}>", k.at(words, first), k.at(k.arg("zeros"), self.place(step)))

    def load_group(self, words: Any, at: int, step: Expr) -> None:
        """words[at : at + tiles] = the scales of the step's group, two rows a word."""
        k = self.k
        k.do(f"spc_read<{self.p['tiles']}>", k.at(words, at), k.at(k.arg("scales"), self.place(step)))

    def group_scale(self, words: Any, at: int, tile: int, half: int) -> Expr:
        """float32: the scale of row g + 8 half of a tile, from what `load_group` read; for steps that lie in one group."""
        return self.k.device("float32", "spc_scale", words[at + tile], self.T.int32(16 * half))

    def place(self, step: Expr) -> Expr:
        """Where the scales and zero points of the lane's rows begin, those of g before those of g + 8, tile by tile."""
        T, p, groups = self.T, self.p, fragments.groups(self.p)
        group: Expr = T.int32(0)
        if groups > 1:
            first = step * fragments.INPUTS
            if p["group"] % fragments.INPUTS:
                first = first + self.q * fragments.LANE_INPUTS
            group = T.min(T.truncdiv(first, p["group"]), T.int32(groups - 1))  # inputs beyond the last one
        return ((self.panel * groups + group) * 8 + self.g) * (2 * p["tiles"])

    # --- values ---

    def values(
        self, words: Any, at: int, scales: Any, scales_at: int, tile: int, dest: Any, parts: range = range(8)
    ) -> None:
        """dest[0 : 16] = pairs of values of a tile: 8 of row g, then 8 of row g + 8, inputs in order; only `parts` of the 8.

        words[at:] and scales[scales_at:] are what `load` and `load_scales` read."""
        getattr(self, f"_{self.p['decode']}")(words, at, tile, dest, parts)
        T = self.T
        for half in range(2):
            if self.p["zeros"]:
                byte = 2 * tile + half
                word = scales[scales_at + (self.p["tiles"] if self.scaled else 0) + byte // 4]
                zero = self._pair("spc_minus", word, T.int32(8 * (byte % 4)))
                for i in parts:
                    one = T.uint32(twice(1.0, self.storage))
                    self._fma(dest, 8 * half + i, dest[8 * half + i], one, zero)
            if self.scaled:
                scale = self._pair("spc_scale", scales[scales_at + tile], T.int32(16 * half))
                for i in parts:
                    nothing = T.uint32(twice(-0.0, self.storage))
                    self._fma(dest, 8 * half + i, dest[8 * half + i], scale, nothing)

    def _pair(self, function: str, word: Expr, shift: Expr) -> Expr:
        return self.k.let(self.k.device("uint32", f"{function}_{SUFFIX[self.storage]}", word, shift), "uint32")

    def _fma(self, dest: Any, index: int, a: Expr, b: Expr, c: Expr) -> None:
        self.k.store(dest, index, self.k.device("uint32", f"spc_fma2_{SUFFIX[self.storage]}", a, b, c))

    def _float(self, words: Any, at: int, tile: int, dest: Any, parts: range) -> None:
        for i in (*parts, *(8 + part for part in parts)):
            self.k.store(dest, i, words[at + 16 * tile + i])

    def _affine(self, words: Any, at: int, tile: int, dest: Any, parts: range) -> None:
        T, bits = self.T, self.p["bits"]
        magic, power, mantissa = _MAGIC[self.storage]
        mask = ((1 << bits) - 1) * 0x10001
        per = 16 // bits  # pairs of a word
        for i in (*parts, *(8 + part for part in parts)):
            pair = tile * 16 + i
            field = bits * (pair % per)
            # shift by bytes where the mantissa has room: neighbouring fields then share the shift
            shift = field & 8 if (field & 7) + bits <= mantissa else field
            left = field - shift
            word = words[at + pair // per]
            number = self.k.device("uint32", "spc_field", word, shift, T.uint32(mask << left), T.uint32(magic))
            factor = 2.0**-left
            bias = -(power * factor + self.p["offset"])
            self._fma(dest, i, number, T.uint32(twice(factor, self.storage)), T.uint32(twice(bias, self.storage)))

    def _lookup(self, words: Any, at: int, tile: int, dest: Any, parts: range) -> None:
        k, p, values = self.k, self.p, self.p["values"]
        words_of = fragments.entry_words(p)
        code_bits = p["index_bits"] * p["stages"]
        each = 16 // values  # look-ups of a row
        stride = int(log2(fragments.copies(p) * words_of * 4))
        found = k.local(words_of * p["stages"], "uint32")
        single = k.local(16, "uint32") if values == 1 else None
        for half in range(2):
            for j in range(parts.start * 2 // values, parts.stop * 2 // values):
                for stage in range(p["stages"]):
                    first = ((2 * tile + half) * each + j) * code_bits + stage * p["index_bits"]
                    low, bit = at + first // 32, first % 32
                    high = low + 1 if bit + p["index_bits"] > 32 else low
                    where = k.device(
                        "uint32", "spc_index", words[low], words[high], bit, p["index_bits"], stride, self.my_copy
                    )
                    start = k.at(self.table, self.table_at + (stage << p["index_bits"] << stride >> 2))
                    k.do(f"spc_entry<{words_of}>", k.at(found, stage * words_of), start, where)
                if single is not None:
                    k.store(single, j, found[0])
                    continue
                for i in range(words_of):
                    place = half * 8 + j * words_of + i
                    k.store(dest, place, found[i])
                    for stage in range(1, p["stages"]):
                        one = k.T.uint32(twice(1.0, self.storage))
                        self._fma(dest, place, dest[place], one, found[stage * words_of + i])
            if single is not None:
                for i in parts:
                    joined = k.device("uint32", "__byte_perm", single[2 * i], single[2 * i + 1], k.T.uint32(0x5410))
                    k.store(dest, half * 8 + i, joined)
