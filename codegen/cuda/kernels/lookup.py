"""Rows of a coded table, the parameters and the physical form of kernels/lookup.py: a thread a code, or a block of a sparse row.

Which of its row's codes a stored block has says the number of blocks stored before it: bits of the bitmap that are counted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.cuda.indices import checked_indices
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.cuda.portable import Held
from sparsec.codegen.kernels.lookup import _GROUP, _Row
from sparsec.codegen.kernels.lookup import signature as signature
from sparsec.target import Target

_BLOCK = 128


def _places(p: Mapping[str, Any]) -> int:
    """Codes, or blocks, of a row."""
    return -(-int(p["cols"]) // int(p["block"][1] if p["block"] else p["dim"]))


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """Threads for all rows looked up."""
    return lines(-(-p["count"] * _places(p) // _BLOCK), _BLOCK)


class _Code(_Row):
    """Decodes one value: of a vector codec, value `element` of the code's."""

    element = 0

    def _vector(self, code: Any, table: Any, count: int) -> Any:
        T, k, p = self.T, self.k, self.p
        bits = p["bits"] // p["stages"]
        total: Any = None
        for stage in range(p["stages"]):
            part = (code >> T.int32(stage * bits)) & T.int32((1 << bits) - 1)
            entry = ((table * p["stages"] + stage) << bits) + part
            value = k.load(k.arg("codebook"), entry * p["dim"] + self.element)
            total = value if total is None else total + value
        return total

    def write(self, code: Any, rank: Any, unit: Any, out: Any, column: Any) -> None:
        """The values of a code to the result, from `column` of the row at `out` on."""
        T, k, p = self.T, self.k, self.p
        for element in range(p["dim"]):
            self.element = element
            if p["cols"] % p["dim"]:
                with T.If(column + element < p["cols"]), T.Then():
                    k.store(k.arg("dst"), out + column + element, self.value(code, rank, unit, 1))
            else:
                k.store(k.arg("dst"), out + column + element, self.value(code, rank, unit, 1))


def build(p: Mapping[str, Any], k: Any) -> None:
    """One code, or one block."""
    T, places = k.T, _places(p)
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < p["count"] * places), T.Then():
        which, place = k.let(T.truncdiv(index, places)), k.let(T.truncmod(index, places))

        def decode(found: list[Any]) -> None:
            row = _Code(p, Held(k, 0), found[0])
            out = k.let(which * p["cols"])
            if p["block"]:
                _block(p, k, row, place, out)
                return
            start = k.let(row.row * (-(-places // _GROUP) if p["bits"] else places))
            row.write(row.codes(start, place, 1), place, place, out, k.let(place * p["dim"]))

        checked_indices(k, [(k.load(k.arg("indices"), which), p["rows"])], p["index_dtype"], decode)


def _block(p: Mapping[str, Any], k: Any, row: _Code, place: Any, out: Any) -> None:
    """Block `place` of a sparse row."""
    T, (r, c), dim, cols = k.T, p["block"], p["dim"], p["cols"]
    width = -(-_places(p) // 8)
    strip = k.let(T.truncdiv(row.row, r))
    first = k.let(k.load(k.arg("starts"), strip))
    groups = T.truncdiv(k.load(k.arg("starts"), strip + 1) - first, r)
    start = k.let(first + T.truncmod(row.row, r) * groups)
    seen = k.local(1, "int32")
    k.store(seen, 0, T.int32(0))

    def count(byte: Any) -> None:
        k.store(seen, 0, seen[0] + k.device("int32", "__popc", T.Cast("uint32", byte)))

    with T.serial(0, place >> 3) as i:
        count(k.load(k.arg("positions"), strip * width + i))
    byte = k.let(T.Cast("int32", k.load(k.arg("positions"), strip * width + (place >> 3))))
    count(byte & ((T.int32(1) << (place & 7)) - 1))
    rank, column = k.let(seen[0] * (c // dim)), k.let(place * c)
    with T.If(((byte >> (place & 7)) & 1) != 0):
        with T.Then():
            for i in range(c // dim):
                begin = k.let(column + i * dim)
                with T.If(begin < cols), T.Then():
                    row.write(row.codes(start, rank + i, 1), rank + i, place * (c // dim) + i, out, begin)
        with T.Else():
            for i in range(c):
                with T.If(column + i < cols), T.Then():
                    k.store(k.arg("dst"), out + column + i, T.float32(0))
