"""Weights of any structure for gemv.py and gemm.py: dense tiles are put together in registers of what is stored.

A step is 64 inputs of which a panel stores some; where it stores none there is no step: `firsts` says with which step a panel begins,
`inputs` which 64 inputs a step has. For each tile a lane has a word with one bit for each of its 32 weights (fewer where a code stands for
several). What is stored lies in the order of lanes; `starts` says where that of a step begins, and lanes count bits to find theirs. Scales
of groups go by how many values of the row are stored before: `ranks` has that at the beginning of every step. Codes have 1, 2, 4, 8, 16 or
32 bits here.

Since every code is found by itself, this takes any scheme, dense ones too (a bit a code on top): groups that begin anywhere, and tables
that change from one row or input to the next, or are too large for shared memory ("far": they are read where they lie).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from sparsec.codegen.cuda import fragments
from sparsec.codegen.cuda.decode import SUFFIX, Decoder, twice
from sparsec.codegen.cuda.fragments import LANE_INPUTS, Packed, by_vectors, decoding, halves, scale_arrays, table
from sparsec.codegen.cuda.strips import dense_codes
from sparsec.formats.encoded import Unpacked
from sparsec.formats.layout import pack_planes
from sparsec.formats.meaning import TableValue, VectorValue

Array = np.ndarray[Any, Any]
Expr = Any

_MOST_RANKS = 65535


def refused(weight: Unpacked) -> str:
    """Why this layout does not take the weight; "" if it does."""
    if weight.cols > _MOST_RANKS:
        return f"{weight.cols} inputs; weights of structure '{weight.scheme.structure}' may have {_MOST_RANKS}"
    return ""


def stored_bits(bits: int) -> int:
    """Bits of a code of `bits` bits in memory."""
    return 1 << (bits - 1).bit_length()


def parameters(weight: Unpacked, tiles: int, storage: str, far: bool = False) -> dict[str, Any]:
    """The parameters of the weight that `pack` lays out. far: what tables go by, if they stay in memory."""
    params = decoding(weight, storage, single=True)
    params |= {"n": weight.rows, "k": weight.cols, "tiles": tiles, "scattered": True}
    meaning = weight.scheme.codec.meaning
    if far and isinstance(meaning, TableValue | VectorValue):
        params["far"] = meaning.scope.kind
    return params


def pack(
    weight: Unpacked, tiles: int, storage: str, label: str = "weight", *, together: int = 1, far: bool = False
) -> Packed:
    """Lay a weight out for panels of 16 * tiles rows; values in `storage`. together: panels in a row that have the same steps, where
    any of them stores something. far: whether tables stay in memory."""
    dim, width = weight.scheme.codec.dim, weight.scheme.block[1]
    params = parameters(weight, tiles, storage, far)
    codes = dense_codes(weight)
    if params["decode"] == "float":
        codes = halves(codes, storage)
    rows, each = weight.scheme.block[0], LANE_INPUTS // dim
    mask = np.repeat(np.repeat(weight.block_mask, rows, 0), max(width // dim, 1), axis=1)
    panels, steps, units = fragments.panels(params), fragments.steps(params), -(-weight.cols // dim)

    def by_lane(values: Array) -> Array:
        """[panel, step, g, q, tile, half, code]."""
        padded = np.zeros((panels * 16 * tiles, steps * 4 * each), values.dtype)
        padded[: weight.rows, :units] = values[: weight.rows, :units]
        return padded.reshape(panels, tiles, 2, 8, steps, 4, each).transpose(0, 4, 3, 5, 1, 2, 6)

    is_stored = np.ascontiguousarray(by_lane(mask))
    there: Array = np.asarray(is_stored.reshape(panels, steps, -1).any(2))
    for first in range(0, panels, together):
        there[first : first + together] = there[first : first + together].any(0)
    counts = is_stored.reshape(panels, steps, -1).sum(2)[there]
    in_rows = is_stored.sum((3, 6))  # panel, step, g, tile, half
    before = (np.cumsum(in_rows, axis=1) - in_rows)[there]
    flags = is_stored.reshape(panels, steps, 32, tiles, 2 * each)[there].astype(np.uint32)
    words = np.bitwise_or.reduce(flags << np.arange(2 * each, dtype=np.uint32), axis=-1)[None]
    of_panels = there.sum(1)
    arrays = [
        ("codes", _some(by_vectors(words, params))),
        ("firsts", np.concatenate([[0], np.cumsum(of_panels)]).astype(np.int32)),
        ("inputs", _some(np.nonzero(there)[1].astype(np.int32))),
        ("stored", _stream(by_lane(codes)[is_stored], params["bits"])),
        ("starts", _some((np.cumsum(counts) - counts).astype(np.int32))),
    ]
    if params["scales"] == "group":
        arrays.append(("ranks", _some(before.astype(np.uint16).reshape(-1))))
    arrays += scale_arrays(weight, params, tiles)
    if params["decode"] == "lookup":
        arrays.append(("table", table(weight, params, storage)))
    return Packed(params, [(f"{label}.{name}", array) for name, array in arrays], of_panels)


def _some(array: Array) -> Array:
    """The array, with an element where it has none: there is no constant of no bytes."""
    return array if array.size else np.zeros(1, array.dtype)


def decoder_of(p: Mapping[str, Any]) -> type[Decoder]:
    """What emits the decoding of a packed weight."""
    return ScatteredDecoder if p.get("scattered") else Decoder


def _stream(codes: Array, bits: int) -> Array:
    """uint8: the codes one after the other, and a spare word."""
    width = stored_bits(bits)
    packed = (
        codes.astype(f"u{width // 8}").view(np.uint8) if width > 4 else pack_planes(codes.astype(np.uint8), width)[0]
    )
    return np.concatenate([packed, np.zeros(4 - packed.size % 4 + 4, np.uint8)])


class ScatteredDecoder(Decoder):
    """Emits a warp's decoding of one panel; what `load` reads are the words that say what is stored."""

    def __init__(self, k: Any, p: Mapping[str, Any], panel: Expr, lane: Expr, scaled: bool) -> None:
        super().__init__(k, {**p, "zeros": False}, panel, lane, scaled=False)
        self.first_step = k.let(k.load(k.arg("firsts"), panel))
        self.zeros, self.grouped, self.dim = p["zeros"], p["scales"] == "group", p["dim"]
        tiles = p["tiles"]
        self.bases, self.ranks = k.local(tiles, "int32"), k.local(2 * tiles, "int32")
        self.inputs = k.local(1, "int32")  # the first of the lane's in this step

    def inputs_of(self, step: Expr) -> Expr:
        """Which 64 inputs a step has."""
        return self.k.load(self.k.arg("inputs"), self.first_step + step)

    def prefetch(self, step: Expr) -> None:
        """Ask for where the codes of a step begin, and what is stored before them."""
        k, where = self.k, self.k.let(self.first_step + step)
        k.do("spc_prefetch", k.at(k.arg("starts"), where))
        if self.grouped:
            k.do("spc_prefetch", k.at(k.arg("ranks"), (where * 8 + self.g) * (2 * self.p["tiles"])))

    def begin(self, words: Any, at: int, step: Expr) -> None:
        """Find where the lane's codes of a step are; words[at:] are those of all tiles."""
        k, T, tiles = self.k, self.T, self.p["tiles"]
        where = k.let(self.first_step + step)
        counts = [k.let(T.Cast("int32", T.popcount(words[at + t]))) for t in range(tiles)]
        k.store(self.bases, 0, k.load(k.arg("starts"), where) + k.device("int32", "spc_warp_before", sum(counts)))
        for t in range(1, tiles):
            k.store(self.bases, t, self.bases[t - 1] + counts[t - 1])
        if self.p.get("far") == "inputs":
            k.store(self.inputs, 0, k.load(k.arg("inputs"), where) * fragments.INPUTS + self.q * LANE_INPUTS)
        if not self.grouped:
            return
        each = LANE_INPUTS // self.dim
        for i in range(2 * tiles):
            part = (words[at + i // 2] >> T.uint32(each * (i % 2))) & T.uint32((1 << each) - 1)
            count = k.let(T.Cast("int32", T.popcount(part)))
            before = T.Cast("int32", k.load(k.arg("ranks"), (where * 8 + self.g) * (2 * tiles) + i))
            k.store(self.ranks, i, before + k.device("int32", "spc_quad_before", count))

    def begin_shared(self, words: Any, shared: Any, start: Expr, step: Expr) -> None:
        """The same with words that lie in shared memory."""
        for tile in range(self.p["tiles"]):
            self.load_shared(words, shared, start, tile)
        self.begin(words, 0, step)

    def values(
        self, words: Any, at: int, scales: Any, scales_at: int, tile: int, dest: Any, parts: range = range(8)
    ) -> None:
        """dest[0 : 16] = pairs of values of a tile, as of `Decoder`."""
        each = LANE_INPUTS // self.dim
        mask = words[at + tile]
        for half in range(2):
            found = []
            for unit in range(parts.start * 2 // self.dim, parts.stop * 2 // self.dim):
                bit = half * each + unit
                code = self.k.device(
                    "uint32", f"spc_stored<{stored_bits(self.p['bits'])}>", self.k.at(self.k.arg("stored"), 0), mask, bit,
                    self.bases[tile],
                )  # fmt: skip
                words_of = self._far if "far" in self.p else self._found
                found += self._scaled(words_of(self.k.let(code, "uint32"), mask, bit, tile), mask, bit, tile, half)
            if self.dim == 1:  # single values, two make a pair
                found = [
                    self.k.device("uint32", "__byte_perm", low, high, self.T.uint32(0x5410))
                    for low, high in zip(found[::2], found[1::2], strict=True)
                ]
            for i, pair in zip(parts, found, strict=True):
                self.k.store(dest, 8 * half + i, pair)

    def _far(self, code: Expr, mask: Expr, bit: int, tile: int) -> list[Expr]:
        """The words of a code's values from a table in memory, zeros where nothing is stored."""
        k, T, p = self.k, self.T, self.p
        count, bits, each = fragments.entry_words(p), p["index_bits"], LANE_INPUTS // self.dim
        book: Expr = T.int32(0)
        if p["books"] > 1:
            place = self.inputs[0] + bit % each * self.dim
            if p["far"] == "rows":
                place = self.panel * (16 * p["tiles"]) + (16 * tile + 8 * (bit // each)) + self.g
            book = k.let(T.min(T.truncdiv(place, p["span"]), T.int32(p["books"] - 1)))
        total, entry = k.local(count, "uint32"), k.local(count, "uint32")
        for stage in range(p["stages"]):
            index = T.Cast("int32", (code >> T.uint32(stage * bits)) & T.uint32((1 << bits) - 1))
            start = ((book * p["stages"] + stage) * (1 << bits) + index) * count
            k.do(f"spc_read<{count}>", k.at(entry if stage else total, 0), k.at(k.arg("table"), start))
            for i in range(count if stage else 0):
                self._fma(total, i, total[i], T.uint32(twice(1.0, self.storage)), entry[i])
        return self._stored(total, count, mask, bit)

    def _stored(self, words: Any, count: int, mask: Expr, bit: int) -> list[Expr]:
        """The words, zeros where nothing is stored."""
        T = self.T
        there = ((mask >> T.uint32(bit)) & T.uint32(1)) != T.uint32(0)
        return [self.k.let(T.Select(there, words[i], T.uint32(0)), "uint32") for i in range(count)]

    def _found(self, code: Expr, mask: Expr, bit: int, tile: int) -> list[Expr]:
        """The words of a code's values from a table in shared memory, zeros where nothing is stored."""
        k, T, p = self.k, self.T, self.p
        if p["decode"] == "float":
            return [code]
        count, bits = fragments.entry_words(p), p["index_bits"]
        stride = (fragments.copies(p) * count * 4).bit_length() - 1
        total = k.local(count, "uint32")
        entry = k.local(count, "uint32") if p["stages"] > 1 else total
        for stage in range(p["stages"]):
            index = (code >> T.uint32(stage * bits)) & T.uint32((1 << bits) - 1)
            start = k.at(self.table, self.table_at + (stage << bits << stride >> 2))
            k.do(
                f"spc_entry<{count}>",
                k.at(entry if stage else total, 0),
                start,
                (index << T.uint32(stride)) | self.my_copy,
            )
            for i in range(count if stage else 0):
                self._fma(total, i, total[i], T.uint32(twice(1.0, self.storage)), entry[i])
        return self._stored(total, count, mask, bit)

    def _scaled(self, words: list[Expr], mask: Expr, bit: int, tile: int, half: int) -> list[Expr]:
        """(value - zero point) * scale of the code at `bit`, where there are such."""
        k, T, p = self.k, self.T, self.p
        if not self.grouped and not self.zeros:
            return words
        rows, row = 2 * p["tiles"], 2 * tile + half
        place: Expr = (self.panel * 8 + self.g) * rows + row
        if self.grouped:
            each = LANE_INPUTS // self.dim
            below = mask & T.uint32(((1 << bit) - 1) & (((1 << each) - 1) << (each * half)))
            rank = (self.ranks[row] + T.Cast("int32", T.popcount(below))) * self.dim
            group = T.min(T.truncdiv(rank, p["group"]), T.int32(p["groups"] - 1))
            place = k.let(((self.panel * p["groups"] + group) * 8 + self.g) * rows + row)
        scale = k.load(k.arg("scales"), place) if self.grouped else k.f32(1.0)
        zero = T.Cast("float32", k.load(k.arg("zeros"), place)) if self.zeros else k.f32(0.0)
        scale, zero = k.let(scale, "float32"), k.let(zero, "float32")
        there = T.Cast("int32", (mask >> T.uint32(bit)) & T.uint32(1))
        name = f"spc_scaled_{SUFFIX[self.storage]}"
        return [k.let(k.device("uint32", name, word, zero, scale, there), "uint32") for word in words]
