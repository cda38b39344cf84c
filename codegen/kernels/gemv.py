"""Products with few rows of activations and compressed weights, in int8: act(x[M, K] . W^T + bias + residual), M small.

The activations are rounded first, a block of rows by every thread that works on it (gemv_inputs.py): int8 with one scale per
row, or per row and block of inputs, as the node's `activations` says (see sparsec/int8.py). Then each tile of R outputs streams
its codes: bytes are looked up or masked (once for all rows of a block), multiplied by four broadcast inputs a lane, and summed
in int32 over a block, then scaled into float32 (byte_weights.py has the layout). For strips of a sparse weight the activations
are packed by the strip's bitmap, so that what is not stored costs nothing.

A unit is a tile of one block of rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil, prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa import dot
from sparsec.codegen.isa.epilogue import activation_cost
from sparsec.codegen.isa.vecmath import bind, unknown_count
from sparsec.codegen.kernels import byte_weights, gemv_inputs, joined, joined_row, paired, wide
from sparsec.codegen.kernels.gemv_inputs import Inputs
from sparsec.codegen.kernels.gemv_results import Results
from sparsec.codegen.kernels.gemv_rounding import ROWS_AT_ONCE, STEP, padded_width, rows_of_block
from sparsec.codegen.kernels.gemv_weights import Weights
from sparsec.codegen.kernels.weights import epilogue, int8_operands, refused_epilogue
from sparsec.codegen.program import Arg, Signature
from sparsec.formats.encoded import Unpacked
from sparsec.op_view import SparsecNode, view
from sparsec.target import Target

# Packing, in operations of `cost` (16 a cycle, on AVX2): an input that is listed, and as many as a bitmap chooses from at once.
_COPIED, _CHOSEN = 14, 22
# Sums that vpdpbusd joins in turns: its latency of four or five cycles, twice a cycle.
_CHAINS = 8


def lower_gemv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::MatMul with int8 activations whose weight can be laid out as bytes."""
    op = view(node)
    operands = int8_operands(op)
    if isinstance(operands, Refusal):
        return operands
    return lower_bytes(op, low, *operands)


def lower_bytes(op: SparsecNode, low: Lowering, weight: Unpacked, x_group: int) -> Refusal | None:
    """The product of a node with `weight`, an encoded form of its own."""
    assert op.x is not None
    if why := byte_weights.refusal(weight, low.target, x_group):
        return Refusal(why)
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    m = prod(low.shape(op.x)[:-1])
    if m == 0:
        return Refusal("the product has no rows")
    label = op.node.name or "weight"
    packed = byte_weights.pack(weight, low.target, x_group, label, m)
    ins = [low.get(op.x), *(low.const(array, name) for name, array in packed.arrays)]
    if gemv_inputs.looks_up_bits({"m": m, "w": packed.params}, low.target):
        table = gemv_inputs.pack_table({"m": m, "w": packed.params}, low.target)
        ins.append(low.const(table, "pack_bytes"))
    if joined.asks({"m": m, "w": packed.params}, low.target):
        ins.append(low.const(joined.limits(weight, packed.params), f"{label}.limits"))
    rows = packed.params["tiles"] * packed.params["tile"]
    finish, added = epilogue(op, low, arrange=lambda bias: np.pad(bias, (0, rows - op.rows)))
    params = {"m": m, "w": packed.params, "x_group": x_group, **finish}
    scheme = op.scheme if weight.scheme == op.scheme else f"{op.scheme} (zeros too, as {weight.scheme})"
    note = f"[{m}, {op.cols}] x [{op.cols}, {op.rows}] {scheme} x {op.activations} {op.activation}".strip()
    low.call(
        "gemv", params, [*ins, *added], [low.new(op.output)], node=op.node.name or "", op="MatMul", note=note,
        cost=cost(params, packed.blocks, low.target),
    )  # fmt: skip
    return None


