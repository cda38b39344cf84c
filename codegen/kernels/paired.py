"""Products of two rows of activations with two rows of weights per instruction, on aarch64 with i8mm (gemv.py).

smmla multiplies 2 x 8 by 8 x 2 bytes. The weights of a vector of four rows lie as two such pairs (dot.pair_quads). Rows of
activations are joined in twos: where a weight is dense, the eights of both rows take turns in `paired`, once for all tiles;
packed inputs of a strip, which serve one tile only, are joined as they are loaded. Of an odd number of rows the last is its own
partner. Sums hold 2 x 2 results until a block is done; then they are put in order, row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import ceil
from typing import Any

from sparsec.codegen.isa import dot
from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.gemv_inputs import Inputs

# Sums of 2 x 2 that stay in registers beside inputs, weights and, with a scale for every block, results.
_MOST_SUMS = {True: 16, False: 8}


def rows_at_once(w: Mapping[str, Any], vectors: int) -> int:
    """Rows of activations that share one pass over the codes of a tile of so many vectors."""
    return 2 * max(1, min(4, _MOST_SUMS[bool(w["one_block"])] // (2 * vectors)))


class Paired:
    """Writes the code (`k`: KernelBuilder; `vectors`: of a tile)."""

    def __init__(self, inputs: Inputs, k: Any, vectors: int) -> None:
        self.k, self.T, self.inputs, self.vectors = k, k.T, inputs, vectors
        self.dot = dot.ByteDot(k)

    def prepare(self, rows: int) -> None:
        """xq of `rows` rows -> `paired`."""
        T, k, width = self.T, self.k, self.inputs.width
        with T.serial(0, ceil(rows / 2)) as pair:
            first = bind(k, pair * (2 * width))
            second = bind(k, T.min(pair * 2 + 1, rows - 1) * width)
            with T.serial(0, width // 16) as i:
                both = [k.load(k.arg("xq"), row + i * 16, 16) for row in (first, second)]
                for half in range(2):
                    at = half * 8
                    eights = k.shuffle(*both, [*range(at, at + 8), *range(16 + at, 24 + at)])
                    k.store(k.arg("paired"), first + (i * 2 + half) * 16, eights, 16)
            if width % 16:
                both = [k.load(k.arg("xq"), row + width // 16 * 16, 8) for row in (first, second)]
                k.store(k.arg("paired"), first + width // 16 * 32, k.shuffle(*both, range(16)), 16)

    def starts(self, tile: Any, block: Any, row0: Any, rows: int) -> list[Any]:
        """Where the inputs of a block of the tile begin: of every pair, or of both its rows where they lie apart."""
        if self.inputs.paired:
            return [bind(self.k, self.inputs.start(tile, block, row0, row)) for row in range(0, rows, 2)]
        return [
            bind(self.k, self.inputs.start(tile, block, row0, min(row, rows - 1))) for row in range(rows + rows % 2)
        ]

    def sums(self, rows: int) -> Any:
        """Sums of 2 x 2 for `rows` rows: [pair of rows][vector][half of its rows]."""
        return self.k.local(ceil(rows / 2) * 2 * self.vectors * self.dot.lanes, "int32")

    def begin(self, sums: Any, starts: list[Any]) -> None:
        """Sums of each row of activations begin at a number of its own."""
        k, n = self.k, self.dot.lanes
        for row in range(0, len(starts), 2):
            both = [k.splat(starts[min(row + i, len(starts) - 1)], n) for i in range(2)]
            held = k.local(n, "int32")
            k.store(held, 0, k.shuffle(*both, [0, 1, n, n + 1]), n)
            for i in range(2 * self.vectors):
                k.store(sums, (row * self.vectors + i) * n, k.load(held, 0, n), n)

    def products(self, weights: Callable[[int, int], Any], x0: list[Any], quads: int, sums: Any) -> None:
        """Add the products of `quads` quads (an even number); inputs from `x0` on, see `starts`."""
        k, n = self.k, self.dot.lanes
        for quad in range(0, quads, 2):
            xs = self._inputs(x0, quad)
            for v in range(self.vectors):
                for half in range(2):
                    both = weights(quad + half, v)
                    for pair, x in enumerate(xs):
                        at = ((pair * self.vectors + v) * 2 + half) * n
                        k.store(sums, at, self.dot.matrix(k.load(sums, at, n), both, x), n)

    def _inputs(self, x0: list[Any], quad: int) -> list[Any]:
        """Eight inputs of both rows, for every pair."""
        k, source, stride = self.k, self.inputs.source, self.inputs.quad_stride
        if self.inputs.paired:
            return [k.load(source, x + quad * stride, 16) for x in x0]
        eights = [k.load(source, x + quad * stride, 8) for x in x0]
        return [k.shuffle(a, b, range(16)) for a, b in zip(eights[::2], eights[1::2], strict=True)]

    def by_row(self, sums: Any, rows: int) -> Any:
        """`sums` as gemv.py has them: [row of activations][vector]."""
        k, n, vectors = self.k, self.dot.lanes, self.vectors
        ordered = k.local(rows * vectors * n, "int32")
        for row in range(rows):
            half = row % 2 * (n // 2)
            for v in range(vectors):
                at = (row // 2 * vectors + v) * 2 * n
                both = [k.load(sums, at, n), k.load(sums, at + n, n)]
                k.store(ordered, (row * vectors + v) * n, k.shuffle(*both, [half, half + 1, n + half, n + half + 1]), n)
        return ordered
