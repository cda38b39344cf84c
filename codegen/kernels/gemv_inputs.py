"""What int8 products read of their rounded activations: for strips of a sparse weight packed by the strip's bitmap or list.

Rounded rows lie side by side in `xq` (gemv_rounding.py). What products read then depends on the weight and on the rows of a block:

* dense weights: `xq` itself, for smmla two rows joined in `paired` (paired.py).
* strips, one row: `packed` holds the stored inputs of two strips, which take turns: the next strip is packed meanwhile.
* strips, x86, more rows: four rows are interleaved, `mixed[four rows][k][4]`, so that one permutation of 32-bit lanes packs all
  four; then every 4 x 4 bytes are transposed: `packed[stored quad][4 rows][4]`.
  Eight inputs are packed at once, with AVX-512 16 of four rows, with VBMI2 64 of one.
* strips, elsewhere: each row is packed for itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from math import ceil
from typing import Any

import numpy as np

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gemv_rounding import ROWS_AT_ONCE, Rounding, padded_width, rows_of_block
from sparsec.codegen.program import Arg
from sparsec.target import Target

Array = np.ndarray[Any, Any]


def interleaves(p: Mapping[str, Any], target: Target) -> bool:
    """Whether four rows are packed at once."""
    return bool(p["w"]["sparse"]) and target.arch == "x86_64" and rows_of_block(p["m"]) > 1


def looks_up_bits(p: Mapping[str, Any], target: Target) -> bool:
    """Whether packing reads a table of bitmaps (`pack_table`)."""
    bitmap = bool(p["w"]["sparse"]) and not p["w"]["listed"]
    return bitmap and not dot.packs_by_mask(target, lanes=interleaves(p, target))


def pairs_rows(w: Mapping[str, Any]) -> bool:
    """Whether two rows of inputs are joined when they are rounded."""
    return bool(w["paired"]) and not w["sparse"]


def pack_table(p: Mapping[str, Any], target: Target) -> Array:
    """The constant that packing looks up, uint8 [256 * 8]."""
    return dot.pack_table(target, lanes=interleaves(p, target)).reshape(-1)


def work_arguments(p: Mapping[str, Any], target: Target) -> list[Arg]:
    """Scratch: rounded activations, their scales and sums, packed ones."""
    w, rows = p["w"], rows_of_block(p["m"])
    width, stride = padded_width(w), _packed_stride(p, target)
    fours = ceil(rows / ROWS_AT_ONCE) * ROWS_AT_ONCE
    args = [
        Arg("xq", "int8", fours * width + 64, "work"),
        Arg("xscale", "float32", rows * (width // w["block"]), "work"),
        Arg("xsum", "int32", rows * (width // w["block"]), "work"),
    ]
    if pairs_rows(w):
        args.append(Arg("paired", "int8", (rows + rows % 2) * width, "work"))
    if interleaves(p, target):
        args.append(Arg("mixed", "int32", fours // ROWS_AT_ONCE * width + 16, "work"))
        args.append(Arg("packed", "int8", ROWS_AT_ONCE * stride + 128, "work"))
    elif w["sparse"]:
        args.append(Arg("packed", "int8", max(rows, 2) * stride + 64, "work"))
    return args


def _packed_stride(p: Mapping[str, Any], target: Target) -> int:
    """Bytes from one packed row or strip to the next: what is written behind the last stored input is not the next one's."""
    spare = dot.packed_at_once(target, lanes=interleaves(p, target))
    return padded_width(p["w"]) + max(int(p["w"]["block"]), spare)