def decodes_once(p: Mapping[str, Any], target: Target) -> bool:
    """Whether a tile's weights are decoded into scratch, for several passes of rows over them."""
    w = p["w"]
    at_once = paired.rows_at_once(w, w["tile"] // target.lanes) if w["paired"] else ROWS_AT_ONCE
    several = rows_of_block(p["m"]) > at_once and not (w["bits"] == 8 and w["kind"] == "affine")
    return several or joined.applies(p, target)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x, the weight's arrays, pack table?, bias?, residual?; out: y; work: quantised activations, scales, sums."""
    w, m = p["w"], p["m"]
    args = [Arg("x", "float32", m * w["k"], "in"), *byte_weights.arguments(w, target)]
    if gemv_inputs.looks_up_bits(p, target):
        args.append(Arg("pack", "uint8", 256 * 8, "in"))
    args += joined.arguments(p, target)
    if p["bias"]:
        args.append(Arg("bias", "float32", w["tiles"] * w["tile"], "in"))
    if p["residual"]:
        args.append(Arg("residual", "float32", m * w["rows"], "in"))
    args.append(Arg("y", "float32", m * w["rows"], "out"))
    args += gemv_inputs.work_arguments(p, target)
    if decodes_once(p, target):
        args.append(Arg("decoded", "uint8", w["tile"] * (padded_width(w) + w["block"]), "work"))
    if joined.applies(p, target):
        args += joined.work_arguments(p, target)
    if joined_row.applies(p, target):
        args += joined_row.work_arguments(p, target)
    if wide.applies(p, target):
        args += wide.work_arguments(p)
    units = ceil(m / rows_of_block(m)) * w["tiles"]
    return Signature(tuple(args), units, 0 if w["sparse"] else cost(p, w["blocks"], target), pieces=1)


def cost(p: Mapping[str, Any], blocks: int, target: Target) -> int:
    """`Signature.cost` for a weight of so many blocks."""
    w, m = p["w"], p["m"]
    macs = m * blocks * w["block"] * w["tile"]
    packing = 0
    if w["sparse"]:
        four = gemv_inputs.interleaves(p, target)
        one = w["k"] * w["tiles"] // dot.packed_at_once(target, lanes=four) * _CHOSEN
        packing = ceil(m / ROWS_AT_ONCE if four else m) * (blocks * w["block"] * _COPIED if w["listed"] else one)
    return int(macs // 2 + packing + m * w["rows"] * (4 + activation_cost(p["act"])))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the kernel (see the module's docstring)."""
    _Gemv(p, k).write()


class _Gemv:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.w, self.k, self.T = p, p["w"], k, k.T
        # blocks with an offset alone: xsum says where their sums of products begin
        self.begins = bool(self.w["offset"]) and not (self.w["sparse"] or self.w["one_block"] or self.w["zero_points"])
        self.dot, self.inputs = dot.ByteDot(k), Inputs(p, k, times=-self.w["offset"] if self.begins else 1)
        self.lanes: int = k.lanes
        self.vectors = self.w["tile"] // k.lanes
        self.block, self.blocks = self.inputs.block, self.inputs.blocks
        self.grouped = self.inputs.grouped
        self.decoded = decodes_once(p, k.target)
        self.weights = Weights(self.w, k, once=p["m"] <= ROWS_AT_ONCE or self.decoded, decoded=self.decoded)
        self.wide = wide.Wide(p, k) if wide.applies(p, k.target) else None
        largest = 127 if self.w["kind"] != "affine" else (1 << self.w["bits"]) - 1
        self.results = Results(p, k, self.weights, self.inputs)
        self.joins = joined.Joined(p, k, self.vectors) if joined.applies(p, k.target) else None
        self.row = joined_row.JoinedRow(p, k, self.vectors) if joined_row.applies(p, k.target) else None
        # sums of 16 bits begin at the correction of the table's offset, those of 32 bits at nothing
        self.wraps = self.row is not None or (self.joins is not None and self.joins.wraps)
        self.paired = paired.Paired(self.inputs, k, self.vectors) if self.w["paired"] else None
        self.joined = 1 if self.w["sparse"] else dot.pairs_in_16_bits(k.target, largest)

    def write(self) -> None:
        T, k, tiles = self.T, self.k, self.w["tiles"]
        with T.If(k.lo < k.hi), T.Then():
            whole, rest = divmod(self.p["m"], rows_of_block(self.p["m"]))
            if whole == 1 and not rest:
                self._rows_of_block(T.int32(0), rows_of_block(self.p["m"]), k.lo, k.hi)
                return
            first, last = bind(k, T.truncdiv(k.lo, tiles)), bind(k, T.truncdiv(k.hi - 1, tiles))
            with T.serial(first, T.min(last + 1, whole)) as block:
                lo, hi = T.max(k.lo - block * tiles, 0), T.min(k.hi - block * tiles, tiles)
                self._rows_of_block(block, rows_of_block(self.p["m"]), bind(k, lo), bind(k, hi))
            if rest:
                with T.If(last == whole), T.Then():
                    lo = T.max(k.lo - whole * tiles, 0)
                    self._rows_of_block(T.int32(whole), rest, bind(k, lo), bind(k, k.hi - whole * tiles))

    def _rows_of_block(self, block: Any, rows: int, lo: Any, hi: Any) -> None:
        """Tiles [lo, hi) of one block of rows."""
        T, k = self.T, self.k
        self.row_base = bind(k, block * rows_of_block(self.p["m"]))
        self.inputs.quantise_rows(self.row_base, rows)
        if self.inputs.interleaved:
            self.inputs.mix(rows)
        if self.inputs.paired and self.paired is not None:
            self.paired.prepare(rows)
        if self.joins is not None:
            self.joins.prepare(rows)
        if self.row is not None:
            self.row.prepare()
        if self.wide is not None:
            self.wide.prepare(rows)
        self.inputs.first_ahead()
        with T.serial(lo, hi) as tile:
            self._tile(tile, rows)

    # --- a tile of outputs ---

    def _tile(self, tile: Any, m: int) -> None:
        T, k, w = self.T, self.k, self.w
        if w["sparse"]:
            first = bind(k, k.load(k.arg("starts"), tile))
            count = bind(k, k.load(k.arg("starts"), tile + 1) - first)
        else:
            count = w["blocks"] // w["tiles"]
            first = bind(k, tile * count)
        if self.decoded:
            self._decode(tile, first, count)
        at_once = self.joins.rows_at_once if self.joins is not None else ROWS_AT_ONCE
        if self.paired is not None:
            at_once = paired.rows_at_once(w, self.vectors)
        whole, rest = divmod(m, at_once)
        if whole:
            with T.serial(0, whole) as chunk:
                self._rows(tile, first, count, bind(k, chunk * at_once), at_once)
        if rest:
            self._rows(tile, first, count, T.int32(whole * at_once), rest)

    def _decode(self, tile: Any, first: Any, count: Any) -> None:
        """The weights of a tile as bytes, in the order in which products read them."""
        T = self.T
        self.weights.set_table(tile)
        whole, rest = divmod(self.block // 4, STEP // 4)
        with T.serial(0, count) as b:
            self.weights.set_table_of_block(b)
            if whole > 2:
                with T.serial(0, whole) as step:
                    self._decode_step(first, b, step, STEP // 4)
            else:
                for step in range(whole):
                    self._decode_step(first, b, T.int32(step), STEP // 4)
            if rest:
                self._decode_step(first, b, T.int32(whole), rest)

    def _decode_step(self, first: Any, block: Any, step: Any, quads: int) -> None:
        """Some quads of a block of a tile; first: number of the tile's first block."""
        k, nb = self.k, self.dot.bytes
        reader = self.weights.reader(self.weights.code_offsets(first + block, step))
        to = bind(k, (block * (self.block // 4) + step * (STEP // 4)) * (self.vectors * nb))
        for quad in range(quads):
            for v in range(self.vectors):
                k.store(k.arg("decoded"), to + (quad * self.vectors + v) * nb, reader(quad, v), nb)

    def _rows(self, tile: Any, first: Any, count: Any, row0: Any, rows: int) -> None:
        """`rows` rows of activations, from row0 on, against one tile."""
        T, k, n, w = self.T, self.k, self.lanes, self.w
        self.inputs.pack(tile, row0, rows, count)
        slots = rows * self.vectors
        self.chains = self._chains_of(slots)
        total = k.local(slots * n)
        acc = k.local(slots * self.chains * n, "int32") if self.paired is None else self.paired.sums(rows)
        for i in range(slots):
            k.store(total, i * n, k.f32(0.0, n), n)
        self.weights.set_table(tile)
        if w["one_block"]:
            self._begin(acc, [T.int32(0)] * rows)
            # without group scales a dense row is one block, a strip a run of blocks
            self.inputs.each_block(tile, count, lambda b: self._products(tile, first, b, row0, rows, acc))
            self._join_chains(acc, slots)
            sums = [bind(k, k.load(k.arg("xsum"), (row0 + row) * self.blocks)) for row in range(rows)]
            at_end = not self.wraps
            self.results.scaled(tile, T.int32(0), sums, rows, self._by_row(acc, rows), total, at_end=at_end)
        else:

            def block(b: Any) -> None:
                self.weights.set_table_of_block(b)
                sums = [bind(k, k.load(k.arg("xsum"), (row0 + row) * self.blocks + b)) for row in range(rows)]
                self._begin(acc, [self._start_of(x) for x in sums])
                self._products(tile, first, b, row0, rows, acc)
                scales = None
                if self.grouped:
                    scales = [k.load(k.arg("xscale"), (row0 + row) * self.blocks + b) for row in range(rows)]
                found = self._by_row(acc, rows)
                self.results.scaled(tile, first + b, sums, rows, found, total, at_end=False, x_scales=scales)

            self.inputs.each_block(tile, count, block)
        self.results.finish(tile, self.row_base, row0, rows, total)

    def _start_of(self, total: Any) -> Any:
        """Where the sums of products of a block begin, whose number in xsum is `total`."""
        if self.wraps:
            return self.T.int32(0)
        if self.begins or not self.w["offset"]:
            return total if self.begins else self.T.int32(0)
        return total * self.T.int32(-self.w["offset"])

    def _begin(self, acc: Any, starts: list[Any]) -> None:
        """Accumulators of every row of activations from its number of `starts` on."""
        k, n = self.k, self.lanes
        if self.paired is not None:
            self.paired.begin(acc, starts)
            return
        for row, start in enumerate(starts):
            for v in range(self.vectors):
                k.store(acc, (row * self.vectors + v) * n, k.splat(start, n), n)
        slots = len(starts) * self.vectors
        for i in range(slots, slots * self.chains):
            k.store(acc, i * n, k.i32(0, n), n)

    def _chains_of(self, slots: int) -> int:
        """Sums that the products of a slot of a long row join in turns: one would wait for each vpdpbusd to end."""
        return max(1, _CHAINS // slots) if self.dot.vnni and self.w["one_block"] else 1

    def _join_chains(self, acc: Any, slots: int) -> None:
        k, n = self.k, self.lanes
        for chain in range(1, self.chains):
            for slot in range(slots):
                more = k.load(acc, (chain * slots + slot) * n, n)
                k.store(acc, slot * n, k.load(acc, slot * n, n) + more, n)

    def _by_row(self, acc: Any, rows: int) -> Any:
        """Sums by row of activations, then vector, as results are finished."""
        return acc if self.paired is None else self.paired.by_row(acc, rows)

    def _starts(self, tile: Any, block: Any, row0: Any, rows: int) -> list[Any]:
        if self.paired is not None:
            return self.paired.starts(tile, block, row0, rows)
        return [bind(self.k, self.inputs.start(tile, block, row0, row)) for row in range(rows)]

    def _products(self, tile: Any, first: Any, block: Any, row0: Any, rows: int, acc: Any) -> None:
        """Add the products of one block of the tile to the accumulators. first: number of the tile's first block."""
        T = self.T
        if self.row is not None:
            self.row.products(block, lambda step: self.weights.read(self.weights.offsets(first, block, step)), acc)
            return
        if self.joins is not None:
            self.joins.products(tile, row0, rows, block, acc)
            return
        starts = self._starts(tile, block, row0, rows)
        steps = ceil(self.block / STEP)
        if self.block % STEP == 0 and steps > 2:
            with T.serial(0, steps) as s:
                self._step(first, block, s, starts, STEP // 4, acc)
            return
        for s in range(steps):
            quads = min(STEP, self.block - s * STEP) // 4
            self._step(first, block, T.int32(s), starts, quads, acc)

    def _step(self, first: Any, block: Any, step: Any, starts: list[Any], quads: int, acc: Any) -> None:
        """Up to eight quads: every byte of the planes is loaded once."""
        T, k, nb, rows = self.T, self.k, self.dot.bytes, len(starts)
        stride = self.inputs.quad_stride
        x0 = [bind(k, start + step * (STEP // 4 * stride)) for start in starts]
        widths = [8] if self.decoded else [width for width, _ in self.weights.planes]
        at = self.weights.offsets(first, block, step)
        pairs = k.local(rows * self.vectors * nb // 2, "int16") if self.joined > 1 else None
        few = max(8 // widths[0], 2)  # quads of whole bytes
        unrolled = rows == 1 and not self.weights.slow
        if unrolled or len(widths) > 1 or quads % few or quads == few:
            self._quads(at, x0, quads, acc, pairs)
            return
        # A loop of few quads: of a longer run of code the compiler makes one that does not fit the registers.
        waits = pairs is not None and self.joined >= quads
        if waits:
            for slot in range(rows * self.vectors):
                k.store(pairs, slot * nb // 2, k.splat(T.int16(0), nb // 2), nb // 2)
        times = quads // few
        with T.serial(0, unknown_count(k, times) if self._keeps_loop(times) else times) as i:
            bytes_of = [
                bind(k, a + i * (few * width // 8 * self.w["tile"] * 4)) for a, width in zip(at, widths, strict=True)
            ]
            self._quads(bytes_of, [bind(k, x + i * (few * stride)) for x in x0], few, acc, pairs, waits=waits)
        if waits:
            self._flush(pairs, acc, rows)

    def _keeps_loop(self, times: int) -> bool:
        """Whether a loop of so many steps of a few quads is hidden from the compiler, which would unroll it and run out of registers
        (measured: small integers with one scale a row are better unrolled)."""
        w = self.w
        small = w["kind"] == "affine" and w["one_block"] and times == 2
        return bool(w["sparse"] or (self.dot.x86 and not small))

    def _flush(self, pairs: Any, acc: Any, rows: int) -> None:
        """Products of pairs, waiting in 16 bits, join the sums."""
        k, n, nb = self.k, self.lanes, self.dot.bytes
        for slot in range(rows * self.vectors):
            wide = self.dot.widen(k.load(pairs, slot * nb // 2, nb // 2))
            k.store(acc, slot * n, k.load(acc, slot * n, n) + wide, n)

    def _quads(self, at: list[Any], x0: list[Any], quads: int, acc: Any, pairs: Any, *, waits: bool = False) -> None:
        """Products of `quads` quads, weights from `at`, inputs from `x0` (by row); `waits`: they stay in `pairs`."""
        k, n, nb = self.k, self.lanes, self.dot.bytes
        source, stride = self.inputs.source, self.inputs.quad_stride
        weights_of = self.weights.read(at)
        if self.paired is not None:
            self.paired.products(weights_of, x0, quads, acc)
            return
        xs = [self.dot.quads(source, x, stride, quads) for x in x0]
        held = 0  # products of pairs waiting in 16 bits
        for quad in range(quads):
            if self.wide is not None:
                self.wide.products([weights_of(quad, v) for v in range(self.vectors)], x0, quad, acc)
                continue
            for v in range(self.vectors):
                weights = weights_of(quad, v)
                for r in range(len(x0)):
                    slot = r * self.vectors + v
                    if pairs is None:
                        place = (quad % self.chains * (len(x0) * self.vectors) + slot) * n
                        sums = self.dot.dot(
                            k.load(acc, place, n), weights, xs[r](quad), signed_weights=self.w["sparse"]
                        )
                        k.store(acc, place, sums, n)
                    else:
                        product = self.dot.pairs(weights, xs[r](quad))
                        place = slot * nb // 2
                        first = held == 0 and not waits
                        k.store(pairs, place, product if first else k.load(pairs, place, nb // 2) + product, nb // 2)
            held += 1
            if pairs is not None and not waits and (held == self.joined or quad == quads - 1):
                self._flush(pairs, acc, len(x0))
                held = 0
