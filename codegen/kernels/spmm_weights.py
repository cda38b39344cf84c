"""Sparse weights laid out for spmm.py: entries in the order the kernel visits them, and the tables that find them.

A *strip* is S consecutive output rows with the same columns (S divides the R of R x C blocks; 1 for single weights), an
*entry* one stored column of a strip: S values and one offset. Columns are cut into *chunks* (whose part of the activations
stays in level-1 cache), strips into *ranges* of about equal stored weight (what threads share), ranges into *bands* (one,
unless the decoded values of all rows would be too large a scratch, or the groups of a convolution).
Entries are ordered by (band, chunk, range, run, column);
a *run* is one strip inside one chunk. The runs of a (chunk, range) are sorted by their number of entries, so that the exit of
the kernel's inner loop is predicted. Middle chunks leave out empty runs; the first and the last hold every strip, because the
kernel starts and finishes rows there.

Arrays: `starts` int32 [bands * chunks * ranges + 1][2]: first run and first entry of each (band, chunk, range); `bounds` int32
[bands * ranges + 1]: first strip of every range; `runs` uint16 [runs][2]: strip and number of entries; `offsets` uint16
[entries]: column inside the chunk times the pitch of the activation panel, in units of two floats; then the values
(spmm_values.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.codegen.program import FROM_DATA, Arg
from sparsec.formats.encoded import Unpacked, expand_block_mask

Array = np.ndarray[Any, Any]

# Work of a run beside its entries (loading and storing partial sums), in entries, when ranges are balanced.
_RUN_COST = 3.0


def strip_height(block_rows: int, limit: int) -> int:
    """S: the largest divisor of R that is at most `limit`."""
    return max(d for d in range(1, limit + 1) if block_rows % d == 0)


@dataclass(frozen=True)
class Entries:
    """Which weights are stored, in kernel order: strip and column of every entry (-1: padding) and the module's tables."""

    strip_of: Array
    column_of: Array
    starts: Array
    bounds: Array
    runs: Array
    offsets: Array
    ranks: Array  # int32 [runs]: entries of the run's strip in earlier chunks

    def sizes(self, bands: int) -> dict[str, int]:
        """Entries in all, and those and the strips of the largest band and range: data, and no parameters of a kernel."""
        ranges = (len(self.bounds) - 1) // bands
        chunks = (len(self.starts) - 1) // (bands * ranges)
        firsts = self.starts[:: chunks * ranges, 1]
        return {
            "entries": len(self.strip_of),
            "band_entries": int(np.diff(firsts).max(initial=0)),
            "band_strips": int(np.diff(self.bounds[::ranges]).max(initial=0)),
            "range_strips": int(np.diff(self.bounds).max(initial=0)),
        }

    def arrays(self) -> list[tuple[str, Array]]:
        """Named arrays in the order of `arguments`."""
        tables = ("starts", self.starts), ("bounds", self.bounds), ("runs", self.runs), ("offsets", self.offsets)
        return [(name, table.reshape(-1)) for name, table in tables]


def arguments(p: Mapping[str, Any]) -> list[Arg]:
    """The kernel's pointer arguments for the tables."""
    groups = p["bands"] * p["chunks"] * p["ranges"]
    return [
        Arg("starts", "int32", 2 * (groups + 1), "in"),
        Arg("bounds", "int32", p["bands"] * p["ranges"] + 1, "in"),
        Arg("runs", "uint16", FROM_DATA, "in"),
        Arg("offsets", "uint16", FROM_DATA, "in"),
    ]


def element_mask(weight: Unpacked) -> Array:
    """bool [N, K]: which elements are stored."""
    return expand_block_mask(weight.block_mask, weight.scheme.block, weight.rows, weight.cols)


def stored(weight: Unpacked) -> int:
    """How many elements are stored; what edge blocks hold beyond the weight does not count."""
    (r, c), blocks = weight.scheme.block, weight.block_mask
    heights, widths = np.full(blocks.shape[0], r), np.full(blocks.shape[1], c)
    heights[-1:], widths[-1:] = weight.rows - r * (len(heights) - 1), weight.cols - c * (len(widths) - 1)
    return int(heights @ (blocks @ widths))


def density(weight: Unpacked) -> float:
    """Stored elements over all."""
    return stored(weight) / (weight.rows * weight.cols)


