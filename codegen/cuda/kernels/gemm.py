"""Products of many rows with a compressed weight: C[M, N] = act(A[M, K] . W[N, K]^T + bias + residual) on tensor cores.

A warp multiplies a panel of W (mostly 64 outputs) with up to 64 rows of A, 64 inputs at a time. Rows of A come to shared memory by
asynchronous copies, some steps ahead, in chunks of 8 inputs whose place is swizzled (chunk XOR row), so that lanes read 16
bytes each without two of them meeting in a bank; since W's layout says which inputs a column of the first operand stands for
(fragments.py), those 16 bytes are two second operands as they lie. Codes of W come the same way, as they are stored, and are decoded in
registers, half a step at a time. The sums leave through shared memory, so that stores are rows of C. Of block-sparse weights a step has 64
inputs that are stored (blocks.py); of other sparse ones, steps of which no panel of a block stores anything are left out (scattered.py).

Where the outputs alone are too few for a GPU, the inputs are split: each part writes its sums, and join.py adds them in order. Where panels
store unevenly much, the blocks of the same rows of A have equal shares of it instead (p["shares"] of them, shares.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from sparsec.codegen.cuda import blocking, epilogue, fragments, joining, shares
from sparsec.codegen.cuda.blocks import CHUNK, EACH
from sparsec.codegen.cuda.decode import SUFFIX, Decoder
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.scattered import decoder_of
from sparsec.codegen.cuda.units import CountingSignature
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

TILES = 4
"""Tiles of 16 outputs in a panel, most often."""


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a [M, K], weight (fragments.py), pieces (shares.py) of p["shares"] blocks if it is not 0, bias? [N], residual? [M, N];
    out: c [M, N], with shares then the sums of cut panels, bits of float32. With p["parts"] > 1 no bias and no residual, and c has the sums
    of the parts, bits of float32 [parts, M, N]."""
    m, n, k = p["m"], p["weight"]["n"], p["weight"]["k"]
    return signature_of(p, [Arg("a", "float32", m * k, "in"), *fragments.arguments(p["weight"])], n)


def signature_of(p: Mapping[str, Any], ins: list[Arg], n: int) -> Signature:
    """The same for what a family reads, of n outputs."""
    m, k, blocks = p["m"], p["weight"]["k"], p.get("shares", 0)
    args = [*ins, *(shares.arguments() if blocks else [])]
    if p["parts"] > 1:
        args.append(Arg("c", "uint32", p["parts"] * m * n, "out"))
    else:
        args += [*epilogue.arguments(p, n, m * n), Arg("c", "float32", m * n, "out")]
    places = blocking.row_blocks(p) * shares.places(blocks)
    if blocks:
        args.append(Arg("parts", "uint32", places * blocking.block_rows(p) * blocking.block_outputs(p), "out"))
    return CountingSignature(tuple(args), units=1, cost=2 * m * n * k, counters=places)


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """Blocks of outputs (or shares), the same of the next rows of A, and so on, in x, which alone may have more than 65535; parts in z.

    Blocks that follow each other read the same rows of A, which stay in the second level of cache."""
    columns = p.get("shares", 0) or ceil(p["weight"]["n"] / blocking.block_outputs(p))
    grid = (columns * blocking.row_blocks(p), 1, p["parts"])
    return Launch(grid, (32 * p["warps_n"] * p["warps_m"], 1, 1), blocking.shared_bytes(p))


def build(p: Mapping[str, Any], k: Any) -> None:
    """One block of outputs and rows."""
    Product(p, k).write()


