"""Products of many rows with a compressed weight: C[M, N] = act(A[M, K] . W[N, K]^T + bias + residual) on tensor cores.

A warp multiplies a panel of W (mostly 64 outputs) with up to 64 rows of A, 64 inputs at a time. Rows of A come to shared memory by
asynchronous copies, some steps ahead, in chunks of 8 inputs whose place is swizzled (chunk XOR row), so that lanes read 16
bytes each without two of them meeting in a bank; since W's layout says which inputs a column of the first operand stands for
(fragments.py), those 16 bytes are two second operands as they lie. Codes of W come the same way, as they are stored, and are decoded in
registers, half a step at a time. The sums leave through shared memory, so that stores are rows of C.

Where the outputs alone are too few for a GPU, the inputs are split: each part writes its sums, and join.py adds them in order.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil
from typing import Any

from sparsec.codegen.cuda import epilogue, fragments
from sparsec.codegen.cuda.decode import SUFFIX
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.scattered import decoder_of
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

TILES = 4
"""Tiles of 16 outputs in a panel, most often."""
_STAGES = (3, 2)
_LEAST_STEPS = 8  # of a part
# Blocks that fill a GPU: most have 80 to 160 multiprocessors, and two blocks share one.
_BLOCKS = 264
_BIG_SHARED = frozenset(["sm_90", "sm_100", "sm_101", "sm_103"])


def shared_limit(arch: str) -> int:
    """Bytes of shared memory a block may have on all GPUs that run code for `arch`."""
    return (227 if arch in _BIG_SHARED else 99) * 1024


def blocking(m: int, weight: Mapping[str, Any], arch: str) -> dict[str, int]:
    """How a product is cut. columns: tiles of 8 rows of A of a warp; warps_n, warps_m: warps of a block along outputs and along rows
    of A; stages: steps that are in shared memory or on their way there; parts: of the inputs."""
    n, outputs = weight["n"], 16 * weight["tiles"]
    warps_m = 1 if m <= 64 else 2
    p = {"columns": min(8, ceil(m / 8)), "warps_m": warps_m, "warps_n": min(4 // warps_m, ceil(n / outputs))}
    fitting = [
        stages for stages in _STAGES if _shared_bytes({**p, "weight": weight, "stages": stages}) <= shared_limit(arch)
    ]
    while not fitting and p["warps_n"] * p["warps_m"] > 1:
        p["warps_n" if p["warps_n"] >= p["warps_m"] else "warps_m"] //= 2
        fitting = [
            stages
            for stages in _STAGES
            if _shared_bytes({**p, "weight": weight, "stages": stages}) <= shared_limit(arch)
        ]
    blocks = ceil(n / (outputs * p["warps_n"])) * ceil(m / (8 * p["columns"] * p["warps_m"]))
    parts = max(1, min(_BLOCKS // blocks, fragments.steps(weight) // _LEAST_STEPS, 8))
    return {**p, "stages": fitting[0] if fitting else _STAGES[-1], "parts": parts}


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a [M, K], weight (fragments.py), bias? [N], residual? [M, N]; out: c [M, N], or with p["parts"] > 1 the sums of the parts, bits
    of float32 [parts, M, N] (no bias, no residual)."""
    m, n, k = p["m"], p["weight"]["n"], p["weight"]["k"]
    args = [Arg("a", "float32", m * k, "in"), *fragments.arguments(p["weight"])]
    if p["parts"] > 1:
        args.append(Arg("c", "uint32", p["parts"] * m * n, "out"))
    else:
        args += [*epilogue.arguments(p, n, m * n), Arg("c", "float32", m * n, "out")]
    return Signature(tuple(args), units=1, cost=2 * m * n * k)


def _block_rows(p: Mapping[str, Any]) -> int:
    return int(8 * p["columns"] * p["warps_m"])


def _block_outputs(p: Mapping[str, Any]) -> int:
    return int(16 * p["weight"]["tiles"] * p["warps_n"])


def _row_words(p: Mapping[str, Any]) -> int:
    """Words of a row of A in a stage."""
    return fragments.step_inputs(p["weight"]) // 2


def _stage_words(p: Mapping[str, Any]) -> int:
    """Words of a stage: 64 inputs of the rows of A, then the codes of each panel."""
    return int(_block_rows(p) * _row_words(p) + p["warps_n"] * 32 * fragments.lane_words(p["weight"]))


def _table(w: Mapping[str, Any], warps_n: int) -> int:
    """Words of the tables: one for each panel where they differ."""
    words = fragments.table_words(w) * fragments.copies(w)
    return words * (warps_n if w.get("books", 1) > 1 else 1)