class Inputs(Rounding):
    """Writes the code that rounds and packs."""

    def __init__(self, p: Mapping[str, Any], k: Any, times: int = 1) -> None:
        super().__init__(p, k, times)
        self.words = ceil(self.w["k"] / 8)  # of a strip's bitmap
        self.interleaved, self.paired = interleaves(p, k.target), pairs_rows(self.w)
        self.listed = self.w["sparse"] and self.w["listed"]
        self.ahead = self.w["sparse"] and rows_of_block(p["m"]) == 1
        self.packed_stride = _packed_stride(p, k.target)
        self.by_mask = dot.packs_by_mask(k.target, lanes=self.interleaved)
        self.at_once = dot.packed_at_once(k.target, lanes=self.interleaved) // 8  # words

    # --- where products read ---

    @property
    def source(self) -> Any:
        """The bytes that products read."""
        return self.k.arg("packed" if self.w["sparse"] else "paired" if self.paired else "xq")

    @property
    def quad_stride(self) -> int:
        """Bytes from one quad of a row to the next."""
        return 4 * ROWS_AT_ONCE if self.interleaved else 8 if self.paired else 4

    def start(self, tile: Any, block: Any, row0: Any, row: int) -> Any:
        """Where the inputs of a block of the tile begin, for row `row` (the first of a pair) behind `row0`."""
        if self.interleaved:
            return block * (self.block * ROWS_AT_ONCE) + row * 4
        if self.ahead:
            return block * self.block + self._half(tile)
        stride = self.packed_stride if self.w["sparse"] else self.width
        return (row0 + row) * stride + block * (2 * self.block if self.paired else self.block)

    # --- packing ---

    def mix(self, rows: int) -> None:
        """xq of `rows` rows -> `mixed`, four rows at a time."""
        T, k = self.T, self.k
        at_once = 16
        order = [T.int32(at_once * r + i) for i in range(at_once) for r in range(ROWS_AT_ONCE)]
        with T.serial(0, ceil(rows / ROWS_AT_ONCE)) as four, T.serial(0, self.width // at_once) as i:
            base = bind(k, four * (ROWS_AT_ONCE * self.width) + i * at_once)
            parts = [k.load(k.arg("xq"), base + r * self.width, at_once) for r in range(ROWS_AT_ONCE)]
            bytes_of = T.Shuffle(parts, order)
            k.store(k.arg("mixed"), four * self.width + i * at_once, T.reinterpret("int32x16", bytes_of), at_once)

    def pack(self, tile: Any, row0: Any, rows: int, count: Any) -> None:
        """What the strip stores of `rows` rows, zeros up to `count` blocks; nothing where strips are packed ahead."""
        T, k = self.T, self.k
        if self.interleaved:
            self._pack_four(tile, row0, count)
        elif self.w["sparse"] and not self.ahead:
            with T.serial(row0, row0 + rows) as row:
                base = bind(k, row * self.packed_stride)
                if self.listed:
                    with T.serial(0, count) as b:
                        self._pack_listed(tile, row, b, base)
                    return
                filled = k.local(1, "int32")
                k.store(filled, 0, base)
                self._each_words(0, self.words, partial(self._pack_words, tile, row, filled=filled))
                self._fill_up(filled, base + count * self.block)

    def _chosen(self, tile: Any, i: Any, words: int) -> tuple[Any, Any]:
        """Of some words of the tile's bitmap from the i-th on: what packing wants to know of them, and how many inputs they choose."""
        T, k = self.T, self.k
        word = k.load(k.arg("positions"), tile * self.words + i, words)
        if self.by_mask:
            bits = bind(k, word if words == 1 else T.reinterpret(f"uint{8 * words}", word))
            return bits, T.Cast("int32", T.popcount(bits))
        bits = bind(k, T.Cast("int32", word))
        return k.load(k.arg("pack"), bits * 8, 8), T.popcount(bits)

    def _each_words(self, first: Any, last: Any, pack: Callable[[Any, int], None]) -> None:
        """`pack` for the words [first, last), as many as are packed at once."""
        T, k, n = self.T, self.k, self.at_once
        done = first
        if n > 1:
            steps = bind(k, T.truncdiv(last - first, n))
            with T.serial(0, steps) as i:
                pack(bind(k, first + i * n), n)
            done = bind(k, first + steps * n)
        with T.serial(done, last) as i:
            pack(i, 1)

    def _pack_words(self, tile: Any, row: Any, i: Any, words: int, filled: Any) -> None:
        """Inputs of one row, eight a word: those that the strip stores go to `packed` from `filled` on."""
        k = self.k
        control, count = self._chosen(tile, i, words)
        values = k.load(k.arg("xq"), row * self.width + i * 8, 8 * self.at_once)
        k.store(k.arg("packed"), k.load(filled, 0), dot.pack_bytes(k, values, control), 8 * self.at_once)
        k.store(filled, 0, k.load(filled, 0) + count)

    def _pack_listed(self, tile: Any, row: Any, b: Any, start: Any) -> None:
        """Block `b` of what the strip stores, one input after the other, to `packed` behind `start`."""
        k = self.k
        at, first = self._listed_from(tile, b), bind(k, row * self.width)

        def copy(i: Any) -> None:
            place = k.load(k.arg("places"), at + i)
            byte = k.load(k.arg("xq"), first + self.T.Cast("int32", place))
            k.store(k.arg("packed"), start + b * self.block + i, byte)

        self._each_of_block(copy)

    def _listed_from(self, tile: Any, b: Any) -> Any:
        """Where the list has block `b` of a tile."""
        k = self.k
        return bind(k, (k.load(k.arg("starts"), tile) + b) * self.block)

    def _each_of_block(self, copy: Callable[[Any], None]) -> None:
        at_once = next(n for n in (8, 4, 2, 1) if self.block % n == 0)
        with self.T.serial(0, self.block // at_once) as part:
            first = bind(self.k, part * at_once)
            for i in range(at_once):
                copy(first + i)

    def _fill_up(self, filled: Any, end: Any) -> None:
        T, k = self.T, self.k
        with T.serial(bind(k, k.load(filled, 0)), end) as i:
            k.store(k.arg("packed"), i, T.int8(0))

    def _pack_four(self, tile: Any, row0: Any, count: Any) -> None:
        """`packed` of the four rows from `row0` on: first [stored][4 rows], then its 4 x 4 bytes transposed."""
        T, k = self.T, self.k
        packed = k.arg("packed")
        base = bind(k, T.truncdiv(row0, ROWS_AT_ONCE) * self.width)
        if self.listed:
            self._copy_lanes(tile, base, count)
        else:
            self._select_lanes(tile, base, count)
        nb = self.dot.bytes
        end = bind(k, count * (self.block * ROWS_AT_ONCE))
        order = [T.int32(part * 16 + 4 * i + r) for part in range(nb // 16) for r in range(4) for i in range(4)]
        with T.serial(0, T.truncdiv(end + (nb - 1), nb)) as i:
            k.store(packed, i * nb, T.Shuffle([k.load(packed, i * nb, nb)], order), nb)

    def _copy_lanes(self, tile: Any, base: Any, count: Any) -> None:
        """[stored][4 rows] by the list."""
        T, k = self.T, self.k
        with T.serial(0, count) as b:
            at = self._listed_from(tile, b)

            def copy(i: Any) -> None:
                place = T.Cast("int32", k.load(k.arg("places"), at + i))
                four = T.reinterpret("int8x4", k.load(k.arg("mixed"), base + place))
                k.store(k.arg("packed"), (b * self.block + i) * ROWS_AT_ONCE, four, ROWS_AT_ONCE)

            self._each_of_block(copy)

    def _select_lanes(self, tile: Any, base: Any, count: Any) -> None:
        """[stored][4 rows] by the bitmap, zeros up to `count` blocks."""
        T, k = self.T, self.k
        packed, filled = k.arg("packed"), k.local(1, "int32")
        k.store(filled, 0, T.int32(0))
        n = 8 * self.at_once

        def pack(i: Any, words: int) -> None:
            control, count = self._chosen(tile, i, words)
            lanes = dot.pack_lanes(k, k.load(k.arg("mixed"), base + i * 8, n), control)
            k.store(packed, k.load(filled, 0), T.reinterpret(f"int8x{4 * n}", lanes), 4 * n)
            k.store(filled, 0, k.load(filled, 0) + count * 4)

        self._each_words(0, self.words, pack)
        end = bind(k, count * (self.block * ROWS_AT_ONCE))
        with T.serial(0, T.truncdiv(end - k.load(filled, 0), 4)) as i:
            k.store(packed, k.load(filled, 0) + i * 4, T.Cast("int8x4", k.i32(0, 4)), 4)

    def first_ahead(self) -> None:
        """Pack the first strip of this thread, where strips are packed ahead."""
        T, k = self.T, self.k
        if not self.ahead:
            return
        if self.listed:
            begin = bind(k, self._half(k.lo))
            with T.serial(0, bind(k, self._stored_blocks(k.lo))) as b:
                self._pack_listed(k.lo, T.int32(0), b, begin)
            return
        filled, start = k.local(1, "int32"), bind(k, self._half(k.lo))
        k.store(filled, 0, start)
        self._each_words(0, self.words, partial(self._pack_words, k.lo, T.int32(0), filled=filled))
        self._fill_up(filled, start + self._stored_blocks(k.lo) * self.block)

    def each_block(self, tile: Any, count: Any, body: Callable[[Any], None]) -> None:
        """`body` for every block of the tile. Where strips are packed ahead, the next one is packed meanwhile: that keeps the
        ports of the scalar unit busy, the products those of the vectors."""
        T, k, w = self.T, self.k, self.w
        if not self.ahead:
            with T.serial(0, count) as b:
                body(b)
            return
        following = bind(k, T.min(tile + 1, k.hi - 1))
        start = bind(k, self._half(tile + 1))
        if self.listed:
            more = bind(k, self._stored_blocks(following))
            common = bind(k, T.min(count, more))
            with T.serial(0, common) as b:
                body(b)
                self._pack_listed(following, T.int32(0), b, start)
            with T.serial(common, count) as b:
                body(b)
            with T.serial(common, more) as b:
                self._pack_listed(following, T.int32(0), b, start)
            return
        each = w["words_a_block"]
        filled = k.local(1, "int32")
        k.store(filled, 0, start)
        pack = partial(self._pack_words, following, T.int32(0), filled=filled)
        both, step = bind(k, T.min(count, T.int32(self.words // each))), min(each, self.at_once)
        with T.serial(0, both) as b:
            body(b)
            for i in range(0, each, step):
                pack(bind(k, b * each + i), step)
        with T.serial(both, count) as b:
            body(b)
        self._each_words(bind(k, both * each), self.words, pack)
        self._fill_up(filled, start + self._stored_blocks(following) * self.block)

    def _stored_blocks(self, tile: Any) -> Any:
        starts = self.k.arg("starts")
        return self.k.load(starts, tile + 1) - self.k.load(starts, tile)

    def _half(self, tile: Any) -> Any:
        """Where the packed inputs of a tile start: two tiles take turns."""
        return (tile % 2) * self.packed_stride