class Product:
    """Emits the kernel. Families whose operands or results lie elsewhere override what finds them (conv.py, matmul.py)."""

    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T, self.w = p, k, k.T, p["weight"]
        self.tiles, self.columns = self.w["tiles"], p["columns"]
        self.suffix = SUFFIX[k.target.storage]
        self.thread, self.threads = k.thread[0], k.launch.threads
        self.lane = k.let(self.thread & 31)
        warp = self.thread >> 5
        self.warp_n, self.warp_m = (
            k.let(self.T.truncmod(warp, p["warps_n"])),
            k.let(self.T.truncdiv(warp, p["warps_n"])),
        )
        self.block_row, self.block = self._split(k.block[0])
        self.row0 = k.let(self.block_row * blocking.block_rows(p))
        self.shared = k.dynamic(k.launch.shared_bytes // 4, "float32")
        self.stage_words, self.stages = blocking.stage_words(p), p["stages"]
        self.row_words = blocking.row_words(p)
        self.codes_at = blocking.block_rows(p) * self.row_words

    def _split(self, block: Any) -> tuple[Any, Any]:
        """(block of rows, block of outputs or share) that a block of the grid is."""
        k, T, rows = self.k, self.T, blocking.row_blocks(self.p)
        if rows == 1:
            return T.int32(0), block
        each = k.launch.grid[0] // rows
        return k.let(T.truncdiv(block, each)), k.let(T.truncmod(block, each))

    def _outputs_block(self) -> Any:
        """Which block of outputs this is, where there are no shares."""
        return self.block

    def _decoder(self) -> Decoder:
        return decoder_of(self.w)(self.k, self.w, self.panel, self.lane, scaled=True)

    def write(self) -> None:
        """All of the kernel."""
        k, T, count = self.k, self.T, self.p["parts"]
        if not self.p.get("shares"):
            self._begin(self._outputs_block())
            steps = self._steps()
            first, last = (T.truncdiv(part * steps, count) for part in (k.block[2], k.block[2] + 1))
            self._compute(first, last)
            return

        def compute(piece: joining.Piece, fresh: Any) -> None:
            self._begin(piece["panel"])
            self._compute(piece["first"], piece["last"], piece)
            k.sync()  # the next piece is staged where the sums are

        joining.each_piece(k, self.block, compute)

    def _begin(self, group: Any) -> None:
        """What follows is of these outputs: a panel of each warp."""
        k, T, each = self.k, self.T, self.p["warps_n"]
        self.group = group
        # the last block may have fewer panels than warps: what its last warps compute is not stored
        self.panel = k.let(T.min(group * each + self.warp_n, T.int32(fragments.panels(self.w) - 1)))
        self.decoder = self._decoder()

    def _steps(self) -> Any:
        """Steps of the block's panels; all have the same."""
        name = "starts" if "blocks" in self.w else "firsts" if self.w.get("scattered") else ""
        if not name:
            return fragments.steps(self.w)
        return self.k.let(self.k.load(self.k.arg(name), self.panel + 1) - self.decoder.first_step)

    def _compute(self, first: Any, last: Any, piece: joining.Piece | None = None) -> None:
        """Steps [first, last). piece: if that may be a part of them."""
        k, T, count = self.k, self.T, self.decoder.scales
        self.first, self.last = k.let(first), k.let(last)
        now, ahead = k.local(max(1, count), "uint32"), k.local(max(1, count), "uint32")
        sums = k.local(self.tiles * self.columns * 4)
        for i in range(self.tiles * self.columns * 4):
            k.store(sums, i, k.f32(0.0))
        for s in range(self.stages - 1):
            self._stage(self.first + s)
        self.decoder.load_scales(now, 0, self.first)
        self._fill_table()
        with T.serial(0, self.last - self.first) as turn:
            step = k.let(self.first + turn)
            k.do(f"spc_copy_wait<{self.stages - 2}>")
            k.sync()
            self._stage(step + (self.stages - 1))
            if count:
                with T.If(step + 1 < self.last), T.Then():
                    self.decoder.load_scales(ahead, 0, step + 1)
            self._multiply(now, step, T.truncmod(turn, self.stages), sums)
            for i in range(count):
                k.store(now, i, ahead[i])
        k.do("spc_copy_wait<0>")
        k.sync()
        self._finish(sums, piece)

    def _fill_table(self) -> None:
        """All threads fill one table, or the warps of each panel their own."""
        k, w = self.k, self.w
        start = self.stages * self.stage_words
        if w.get("books", 1) > 1:
            words = fragments.table_words(w) * fragments.copies(w)
            thread, threads = self.warp_m * 32 + self.lane, 32 * self.p["warps_m"]
            self.decoder.fill_table(self.shared, k.let(start + self.warp_n * words), thread, threads)
        else:
            self.decoder.fill_table(self.shared, start, self.thread, self.threads)

    def _stage(self, step: Any) -> None:
        """Begin to copy 64 inputs of the block's rows of A, and their codes."""
        k, T = self.k, self.T
        with T.If(step < self.last), T.Then():
            slot = k.let(T.truncmod(step - self.first, self.stages) * self.stage_words)
            self._stage_rows(step, slot)
            self._stage_codes(step, slot + self.codes_at)
        k.do("spc_copy_commit")

    def _each(self, count: int, body: Callable[[Any], None]) -> None:
        """body(index) for all indices below `count`, dealt to the threads of the block."""
        k, T = self.k, self.T
        with T.serial(0, ceil(count / self.threads)) as turn:
            index = k.let(turn * self.threads + self.thread)
            with T.If(index < count), T.Then():
                body(index)

    def _stage_rows(self, step: Any, slot: Any) -> None:
        """A's part of a stage: chunks of 8 inputs of a row."""
        k, each = self.k, self.row_words // 4  # chunks of a row, a power of two
        if "blocks" in self.w:  # a thread copies the same eighth of every row
            found = k.load(k.arg("chunks"), (self.decoder.first_step + step) * EACH + self.thread % EACH)
            stored = k.let(self.T.Cast("int32", found) * CHUNK)
        else:
            inputs = k.let(self.decoder.inputs_of(step) * fragments.step_inputs(self.w))

        def chunk_of(index: Any) -> None:
            row, chunk = k.let(index // each), k.let(index % each)
            first = stored if "blocks" in self.w else k.let(inputs + chunk * 8)
            place = k.at(self.shared, slot + row * self.row_words + ((chunk ^ (row & 7)) << 2))
            self._stage_chunk(place, self.row0 + row, first)

        self._each(blocking.block_rows(self.p) * each, chunk_of)

    def _stage_chunk(self, place: Any, row: Any, first: Any) -> None:
        """8 inputs of a row from `first` on to shared memory."""
        k = self.k
        source, left = self._source(row, first)
        k.do(f"spc_stage_{self.suffix}<{self.p['vector']}>", place, k.at(k.arg("a"), source), left)

    def _stage_codes(self, step: Any, start: Any) -> None:
        """The codes of all panels, from `start` on; the warps of a panel share the copying of its codes."""
        k, T, p = self.k, self.T, self.p
        codes, threads = 8 * self.decoder.codes, 32 * p["warps_m"]
        at = k.let(start + self.warp_n * (4 * codes))
        source = k.let(self.decoder.codes_of(step))
        with T.serial(0, ceil(codes / threads)) as turn:
            index = k.let((turn * p["warps_m"] + self.warp_m) * 32 + self.lane)
            with T.If(index < codes), T.Then():
                k.do("spc_copy_async", k.at(self.shared, at + 4 * index), k.at(k.arg("codes"), source + 4 * index), 16)

    def _source(self, row: Any, first: Any) -> tuple[Any, Any]:
        """Where 8 inputs of a row from `first` on lie in `a`, and how many are there."""
        T, depth = self.T, self.w["k"]
        inside = T.And(row < self.p["m"], first < depth)
        return T.Select(inside, row * depth + first, T.int32(0)), T.Select(inside, depth - first, T.int32(0))

    def _multiply(self, scales: Any, step: Any, slot: Any, sums: Any) -> None:
        """sums += the products of one step."""
        k = self.k
        inputs, values = k.local(4 * self.columns, "uint32"), k.local(16, "uint32")
        words = k.local(self.decoder.codes, "uint32")
        stage = k.let(slot * self.stage_words)
        base = k.let(stage + self.warp_m * (8 * self.columns * self.row_words))
        codes = k.let(stage + self.codes_at + self.warp_n * (32 * self.decoder.codes))
        self.decoder.begin_shared(words, self.shared, codes, step)
        for part in range(4 if self.w.get("pairs") else 2):
            blocks = self._read_inputs(inputs, base, part)
            for tile in range(self.tiles):
                self.decoder.load_shared(words, self.shared, codes, tile)
                self.decoder.values(words, 0, scales, 0, tile, values, range(2 * blocks.start, 2 * blocks.stop))
                for block in blocks:
                    for c in range(self.columns):
                        total = k.at(sums, (tile * self.columns + c) * 4)
                        first = 4 * c + 2 * (block - blocks.start)
                        self.decoder.multiply(total, words, 0, tile, block, values, inputs, first)

    def _read_inputs(self, inputs: Any, base: Any, part: int) -> range:
        """inputs[4 * c :] = second operands for each tile of rows; returns for which quarters of the step."""
        k, lane, g, q = self.k, self.lane, self.decoder.g, self.decoder.q
        for c in range(self.columns):
            rows = base + 8 * c * self.row_words
            if self.w.get("pairs"):
                row, chunk = lane & 7, ((4 * part + (lane >> 3)) ^ (lane & 7)) << 2
                k.do("spc_load_matrices", k.at(inputs, 4 * c), k.at(self.shared, rows + row * self.row_words + chunk))
            else:
                chunk = ((q * 2 + part) ^ (g & 7)) << 2
                place = k.at(self.shared, rows + g * self.row_words + chunk)
                k.do("spc_entry<4>", k.at(inputs, 4 * c), place, k.T.uint32(0))
        return range(part, part + 1) if self.w.get("pairs") else range(2 * part, 2 * part + 2)

    def _finish(self, sums: Any, piece: joining.Piece | None) -> None:
        """Sums to shared memory as rows of C, and from there to C."""
        k, outputs, rows = self.k, blocking.block_outputs(self.p), blocking.block_rows(self.p)
        g, q = self.decoder.g, self.decoder.q
        for tile in range(self.tiles):
            for c in range(self.columns):
                for i in range(4):
                    row = self.warp_m * (8 * self.columns) + 8 * c + 2 * q + i % 2
                    output = self.warp_n * (16 * self.tiles) + 16 * tile + 8 * (i // 2) + g
                    k.store(self.shared, row * (outputs + 1) + output, sums[(tile * self.columns + c) * 4 + i])
        k.sync()
        if piece is None:
            self._each_output(lambda index, local, inner: self._store(self._sum(local, inner), local, inner))
            return
        base = k.let(self.block_row * shares.places(self.p["shares"]))
        flag = k.at(self.shared, k.launch.shared_bytes // 4 - 1)
        joining.finish(k, piece, outputs * rows, base, flag, self._each_output, self._sum, self._store)

    def _each_output(self, body: Callable[..., None]) -> None:
        """body(index, row, output) for all of the block that there are."""
        k, T, p = self.k, self.T, self.p
        outputs, rows = blocking.block_outputs(p), blocking.block_rows(p)
        with T.serial(0, ceil(outputs * rows / self.threads)) as turn:
            index = k.let(turn * self.threads + self.thread)
            local, inner = k.let(T.truncdiv(index, outputs)), k.let(T.truncmod(index, outputs))
            there = T.And(self.row0 + local < p["m"], self._column(self.group * outputs + inner)[1])
            with T.If(T.And(local < rows, there)), T.Then():
                body(index, local, inner)

    def _sum(self, local: Any, inner: Any) -> Any:
        return self.k.load(self.shared, local * (blocking.block_outputs(self.p) + 1) + inner)

    def _column(self, output: Any) -> tuple[Any, Any]:
        """The column of C that an output of the panels is, and whether there is one."""
        return output, output < self.w["n"]

    def _place(self, row: Any, column: Any) -> Any:
        """Where an element lies in C."""
        return row * self.w["n"] + column

    def _results(self) -> int:
        """Elements of C."""
        return int(self.p["m"] * self.w["n"])

    def _store(self, value: Any, local: Any, inner: Any) -> None:
        k, p, w = self.k, self.p, self.w
        output = k.let(self.group * blocking.block_outputs(p) + inner)
        column = self._column(output)[0]
        at = k.let(self._place(self.row0 + local, column))
        if w["scales"] == "tensor":
            value = value * k.load(k.arg("scales"), 0)
        elif w["scales"] == "channel":
            value = value * k.load(k.arg("scales"), fragments.place_of_row(w, output))
        if p["parts"] > 1:
            bits = k.device("uint32", "__float_as_uint", value)
            k.store(k.arg("c"), k.block[2] * self._results() + at, bits)
        else:
            k.store(k.arg("c"), at, epilogue.finish(k, p, value, column, at))
