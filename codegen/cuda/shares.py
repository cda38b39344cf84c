"""The stored work of a product in equal shares, one a block (stream-K): which pieces of which panels a block computes.

A panel's steps follow those of the panel in front, and every block takes as many in a row as the others, however unevenly zeros lie:
a share may begin and end inside a panel. What is computed of a panel that is cut goes to scratch, and the block that arrives last adds
the pieces in the order of their steps (joining.py), so the result is the same whichever that is. The cuts follow from the data and are
a constant of the product, so layers that differ only in their zeros share a kernel.

After M. Osama et al., "Stream-K: Work-Centric Parallel Decomposition for Dense Matrix-Matrix Multiplication on the GPU" (2023), and
C. Zeng et al., "GQSA: Group Quantization and Sparsity for Accelerating Large Language Model Inference" (2024), which balances
what is stored.
"""

from __future__ import annotations

from heapq import heapify, heapreplace
from typing import Any

import numpy as np

from sparsec.codegen.program import FROM_DATA, Arg

Array = np.ndarray[Any, Any]

FIELDS = ("panel", "first", "last", "place", "first_place", "parts", "count", "rest")
"""A row of the table of pieces: steps [first, last) of a panel; where the piece's sums go in scratch, and those of the panel's first
piece, if its `parts` are several. Row b is the first piece of block b; with it are how many the block has, and that piece i > 0
is row rest + i."""
_JOIN_BYTES = 16 << 10
"""What the joining of cut panels takes (a fence, an atomic, sums there and back), as bytes that a multiprocessor could read meanwhile at
its share of the memory's rate: about a microsecond. An estimate; it has not been measured on a GPU."""


def cut(stored: Array, blocks: int) -> Array:
    """int32 [rows, len(FIELDS)], the pieces of `blocks` blocks; stored: whole numbers [panels], the steps of each.

    Shares differ by one step at most. Panels without steps, whose outputs have to be written too, go round the blocks."""
    bounds = np.arange(blocks + 1) * int(stored.sum()) // blocks
    ends = np.cumsum(stored)
    found: list[list[tuple[int, ...]]] = [[] for _ in range(blocks)]
    place = 0
    for panel in np.flatnonzero(stored):
        begin, end = int(ends[panel] - stored[panel]), int(ends[panel])
        low = int(np.searchsorted(bounds, begin, side="right")) - 1
        high = int(np.searchsorted(bounds, end, side="left"))
        takers = [b for b in range(low, high) if bounds[b] < bounds[b + 1]]
        for i, block in enumerate(takers):
            first, last = max(begin, int(bounds[block])) - begin, min(end, int(bounds[block + 1])) - begin
            found[block].append((int(panel), first, last, place + i, place, len(takers)))
        place += len(takers) if len(takers) > 1 else 0
    for i, panel in enumerate(np.flatnonzero(stored == 0)):
        found[i % blocks].append((int(panel), 0, 0, 0, 0, 1))
    rows = [[*(pieces[0] if pieces else [0] * 6), len(pieces), 0] for pieces in found]
    for block, pieces in enumerate(found):
        rows[block][-1] = len(rows) - 1
        rows += [[*piece, 0, 0] for piece in pieces[1:]]
    return np.array(rows, np.int32)


def places(blocks: int) -> int:
    """Pieces of cut panels at most: a block's first and its last."""
    return 2 * blocks


def arguments() -> list[Arg]:
    """The table of pieces."""
    return [Arg("pieces", "int32", FROM_DATA, "in")]


def gains(
    stored: Array, step_bytes: float, alone: float, multiprocessors: int, blocks: int, join_bytes: float = 0.0
) -> bool:
    """Whether equal shares should be faster than a block a panel.

    Blocks come to multiprocessors in order, whichever is free first. step_bytes: what a step reads, or how much could be read while it is
    computed; alone: how much faster than in a GPU that is full a multiprocessor is whose neighbours have nothing to do; join_bytes: what
    the sums of cut panels add to the joining, where they are many."""
    mean = float(stored.sum()) * step_bytes / multiprocessors
    busiest = float(busiest_of(stored, multiprocessors)) * step_bytes / alone
    largest_share = float(-(-int(stored.sum()) // blocks)) * step_bytes / alone
    return max(mean, largest_share) + _JOIN_BYTES + join_bytes < max(mean, busiest)


def busiest_of(stored: Array, multiprocessors: int) -> int:
    """Steps of the multiprocessor that has most of them when each panel in order goes to the one that has least."""
    loads = [0] * multiprocessors
    heapify(loads)
    for steps in stored:
        heapreplace(loads, loads[0] + int(steps))
    return max(loads)
