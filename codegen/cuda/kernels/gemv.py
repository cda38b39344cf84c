"""Products of a few rows with a compressed weight: C[M, N] = act(A[M, K] . W[N, K]^T + bias + residual), M up to 16.

The time is that of reading the weight, so every word of it is read once, 16 bytes a lane, ahead of its use, and decoded on the way
to the tensor cores: W is the first operand of mma.m16n8k16, the rows of A are the columns of the second. One multiplication
serves 8 weights of a lane and up to 8 rows of A, sums are float32. A block computes a panel of 16 to 64 outputs; its warps take the inputs
in turns, and their sums are added in order at the end.

Where that would leave multiprocessors idle, or some of them with more to do than others, every block has an equal share of all that is
stored instead (p["shares"] of them, shares.py): pieces of panels one after the other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sparsec.codegen.cuda import epilogue, fragments, joining, shares
from sparsec.codegen.cuda.decode import SUFFIX
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.scattered import decoder_of
from sparsec.codegen.cuda.units import CountingSignature
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

MOST_ROWS = 16
_WORDS_AHEAD = 16  # words of codes a lane holds for later


def chunk_steps(w: Mapping[str, Any]) -> int:
    """Steps of 64 inputs that a warp takes at once; all in one group of scales."""
    if "strip" in w or w.get("scattered"):
        return 1
    steps = fragments.steps(w)
    most = w["group"] // fragments.INPUTS if after_sum(w) else 4
    for chunk in (4, 2):
        if steps % chunk == 0 and most % chunk == 0 and chunk * fragments.lane_words(w) <= _WORDS_AHEAD:
            return chunk
    return 1


def after_sum(w: Mapping[str, Any]) -> bool:
    """Whether group scales multiply sums of whole steps rather than weights."""
    return bool(w["scales"] == "group" and w["group"] % fragments.INPUTS == 0 and not w.get("scattered"))


def warps(w: Mapping[str, Any]) -> int:
    """Warps of a block, among which the inputs are split."""
    chunks = fragments.steps(w) // chunk_steps(w) // (2 if "strip" in w else 1)
    return next(n for n in (16, 8, 4, 2, 1) if n <= max(1, chunks))


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a [M, K], weight (fragments.py), pieces (shares.py) of p["shares"] blocks if it is not 0, bias? [N], residual? [M, N];
    out: c [M, N], with shares then the sums of cut panels, bits of float32."""
    m, n, k, blocks = p["m"], p["weight"]["n"], p["weight"]["k"], p.get("shares", 0)
    args = [
        Arg("a", "float32", m * k, "in"),
        *fragments.arguments(p["weight"]),
        *(shares.arguments() if blocks else []),
    ]
    args += [*epilogue.arguments(p, n, m * n), Arg("c", "float32", m * n, "out")]
    if blocks:
        args.append(Arg("parts", "uint32", shares.places(blocks) * m * 16 * p["weight"]["tiles"], "out"))
    return CountingSignature(tuple(args), units=1, cost=2 * m * n * k, counters=shares.places(blocks))


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A block a panel, or a share. Shared memory: the table, or afterwards (of shares: and) the sums of all warps; then the list of
    a strip's positions, then a word that says whether the block is the last one of a panel."""
    w, blocks = p["weight"], p.get("shares", 0)
    words = _list_at(p) + (fragments.steps(w) * fragments.INPUTS // w["dim"] // 2 if "strip" in w else 0)
    grid = (blocks or fragments.panels(w), 1, 1)
    return Launch(grid, (32 * warps(w), 1, 1), 4 * (words + (1 if blocks else 0)))


def _sums_at(p: Mapping[str, Any]) -> int:
    """Where the sums are in shared memory; they may lie on the table where a block has done with it."""
    w = p["weight"]
    return fragments.table_words(w) * fragments.copies(w) if p.get("shares") else 0


def _list_at(p: Mapping[str, Any]) -> int:
    """Where the list of positions is: behind both."""
    w = p["weight"]
    return max(fragments.table_words(w) * fragments.copies(w), _sums_at(p) + warps(w) * _sums(p) * 32)


def _columns(p: Mapping[str, Any]) -> int:
    """Tiles of 8 rows of A."""
    return int(-(-p["m"] // 8))


def _sums(p: Mapping[str, Any]) -> int:
    """Sums of a lane."""
    return int(p["weight"]["tiles"] * _columns(p) * 4)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One panel of outputs."""
    _Gemv(p, k).write()


class _Gemv:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T, self.w = p, k, k.T, p["weight"]
        self.tiles, self.columns, self.warps = self.w["tiles"], _columns(p), warps(self.w)
        self.chunk = chunk_steps(self.w)
        self.thread = k.thread[0]
        self.lane, self.warp = k.let(self.thread & 31), k.let(self.thread >> 5)
        self.pairs = 16 if self.w.get("pairs") else 8
        self.suffix = SUFFIX[k.target.storage]
        self.shared = k.dynamic(k.launch.shared_bytes // 4, "float32")

    def write(self) -> None:
        if not self.p.get("shares"):
            self._begin(self.k.block[0])
            self._compute(self.k.i32(0), self._chunks())
            return

        def compute(piece: joining.Piece, fresh: Any) -> None:
            self._begin(piece["panel"])
            self._compute(piece["first"], piece["last"], piece, fresh)

        joining.each_piece(self.k, self.k.block[0], compute)

    def _begin(self, panel: Any) -> None:
        """What follows is of this panel."""
        self.panel = panel
        self.decoder = decoder_of(self.w)(self.k, self.w, panel, self.lane, scaled=not after_sum(self.w))

    def _compute(self, first: Any, last: Any, piece: joining.Piece | None = None, fresh: Any = None) -> None:
        """Chunks [first, last) of the panel. piece: if that may be a part of it; fresh: if nothing is in shared memory yet."""
        k, T = self.k, self.T
        # of each step its codes, its scales and, where not all are stored, which one it is
        self.words = self.decoder.codes + self.decoder.scales + (1 if self.w.get("scattered") else 0)
        words = self.chunk * self.words
        now, ahead = k.local(words, "uint32"), k.local(words, "uint32")
        sums = k.local(_sums(self.p))
        for i in range(_sums(self.p)):
            k.store(sums, i, k.f32(0.0))
        mine = k.let(first + self.warp)
        with T.If(mine < last), T.Then():
            self._load(now, mine)
        self.decoder.fill_table(self.shared, 0, self.thread, k.launch.threads, fresh)
        if "strip" in self.w:
            self._list()
        k.sync()
        with T.serial(0, T.truncdiv(last - first + (self.warps - 1), self.warps)) as turn:
            chunk = k.let(mine + turn * self.warps)
            with T.If(chunk + self.warps < last), T.Then():
                self._load(ahead, chunk + self.warps)
            with T.If(chunk < last), T.Then():
                self._multiply(now, chunk, sums)
            for i in range(words):
                k.store(now, i, ahead[i])
        if piece is None:
            k.sync()
        self._finish(sums, piece)

    def _chunks(self) -> Any:
        """How many chunks the panel has."""
        name = "starts" if "strip" in self.w else "firsts" if self.w.get("scattered") else ""
        if not name:
            return self.k.i32(fragments.steps(self.w) // self.chunk)
        return self.k.let(self.k.load(self.k.arg(name), self.panel + 1) - self.decoder.first_step)

    def _list(self) -> None:
        """Which inputs the strip has stored, for `_inputs`."""
        k, octets, steps = self.k, fragments.octets_of(self.w), self._chunks()
        self.listed = (self.shared, _list_at(self.p))
        strip = k.let(self.T.truncdiv(self.panel * (16 * self.tiles), self.w["strip"]))
        k.do(
            "spc_list_positions", k.at(*self.listed), k.at(k.arg("positions"), strip * (octets * 8)),
            k.at(k.arg("ranks"), strip * (octets + 1)), octets, steps * (fragments.INPUTS // self.w["dim"]),
            self.thread, k.launch.threads,
        )  # fmt: skip

    def _inputs(self, to: Any, step: Any, column: int) -> None:
        """self.pairs pairs: the lane's inputs of a step (`Decoder.inputs_of`)."""
        k, T, m, inputs, a = self.k, self.T, self.p["m"], self.w["k"], self.k.arg("a")
        row = self.decoder.g + 8 * column
        first = step * fragments.INPUTS + self.decoder.q * fragments.LANE_INPUTS
        if "strip" in self.w:
            there = T.Select(row < m, T.int32(inputs), T.int32(0))
            at = T.truncdiv(first, self.w["dim"])
            k.do(f"spc_listed_{self.suffix}<{self.w['dim']}>", to, k.at(a, row * inputs), k.at(*self.listed), at, there)
            return
        if self.w.get("pairs"):
            first = k.let(step * fragments.step_inputs(self.w))
            there = T.Select(row < m, inputs - first, T.int32(0))
            source = k.at(a, row * inputs + first)
            k.do(f"spc_pairs_{self.suffix}<{self.p['vector']}>", to, source, self.decoder.q, there)
            return
        left = T.Select(row < m, inputs - first, T.int32(0))
        k.do(f"spc_inputs_{self.suffix}<{self.p['vector']}>", to, k.at(a, row * inputs + first), left)

    def _load(self, words: Any, chunk: Any) -> None:
        for s in range(self.chunk):
            self.decoder.load(words, s * self.words, chunk * self.chunk + s)
            self.decoder.load_scales(words, s * self.words + self.decoder.codes, chunk * self.chunk + s)
            if self.w.get("scattered"):
                place = self.T.Cast("uint32", self.decoder.inputs_of(chunk))
                self.k.store(words, self.words - 1, place)
        self.decoder.prefetch(chunk * self.chunk)

    def _multiply(self, words: Any, chunk: Any, sums: Any) -> None:
        """sums += the products of one chunk of inputs."""
        k, p = self.k, self.p
        inputs = k.local(self.chunk * self.columns * self.pairs, "uint32")
        for s in range(self.chunk):
            step = chunk * self.chunk + s
            if self.w.get("scattered"):
                step = self.T.Cast("int32", words[self.words - 1])
            for c in range(self.columns):
                self._inputs(k.at(inputs, (s * self.columns + c) * self.pairs), k.let(step), c)
        part, scales = sums, k.local(self.tiles, "uint32")
        if after_sum(self.w):
            self.decoder.load_group(scales, 0, chunk * self.chunk)
            part = k.local(_sums(p))
            for i in range(_sums(p)):
                k.store(part, i, k.f32(0.0))
        values = k.local(16, "uint32")
        for s in range(self.chunk):
            self.decoder.begin(words, s * self.words, chunk * self.chunk + s)
            for tile in range(self.tiles):
                at = s * self.words
                self.decoder.values(words, at, words, at + self.decoder.codes, tile, values)
                for i in range(4):
                    for c in range(self.columns):
                        second = (s * self.columns + c) * self.pairs + i * (self.pairs // 4)
                        total = k.at(part, (tile * self.columns + c) * 4)
                        self.decoder.multiply(total, words, at, tile, i, values, inputs, second)
        if not after_sum(self.w):
            return
        for tile in range(self.tiles):
            for half in range(2):
                scale = k.let(self.decoder.group_scale(scales, 0, tile, half), "float32")
                for c in range(self.columns):
                    for i in (0, 1):
                        at = (tile * self.columns + c) * 4 + 2 * half + i
                        k.store(sums, at, sums[at] + part[at] * scale)

    def _finish(self, sums: Any, piece: joining.Piece | None) -> None:
        """The sums of all warps, added in order, become outputs, of a piece of a panel once the others are there."""
        k, count = self.k, _sums(self.p)
        for i in range(count):
            k.store(self.shared, _sums_at(self.p) + (self.warp * count + i) * 32 + self.lane, sums[i])
        k.sync()
        if piece is None:
            self._each_output(lambda index, token, local: self._store(self._sum_of_warps(token, local), token, local))
            return
        flag = k.at(self.shared, k.launch.shared_bytes // 4 - 1)
        size = 16 * self.tiles * self.p["m"]
        joining.finish(k, piece, size, k.i32(0), flag, self._each_output, self._sum_of_warps, self._store)

    def _each_output(self, body: Callable[..., None]) -> None:
        """body(index, row of A, output of the panel) for all there are."""
        k, T, rows, m = self.k, self.T, 16 * self.tiles, self.p["m"]
        with T.serial(0, -(-rows * m // k.launch.threads)) as turn:
            index = k.let(turn * k.launch.threads + self.thread)
            local = k.let(T.truncmod(index, rows))
            token = k.let(T.truncdiv(index, rows))
            with T.If(T.And(token < m, self.panel * rows + local < self.w["n"])), T.Then():
                body(index, token, local)

    def _sum_of_warps(self, token: Any, local: Any) -> Any:
        k, T, count = self.k, self.T, _sums(self.p)
        place = ((local >> 4) * self.columns + (token >> 3)) * 4 + ((local >> 3) & 1) * 2 + (token & 1)
        at = k.let(_sums_at(self.p) + place * 32 + (local & 7) * 4 + ((token >> 1) & 3))
        total = k.local(1)
        k.store(total, 0, k.load(self.shared, at))
        with T.serial(1, self.warps) as warp:
            k.store(total, 0, total[0] + k.load(self.shared, warp * (count * 32) + at))
        return total[0]

    def _store(self, value: Any, token: Any, local: Any) -> None:
        k, p, n = self.k, self.p, self.w["n"]
        row = k.let(self.panel * (16 * self.tiles) + local)
        if self.w["scales"] == "tensor":
            value = value * k.load(k.arg("scales"), 0)
        elif self.w["scales"] == "channel":
            value = value * k.load(k.arg("scales"), fragments.place_of_row(self.w, row))
        k.store(k.arg("c"), token * n + row, epilogue.finish(k, p, value, row, token * n + row))
