"""Products of two computed operands on tensor cores: C[b] = act(A[b] . B[b] + bias + residual), each with axes as they lie.

gemm.py's kernel with another first operand: 64 inputs of B come to shared memory as those of A do, and are read from there in place of
decoded weights. What is dense along the inputs (A's rows, B's columns) lies there in rows of 8 chunks, as gemm.py's A; what is dense
along the results lies in 64 lines, one an input, and `ldmatrix.trans` turns it on the way to registers. Its rows are chosen so that lane
4 g + q gets inputs 16 q onwards, as of the other form, and swizzled so that no two of them meet in a bank.

Products of few inputs, and those that need float32 (storage.py), are product.py's, which takes the same parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import ceil, prod
from typing import Any

from sparsec.codegen.cuda import blocking, epilogue
from sparsec.codegen.cuda.decode import Decoder
from sparsec.codegen.cuda.kernels import gemm
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.operands import start
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

Expr = Any
_LINES = 64  # inputs of a step


def cut(m: int, n: int, k: int, a_kind: str, arch: str, batch: int = 1) -> dict[str, int]:
    """How a product is cut: gemm.py's parameters, and `tiles` of 16 columns of a warp."""
    tiles = 1 if n <= 16 else 2 if n <= 32 else gemm.TILES
    found = blocking.blocking(m, _weight({"n": n, "k": k, "tiles": tiles}), arch, batch=batch)
    if a_kind == "cols":  # lines of a power of two of chunks can be swizzled; 8 would spill registers on sm_80
        found["columns"] = min(4, 1 << (found["columns"] - 1).bit_length())
    return {**found, "tiles": tiles}


def _weight(p: Mapping[str, Any]) -> dict[str, Any]:
    """B as gemm.py knows weights: one that is not coded."""
    return {
        "n": p["n"], "k": p["k"], "tiles": p["tiles"], "decode": "float", "bits": 16, "dim": 1, "scales": "none", "group": 0,
        "zeros": False,
    }  # fmt: skip


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a, b (operands.py), bias? [N], residual? like c; out: c [batch, M, N], or the sums of the parts as in gemm.py."""
    size = p["batch"] * p["m"] * p["n"]
    args = [Arg("a", "float32", p["a"]["size"], "in"), Arg("b", "float32", p["b"]["size"], "in")]
    if p["parts"] > 1:
        args.append(Arg("c", "uint32", p["parts"] * size, "out"))
    else:
        args += [*epilogue.arguments(p, p["n"], size), Arg("c", "float32", size, "out")]
    return Signature(tuple(args), units=1, cost=2 * size * p["k"])


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """gemm.py's blocks for every batch."""
    one = gemm.launch({**p, "weight": _weight(p)}, target)
    return replace(one, grid=(one.grid[0] * prod(p["batches"]), *one.grid[1:]))


def build(p: Mapping[str, Any], k: Any) -> None:
    """One block of results of one batch."""
    _Matmul({**p, "weight": _weight(p)}, k).write()


def _turned_place(line: Expr, chunk: Expr, chunks: int) -> Expr:
    """The word where a chunk of 8 results of a line lies, `chunks` of them in a line.

    The 8 lines that are read together are 16 q and 16 q + 1 from some line on."""
    swizzle: Expr = 0
    if chunks >= 8:
        swizzle = ((line >> 4) << 1) + (line & 1)
    elif chunks > 1:
        swizzle = (line >> 4) & (chunks - 1)
    return line * (4 * chunks) + ((chunk ^ swizzle) << 2 if chunks > 1 else chunk << 2)