def _shared_bytes(p: Mapping[str, Any]) -> int:
    """The stages and the table, afterwards the sums."""
    staged = p["stages"] * _stage_words(p) + _table(p["weight"], p["warps_n"])
    return int(4 * max(staged, _block_rows(p) * (_block_outputs(p) + 1)))


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """Blocks: outputs, rows of A, parts."""
    grid = (ceil(p["weight"]["n"] / _block_outputs(p)), ceil(p["m"] / _block_rows(p)), p["parts"])
    return Launch(grid, (32 * p["warps_n"] * p["warps_m"], 1, 1), _shared_bytes(p))


def build(p: Mapping[str, Any], k: Any) -> None:
    """One block of outputs and rows."""
    Product(p, k).write()


class Product:
    """Emits the kernel; a family whose rows of A lie elsewhere overrides `_source` (conv.py)."""

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
        # the last block may have fewer panels than warps: what its last warps compute is not stored
        panel = self.T.min(k.block[0] * p["warps_n"] + self.warp_n, self.T.int32(fragments.panels(self.w) - 1))
        self.decoder = decoder_of(self.w)(k, self.w, k.let(panel), self.lane, scaled=True)
        self.row0 = k.let(k.block[1] * _block_rows(p))
        steps, count = fragments.steps(self.w), p["parts"]
        self.first = k.let(self.T.truncdiv(k.block[2] * steps, count))
        self.last = k.let(self.T.truncdiv((k.block[2] + 1) * steps, count))
        self.shared = k.dynamic(k.launch.shared_bytes // 4, "float32")
        self.stage_words, self.stages = _stage_words(p), p["stages"]
        self.row_words = _row_words(p)
        self.codes_at = _block_rows(p) * self.row_words

    def write(self) -> None:
        k, T, count = self.k, self.T, self.decoder.scales
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
        self._finish(sums)

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
        k, T, p = self.k, self.T, self.p
        each = self.row_words // 4  # chunks of 8 inputs of a row, a power of two
        chunks = _block_rows(p) * each
        with T.If(step < self.last), T.Then():
            slot = k.let(T.truncmod(step - self.first, self.stages) * self.stage_words)
            with T.serial(0, ceil(chunks / self.threads)) as turn:
                index = k.let(turn * self.threads + self.thread)
                with T.If(index < chunks), T.Then():
                    row, chunk = k.let(index // each), k.let(index % each)
                    first = k.let(step * fragments.step_inputs(self.w) + chunk * 8)
                    source, left = self._source(self.row0 + row, first)
                    k.do(
                        f"spc_stage_{self.suffix}<{p['vector']}>",
                        k.at(self.shared, slot + row * self.row_words + ((chunk ^ (row & 7)) << 2)),
                        k.at(k.arg("a"), source), left,
                    )  # fmt: skip
            # the warps of a panel share the copying of its codes
            codes, threads = 8 * self.decoder.codes, 32 * p["warps_m"]
            at = k.let(slot + self.codes_at + self.warp_n * (4 * codes))
            source = k.let(self.decoder.codes_of(step))
            with T.serial(0, ceil(codes / threads)) as turn:
                index = k.let((turn * p["warps_m"] + self.warp_m) * 32 + self.lane)
                with T.If(index < codes), T.Then():
                    k.do(
                        "spc_copy_async",
                        k.at(self.shared, at + 4 * index),
                        k.at(k.arg("codes"), source + 4 * index),
                        16,
                    )
        k.do("spc_copy_commit")

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

    def _finish(self, sums: Any) -> None:
        """Sums to shared memory as rows of C, and from there to C."""
        k, T, p, w = self.k, self.T, self.p, self.w
        outputs, rows, n = _block_outputs(p), _block_rows(p), w["n"]
        g, q = self.decoder.g, self.decoder.q
        for tile in range(self.tiles):
            for c in range(self.columns):
                for i in range(4):
                    row = self.warp_m * (8 * self.columns) + 8 * c + 2 * q + i % 2
                    output = self.warp_n * (16 * self.tiles) + 16 * tile + 8 * (i // 2) + g
                    k.store(self.shared, row * (outputs + 1) + output, sums[(tile * self.columns + c) * 4 + i])
        k.sync()
        with T.serial(0, ceil(outputs * rows / self.threads)) as turn:
            index = k.let(turn * self.threads + self.thread)
            local, inner = k.let(T.truncdiv(index, outputs)), k.let(T.truncmod(index, outputs))
            row, output = k.let(self.row0 + local), k.let(k.block[0] * outputs + inner)
            with T.If(T.And(T.And(local < rows, row < p["m"]), output < n)), T.Then():
                value = k.load(self.shared, local * (outputs + 1) + inner)
                if w["scales"] == "tensor":
                    value = value * k.load(k.arg("scales"), 0)
                elif w["scales"] == "channel":
                    value = value * k.load(k.arg("scales"), fragments.place_of_row(w, output))
                at = row * n + output
                if p["parts"] > 1:
                    bits = k.device("uint32", "__float_as_uint", value)
                    k.store(k.arg("c"), k.block[2] * (p["m"] * n) + at, bits)
                else:
                    k.store(k.arg("c"), at, epilogue.finish(k, p, value, output, at))