def arrange(
    mask: Array,
    *,
    strip: int,
    chunk: int,
    ranges: int,
    bands: int,
    align: int,
    pitch: int,
    pad: int = 1,
    groups: int = 1,
) -> Entries:
    """Order the entries of a weight whose stored elements are mask[N, K].

    strip: rows that share columns (all rows of a strip have equal masks). chunk: columns of a chunk. bands * ranges: pieces
    the strips are cut into, at multiples of `align` strips. pitch: floats between two columns of the activation panel (even).
    pad: the first entry of every (band, chunk, range) is a multiple of it. groups: parts of as many strips that share no band.
    """
    columns = mask[::strip]  # [strips, K]
    strips, k = columns.shape
    chunks, pieces = -(-k // chunk), bands * ranges
    work, each = columns.sum(1) + _RUN_COST * chunks, strips // groups
    cuts = [balanced_bounds(work[i * each : (i + 1) * each], pieces // groups, align) + i * each for i in range(groups)]
    bounds = np.concatenate([*(part[:-1] for part in cuts), [strips]])
    piece_of = np.searchsorted(bounds, np.arange(strips), side="right") - 1
    strip_of, column_of = np.nonzero(columns)
    chunk_of = column_of // chunk
    counts = np.add.reduceat(columns, np.arange(0, k, chunk), axis=1, dtype=np.int64).T
    ranks = np.cumsum(counts, 0) - counts
    # of each run in (strip, column) order, where entries of a run lie side by side
    begins = (np.cumsum(counts.sum(0)) - counts.sum(0) + ranks).reshape(-1)
    # every (chunk, strip) is a run; bring the runs into kernel order
    run_chunk, run_strip = (v.reshape(-1) for v in np.indices((chunks, strips)))
    run_count = counts.reshape(-1)
    group = (piece_of[run_strip] // ranges * chunks + run_chunk) * ranges + piece_of[run_strip] % ranges
    order = np.lexsort((run_strip, run_count, group))
    tables = (run_chunk, run_strip, run_count, group, ranks.reshape(-1), begins)
    run_chunk, run_strip, run_count, group, ranks, begins = (v[order] for v in tables)
    by_run = np.arange(len(strip_of)) + np.repeat(begins - (np.cumsum(run_count) - run_count), run_count)
    strip_of, column_of, chunk_of = strip_of[by_run], column_of[by_run], chunk_of[by_run]
    kept = (run_count > 0) | (run_chunk == 0) | (run_chunk == chunks - 1)

    sizes = np.bincount(group, weights=run_count, minlength=pieces * chunks).astype(np.int64)
    firsts = np.concatenate([[0], np.cumsum(-(-sizes // pad) * pad)])
    starts = np.zeros((pieces * chunks + 1, 2), np.int64)
    starts[1:, 0] = np.cumsum(np.bincount(group[kept], minlength=pieces * chunks))
    starts[:, 1] = firsts
    # entry positions: dense order plus the padding before their group
    dense = np.concatenate([[0], np.cumsum(sizes)])
    at = np.arange(len(strip_of)) + np.repeat(firsts[:-1] - dense[:-1], sizes)
    total = int(firsts[-1])
    padded = [np.full(total, -1, np.int64), np.full(total, -1, np.int64), np.zeros(total, np.int64)]
    offsets = (column_of - chunk_of * chunk) * (pitch // 2)
    assert len(offsets) == 0 or offsets.max() < 1 << 16, "the activation panel is too large for 16-bit offsets"
    assert max(strips, k) < 1 << 16, "the weight is too large for 16-bit runs"
    for array, values in zip(padded, (strip_of, column_of, offsets), strict=True):
        array[at] = values
    return Entries(
        padded[0],
        padded[1],
        starts.astype(np.int32),
        bounds.astype(np.int32),
        np.stack([run_strip[kept], run_count[kept]], 1).astype(np.uint16),
        padded[2].astype(np.uint16),
        ranks[kept].astype(np.int32),
    )


def balanced_bounds(cost: Array, pieces: int, align: int) -> Array:
    """pieces + 1 boundaries, multiples of `align` (the last is len(cost)), that cut `cost` into about equal sums."""
    total = np.concatenate([[0.0], np.cumsum(cost)])
    wanted = np.searchsorted(total, total[-1] * np.arange(1, pieces) / pieces)
    inner = np.clip(np.round(wanted / align).astype(np.int64) * align, 0, len(cost))
    return np.concatenate([[0], np.maximum.accumulate(inner), [len(cost)]]).astype(np.int64)


def entry_values(weight: Unpacked, entries: Entries, strip: int) -> Array:
    """Codes (or float values) [entries, S] in kernel order; padding and rows past the last are 0."""
    (r, c), grid = weight.scheme.block, weight.block_mask.shape
    if len(weight.codes) == 0:
        return np.zeros((len(entries.strip_of), strip), weight.codes.dtype)
    index = np.zeros(grid, np.int64)
    index[weight.block_mask] = np.arange(len(weight.codes))
    # codes as [stored block, column, strip of the block][S]: an entry is one row of this
    by_strip = weight.codes.transpose(0, 2, 1).reshape(-1, strip)
    part, column = np.maximum(entries.strip_of, 0), np.maximum(entries.column_of, 0)
    block_row, part = np.divmod(part, r // strip)
    block = index.reshape(-1)[block_row * grid[1] + column // c]
    values: Array = by_strip.take((block * c + column % c) * (r // strip) + part, axis=0)
    values[entries.strip_of < 0] = 0
    if outside := -weight.rows % strip:
        values[entries.strip_of == weight.rows // strip, strip - outside :] = 0
    return values