class _Staged(Decoder):
    """Reads B from shared memory where weights would be decoded."""

    def __init__(self, k: Any, p: Mapping[str, Any], panel: Expr, lane: Expr, kind: str) -> None:
        super().__init__(k, p, panel, lane, scaled=True)
        self.kind = kind

    def begin_shared(self, words: Any, shared: Any, start: Expr, step: Expr) -> None:
        """Note where the panel of a step lies."""
        self.shared, self.start = shared, start

    def load_shared(self, words: Any, shared: Any, start: Expr, tile: int) -> None:
        """Nothing: `values` reads what it needs."""

    def values(
        self, words: Any, at: int, scales: Any, scales_at: int, tile: int, dest: Any, parts: range = range(8)
    ) -> None:
        """dest[0 : 16] = pairs of a tile, as of `Decoder`; parts: the first or the second 4."""
        k, part = self.k, parts.start // 4
        if self.kind == "cols":
            for half in range(2):
                row = self.start + (16 * tile + 8 * half + self.g) * (_LINES // 2)
                place = k.at(self.shared, row + ((self.q * 2 + part) ^ self.g) * 4)
                k.do("spc_entry<4>", k.at(dest, 8 * half + 4 * part), place, k.T.uint32(0))
            return
        for block in range(2):
            row, matrix = self.lane & 7, self.lane >> 3
            line = k.let((row >> 1) * 16 + (row & 1) + (matrix >> 1) * 2 + (8 * part + 4 * block))
            chunk = (matrix & 1) + 2 * tile
            found = k.local(4, "uint32")
            place = self.start + _turned_place(line, chunk, 2 * self.p["tiles"])
            k.do("spc_load_turned", k.at(found, 0), k.at(self.shared, place))
            for i in range(4):
                k.store(dest, 8 * (i % 2) + 4 * part + 2 * block + i // 2, found[i])


class _Matmul(gemm.Product):
    def _outputs_block(self) -> Expr:
        k, T, p = self.k, self.T, self.p
        blocks = ceil(p["n"] / blocking.block_outputs(p))
        self.batch = k.let(T.truncdiv(self.block, blocks))
        self.a_start, self.b_start = (k.let(start(k, p, name, self.batch)) for name in ("a", "b"))
        return k.let(T.truncmod(self.block, blocks))

    def _decoder(self) -> Decoder:
        return _Staged(self.k, self.w, self.panel, self.lane, self.p["b"]["kind"])

    # --- to shared memory ---

    def _copy(self, name: str, place: Expr, inside: Expr, index: Expr, left: Expr) -> None:
        """8 neighbours of an operand from `index` on, of which `left` are there; zeros if they are not inside."""
        k, T = self.k, self.T
        source, count = T.Select(inside, index, T.int32(0)), T.Select(inside, left, T.int32(0))
        vector = self.p["vectors"][0 if name == "a" else 1]
        k.do(f"spc_stage_{self.suffix}<{vector}>", k.at(self.shared, place), k.at(k.arg(name), source), count)

    def _stage_lines(self, name: str, step: Expr, chunks: int, first: Expr, place_of: Any) -> None:
        """64 lines of `chunks` chunks of an operand that is dense along the results, from result `first` on."""
        k, T, p = self.k, self.T, self.p
        ld, results = p[name][f"ld{name}"], p["m"] if name == "a" else p["n"]
        start = self.a_start if name == "a" else self.b_start

        def chunk_of(index: Expr) -> None:
            line, chunk = k.let(T.truncdiv(index, chunks)), k.let(T.truncmod(index, chunks))
            depth, result = k.let(step * _LINES + line), k.let(first + chunk * 8)
            inside = T.And(depth < p["k"], result < results)
            self._copy(name, place_of(line, chunk), inside, start + depth * ld + result, results - result)

        self._each(_LINES * chunks, chunk_of)

    def _stage_rows(self, step: Expr, slot: Expr) -> None:
        if self.p["a"]["kind"] == "rows":
            super()._stage_rows(step, slot)
            return
        chunks = self.columns * self.p["warps_m"]
        self._stage_lines("a", step, chunks, self.row0, lambda line, chunk: slot + _turned_place(line, chunk, chunks))

    def _stage_chunk(self, place: Expr, row: Expr, first: Expr) -> None:
        k, T, p = self.k, self.T, self.p
        inside = T.And(row < p["m"], first < p["k"])
        source = T.Select(inside, self.a_start + row * p["a"]["lda"] + first, T.int32(0))
        left = T.Select(inside, p["k"] - first, T.int32(0))
        k.do(f"spc_stage_{self.suffix}<{p['vectors'][0]}>", place, k.at(k.arg("a"), source), left)

    def _stage_codes(self, step: Expr, start: Expr) -> None:
        k, T, p = self.k, self.T, self.p
        outputs = blocking.block_outputs(p)
        first = self.group * outputs
        if p["b"]["kind"] == "rows":
            each = 2 * self.tiles  # chunks of a panel's line

            def place_of(line: Expr, chunk: Expr) -> Expr:
                panel, local = k.let(T.truncdiv(chunk, each)), k.let(T.truncmod(chunk, each))
                return start + panel * (_LINES * 4 * each) + _turned_place(line, local, each)

            self._stage_lines("b", step, each * p["warps_n"], first, place_of)
            return

        def chunk_of(index: Expr) -> None:
            row, chunk = k.let(index >> 3), k.let(index & 7)
            output, depth = k.let(first + row), k.let(step * _LINES + chunk * 8)
            inside = T.And(output < p["n"], depth < p["k"])
            place = start + row * (_LINES // 2) + ((chunk ^ (row & 7)) << 2)
            self._copy("b", place, inside, self.b_start + output * p["b"]["ldb"] + depth, p["k"] - depth)

        self._each(outputs * 8, chunk_of)

    # --- from there ---

    def _read_inputs(self, inputs: Any, base: Expr, part: int) -> range:
        if self.p["a"]["kind"] == "rows":
            return super()._read_inputs(inputs, base, part)
        k, chunks = self.k, self.columns * self.p["warps_m"]
        stage = base - self.warp_m * (8 * self.columns * self.row_words)
        row, matrix = self.lane & 7, self.lane >> 3
        line = k.let((row >> 1) * 16 + (row & 1) + matrix * 2 + 8 * part)
        for c in range(self.columns):
            place = stage + _turned_place(line, self.warp_m * self.columns + c, chunks)
            k.do("spc_load_turned", k.at(inputs, 4 * c), k.at(self.shared, place))
        return range(2 * part, 2 * part + 2)

    def _place(self, row: Expr, column: Expr) -> Expr:
        return (self.batch * self.p["m"] + row) * self.p["n"] + column

    def _results(self) -> int:
        return int(self.p["batch"] * self.p["m"] * self.p["n"])
