"""Products of bytes: groups of four 8-bit weights times four 8-bit inputs, summed into int32 lanes, per instruction set.

A vector holds `4 * k.lanes` bytes: in each 32-bit lane four consecutive inputs of one output row. Activations are int8 in
[-127, 127], four of them broadcast to every lane. aarch64 multiplies signed bytes (sdot). x86 multiplies unsigned by signed
ones (vpmaddubsw): either the weights get an offset, whose share the caller takes off by the sum of the inputs, or the inputs
do (`X_OFFSET`), to be taken off by the sum of the weights.

aarch64 with i8mm has smmla, four times as many products as sdot has lanes: two rows of inputs with two of weights, eight bytes of
each. Its weights lie differently (`pair_quads`).

x86 without VNNI adds pairs of products in 16 bits, so tables keep to 7 bits: 2 * 127 * 127 and 2 * 255 * 63 fit. With VNNI
(vpdpbusd) four products join 32 bits at once, whatever the bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sparsec.codegen.isa.pieces import pieces
from sparsec.int8 import ACTIVATION_MAX, TABLE_MAX
from sparsec.target import Target

# Added to inputs that are read as unsigned bytes (x86).
X_OFFSET = 128
# Added to table entries so that they are unsigned (x86).
TABLE_OFFSET = TABLE_MAX + 1
# What 16-bit lanes hold.
_INT16_MAX = 32767


def supported(target: Target) -> bool:
    """Whether the target has the instructions this file is written for."""
    return target.arch == "x86_64" or "dotprod" in target.features


def table_offset(target: Target) -> int:
    """What is added to table entries so that the instruction can read them."""
    return TABLE_OFFSET if target.arch == "x86_64" else 0


def multiplies_pairs(target: Target) -> bool:
    """Whether the target multiplies two rows of inputs with two rows of weights at once (smmla)."""
    return "i8mm" in target.features


def pair_quads(quads: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Quads [blocks, quad, vector, lane, 4] as smmla reads them: of each two quads of a vector, first the eight inputs of its
    lanes 0 and 1, then those of lanes 2 and 3."""
    blocks, count, vectors, lanes, _ = quads.shape
    split = quads.reshape(blocks, count // 2, 2, vectors, 2, lanes // 2, 4)
    return split.transpose(0, 1, 4, 3, 5, 2, 6).reshape(quads.shape)


def pairs_in_16_bits(target: Target, largest: int) -> int:
    """How many products of pairs of weights in [0, largest] can be added before 16 bits overflow (x86), at least 1."""
    if target.arch != "x86_64" or target.vnni:
        return 1
    return max(1, _INT16_MAX // (2 * largest * ACTIVATION_MAX))


class ByteDot:
    """The byte operations of one kernel (`k`: KernelBuilder)."""

    def __init__(self, k: Any) -> None:
        self.k, self.T = k, k.T
        self.lanes: int = k.lanes
        self.bytes = 4 * k.lanes
        self.x86 = k.target.arch == "x86_64"
        self.vnni: bool = k.target.vnni
        self.wide = self.lanes == 16

    def _as(self, dtype: str, value: Any) -> Any:
        return self.T.reinterpret(dtype, value)

    def field(self, packed: Any, shift: int, width: int, to: int = 0) -> Any:
        """Bits [shift, shift + width) of every byte of `packed` (uint8 vector), moved to bit `to`."""
        T, k, n = self.T, self.k, self.bytes
        if width == 8:
            return packed
        mask = k.splat(T.uint8(((1 << width) - 1) << to), n)
        move = shift - to
        if move and not self.x86:
            amount = k.splat(T.uint8(abs(move)), n)
            packed = packed >> amount if move > 0 else packed << amount
            alone = max(0, -move) >= to and min(8, 8 - move) <= to + width  # nothing else is left in the byte
            return packed if alone else packed & mask
        if move:
            # there is no shift of bytes on x86; bits that cross over from the neighbour are masked away
            words = self._as(f"uint16x{n // 2}", packed)
            amount = k.splat(T.uint16(abs(move)), n // 2)
            packed = self._as(f"uint8x{n}", words >> amount if move > 0 else words << amount)
        return packed & mask

    def lookup(self, table: Any, codes: Any) -> Any:
        """table[codes]: 16 bytes, repeated in every 128-bit part of `table`; codes below 16."""
        T, n = self.T, self.bytes
        if not self.x86:
            result = T.call_llvm_pure_intrin(
                "int8x16", "llvm.aarch64.neon.tbl1", self._as("int8x16", table), self._as("int8x16", codes)
            )
            return self._as("uint8x16", result)
        name = "llvm.x86.avx512.pshuf.b.512" if self.wide else "llvm.x86.avx2.pshuf.b"
        result = T.call_llvm_pure_intrin(f"int8x{n}", name, self._as(f"int8x{n}", table), self._as(f"int8x{n}", codes))
        return self._as(f"uint8x{n}", result)

    def quads(self, source: Any, at: Any, stride: int, count: int) -> Callable[[int], Any]:
        """Quad i of `count` that begin at source[at], `stride` bytes apart, in every lane. aarch64 loads up to four at once: sdot
        takes one of them as it is."""
        T, k = self.T, self.k
        loaded: dict[int, tuple[Any, int, int]] = {}
        if self.x86 or stride != 4:
            return lambda i: self.broadcast(T.reinterpret("int32", k.load(source, at + i * stride, 4)))
        for first, width in pieces(count, 4):
            held = k.local(width, "int32")
            dtype = "int32" if width == 1 else f"int32x{width}"
            k.store(held, 0, T.reinterpret(dtype, k.load(source, at + first * 4, 4 * width)), width)
            loaded |= {first + i: (held, i, width) for i in range(width)}

        def lane(quad: int) -> Any:
            held, i, width = loaded[quad]
            if width == 1:
                return self.broadcast(k.load(held, 0))
            return self._as("int8x16", T.Shuffle([k.load(held, 0, width)] * 2, [T.int32(i)] * 4))

        return lane

    def broadcast(self, quad: Any) -> Any:
        """Four int8 inputs, as one int32, in every lane."""
        return self._as(f"int8x{self.bytes}", self.k.splat(quad, self.lanes))

    def pairs(self, weights: Any, x: Any) -> Any:
        """int16 sums of neighbouring products of unsigned `weights` and signed `x` (x86)."""
        n = self.bytes
        name = "llvm.x86.avx512.pmaddubs.w.512" if self.wide else "llvm.x86.avx2.pmadd.ub.sw"
        operands = (self._as(f"int8x{n}", weights), self._as(f"int8x{n}", x))
        return self.T.call_llvm_pure_intrin(f"int16x{n // 2}", name, *operands)

    def widen(self, pairs: Any) -> Any:
        """int32 sums of neighbouring int16."""
        n = self.bytes
        ones = self.k.splat(self.T.int16(1), n // 2)
        return self.multiply_add(pairs, ones)

    def multiply_add(self, a: Any, b: Any) -> Any:
        """int32 sums of neighbouring products of int16 (exact)."""
        name = "llvm.x86.avx512.pmaddw.d.512" if self.wide else "llvm.x86.avx2.pmadd.wd"
        return self.T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, a, b)

    def dot(self, total: Any, weights: Any, x: Any, *, signed_weights: bool = False) -> Any:
        """total + the four products of every lane; with `signed_weights` the inputs are the unsigned ones on x86."""
        if self.vnni:
            operands = [self._as(f"int8x{self.bytes}", v) for v in ((x, weights) if signed_weights else (weights, x))]
            name = f"llvm.x86.avx512.vpdpbusd.{8 * self.bytes}"  # of unsigned and signed bytes
            return self.T.call_llvm_pure_intrin(f"int32x{self.lanes}", name, total, *operands)
        if self.x86:
            return total + self.widen(self.pairs(x, weights) if signed_weights else self.pairs(weights, x))
        return self.T.call_llvm_pure_intrin(
            "int32x4", "llvm.aarch64.neon.sdot.v4i32.v16i8", total, self._as("int8x16", weights), self._as("int8x16", x)
        )

    def matrix(self, total: Any, weights: Any, x: Any) -> Any:
        """total + the products of two rows of inputs (bytes 0-7, 8-15 of `x`) with two rows of weights (likewise), in lanes
        [x row][weight row] (`multiplies_pairs`)."""
        operands = [self._as("int8x16", v) for v in (x, weights)]
        return self.T.call_llvm_pure_intrin("int32x4", "llvm.aarch64.neon.smmla.v4i32.v16i8", total, *operands)

    def pair(self, first: Any, second: Any, half: int) -> Any:
        """Two quads of every lane (bytes) -> the eight bytes of lanes 0 and 1 (half 0), or of lanes 2 and 3."""
        words = [self._as("int32x4", v) for v in (first, second)]
        both = self.k.shuffle(*words, [2 * half, 4 + 2 * half, 2 * half + 1, 5 + 2 * half])
        return self._as("uint8x16", both)


def packs_by_mask(target: Target, *, lanes: bool = False) -> bool:
    """Whether one instruction brings the chosen bytes (lanes of 32 bits) of a vector together: no table is looked up."""
    return ("avx512" if lanes else "avx512vbmi2") in target.features


def packed_at_once(target: Target, *, lanes: bool = False) -> int:
    """How many bytes (lanes) `pack_bytes` (`pack_lanes`) chooses from."""
    return (16 if lanes else 64) if packs_by_mask(target, lanes=lanes) else 8


def pack_table(target: Target, *, lanes: bool = False) -> np.ndarray[Any, Any]:
    """uint8 [256, 8]: for each byte of mask bits what `pack_bytes` (or `pack_lanes`) needs to bring the chosen ones of 8
    together."""
    bits = (np.arange(256)[:, None] >> np.arange(8)) & 1
    if target.arch == "x86_64" and not lanes:
        return (bits * 255).astype(np.uint8)
    table = np.full((256, 8), 255, np.uint8)  # tbl gives 0 for an index out of range
    for row, chosen in zip(table, bits, strict=True):
        places = np.flatnonzero(chosen)
        row[: len(places)] = places
    return table


def pack_bytes(k: Any, values: Any, control: Any) -> Any:
    """The chosen bytes of `values` (int8, `packed_at_once`) side by side, the rest unspecified; `control`: their mask as an
    unsigned integer, or without such an instruction its row of `pack_table`."""
    T = k.T
    if packs_by_mask(k.target):
        return _compress(k, values, control, "int8x64")
    if k.target.arch == "x86_64":
        packed = T.call_llvm_pure_intrin(
            "int64", "llvm.x86.bmi.pext.64", T.reinterpret("int64", values), T.reinterpret("int64", control)
        )
        return T.reinterpret("int8x8", packed)
    wide = T.Shuffle([values, values], [T.int32(i) for i in range(16)])
    return T.call_llvm_pure_intrin("int8x8", "llvm.aarch64.neon.tbl1", wide, T.reinterpret("int8x8", control))


def pack_lanes(k: Any, values: Any, control: Any) -> Any:
    """The chosen lanes of `values` (int32, `packed_at_once`) side by side, the rest unspecified (x86); `control` as in `pack_bytes`."""
    if packs_by_mask(k.target, lanes=True):
        return _compress(k, values, control, "int32x16")
    places = k.T.Cast("int32x8", control)
    return k.T.call_llvm_pure_intrin("int32x8", "llvm.x86.avx2.permd", values, places)


def _compress(k: Any, values: Any, mask: Any, dtype: str) -> Any:
    T, n = k.T, int(dtype.partition("x")[2])
    chosen = T.reinterpret(f"uint1x{n}", T.Cast(f"uint{n}", mask))
    return T.call_llvm_pure_intrin(
        dtype, "llvm.experimental.vector.compress", values, chosen, T.Cast(dtype, k.i32(0, n))
    )
