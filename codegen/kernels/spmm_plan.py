"""Tile sizes of spmm.py, as pure functions of the problem and the target."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from math import ceil
from typing import Any

from sparsec.fixed import MOST_WEIGHTS
from sparsec.target import Target

# Floats of the activation panel (chunk x tile): what of a 32 KB level-1 cache is left beside weights and partial sums. Very
# sparse weights take larger chunks, because a run of few entries costs more than reading activations from level 2.
_PANEL_FLOATS = 6144
_PANEL_FLOATS_MOST = 24576
_RUN_ENTRIES = 18
# Single weights on AVX2: panels are so many times as large (6 to 8 % faster), and runs of so many times the entries are not cut.
_LARGER = 2
# Sums of all rows that no longer fit level 2 beside the panel; then a panel of all columns and the sums of one range should.
_SUMS_FLOATS = 96 * 1024
_WHOLE_PANEL_FLOATS = 72 * 1024
_RANGE_FLOATS = 48 * 1024
# Tiles half as wide were 5 to 20 % faster (AVX-512) for transposed activations, and where few columns leave little to hide the
# reading of an image behind; wide ones read longer runs of it.
_NARROW_TILE, _FEW_COLUMNS = 4, 128
# Stored elements whose decoded values a thread keeps.
_BAND_ELEMENTS = 1 << 18
# Pieces a product is cut into, so that up to 8 threads share it, if they are at least _UNIT_MACS multiplications.
_WANTED_UNITS = 8
_UNIT_MACS = 40_000
# Planes are also cut for these many threads: into as many tiles of at least so many vectors, if that is faster.
_THREADS, _LEAST_TILE = 4, 3
# In vector multiplications: packing a vector of pixels that the same core wrote, one that another core wrote, and reading a stored
# weight beside its multiplications. (AVX-512; elsewhere not measured.)
_PACKED, _PACKED_FAR, _WEIGHT = 3.0, 7.0, 1.2


@dataclass(frozen=True)
class TileKind:
    """`count` tiles of `vectors` vectors from tile number `first` on, at pixel `pixel`; the last vector has `tail` pixels (0: all)."""

    first: int
    count: int
    pixel: int
    vectors: int
    tail: int


def most_vectors(strip: int, target: Target) -> int:
    """Widest register tile: strip x vectors accumulators, the strip's weights and one vector of activations fit."""
    room = target.vector_registers - strip - 2
    return max(1, min(8, room // strip))


def widest(strip: int, target: Target) -> int:
    """Widest tile whose sums and weights just fit the registers, where activations are operands of multiplications in memory."""
    return max(1, min(14, (target.vector_registers - strip) // strip))


def accumulator_sets(strip: int, vectors: int) -> int:
    """Sets of accumulators consecutive entries alternate between: sums depend on one another for the latency of an addition."""
    return 2 if strip * vectors <= 4 else 1


def max_strip(target: Target) -> int:
    """Rows of a block that are worth a register tile of their own."""
    return 4


def span(p: Mapping[str, Any], lanes: int) -> int:
    """Pixels of a vector of the activation panel: a 32-bit lane holds `per_lane` of them (1 if that is missing)."""
    return int(lanes * p.get("per_lane", 1))


def tile_kinds(p: Mapping[str, Any], lanes: int) -> list[TileKind]:
    """How the pixels of one image (or all tokens) are cut into tiles."""
    pixels, widest = p["pixels"], p["vectors"]
    lanes = span(p, lanes)
    vectors = ceil(pixels / lanes)
    tiles = ceil(vectors / widest)
    narrow = vectors // tiles
    wide_tiles = vectors - narrow * tiles
    tail = pixels % lanes
    kinds = []
    if wide_tiles:
        kinds.append(TileKind(0, wide_tiles, 0, narrow + 1, 0))
    kinds.append(TileKind(wide_tiles, tiles - wide_tiles, wide_tiles * (narrow + 1) * lanes, narrow, 0))
    if not tail:
        return kinds
    last = kinds.pop()
    if last.count > 1:
        kinds.append(TileKind(last.first, last.count - 1, last.pixel, last.vectors, 0))
    pixel = last.pixel + (last.count - 1) * last.vectors * lanes
    kinds.append(TileKind(last.first + last.count - 1, 1, pixel, last.vectors, tail))
    return kinds


def tiles(p: Mapping[str, Any], lanes: int) -> int:
    """Tiles of one image."""
    last = tile_kinds(p, lanes)[-1]
    return last.first + last.count


def pitch(p: Mapping[str, Any], lanes: int) -> int:
    """32-bit words between two columns of the activation panel."""
    return max(kind.vectors for kind in tile_kinds(p, lanes)) * lanes


def in_place(p: Mapping[str, Any]) -> bool:
    """Whether activations are read where they lie: planes of whole vectors that are too seldom multiplied to be worth a panel."""
    return bool(p.get("in_place"))


def keeps_sums(p: Mapping[str, Any]) -> bool:
    """Whether sums pass through scratch: between chunks, and before they are transposed."""
    return bool(p["chunks"] > 1 or p["dest"] == "tokens")


def sums_pitch(p: Mapping[str, Any], lanes: int) -> int:
    """Floats between two rows of sums; a distance that is no power of two spreads a column of them over the cache's sets."""
    return pitch(p, lanes) * int(p.get("per_lane", 1)) + (lanes if p["dest"] == "tokens" else 0)


def rounded_share(share: float) -> float:
    """`share` of stored weights, rounded to a few values: layers that differ only in their zeros get the same sizes, and so share
    kernels. Usual sparsities (50, 75, 80, 90, 95 %) lie amid the values that are rounded alike."""
    if share > 0.075:
        return round(share * 20) / 20
    steps = [0.05, 0.03, 0.02, 0.01]
    return min(steps, key=lambda step: abs(step - share))


def _planes(
    k: int,
    weights: float,
    strip: int,
    pixels: int,
    images: int,
    bands: int,
    widest: int,
    most_ranges: Callable[[int], int],
    span: int,
) -> tuple[int, int]:
    """(vectors of a tile, ranges): the least sum of the times of one thread and of _THREADS, each over the least there is.

    Wide tiles read weights less often. Several ranges of a tile leave something for every thread, but each thread packs the
    tile's k columns then. `weights`: entries of a band; most_ranges: by the number of tiles.
    """
    vectors = ceil(pixels / span)
    widths = [widest]
    if _LEAST_TILE <= (width := ceil(vectors / _THREADS)) < widest:
        widths.append(width)
    found = []
    for width in widths:
        count = tiles({"pixels": pixels, "vectors": width}, span) * images * bands
        mean = vectors * images * bands / count
        products = weights * (strip * mean + _WEIGHT)
        for ranges in range(1, most_ranges(count) + 1):
            bounds = [count * ranges * t // _THREADS for t in range(_THREADS + 1)]
            several = max(
                (ceil(b / ranges) - a // ranges) * k * mean * _PACKED_FAR + (b - a) * products / ranges
                for a, b in pairwise(bounds)
            )
            found.append((count * (k * mean * _PACKED + products), several, -ranges, width))
    least = [min(times) for times in zip(*found, strict=True)]
    _, ranges, width = min(
        (one / least[0] + several / least[1], ranges, width) for one, several, ranges, width in found
    )
    return width, -ranges


def choose(
    n: int,
    k: int,
    pixels: int,
    images: int,
    share: float,
    strip: int,
    quantum: int,
    plain: bool,
    target: Target,
    *,
    tokens: bool = False,
    per_lane: int = 1,
) -> dict[str, int]:
    """Sizes for W[n, k] with a `share` of stored elements (see `rounded_share`); chunks are multiples of `quantum` columns.

    vectors: most vectors of a tile. chunk, chunks, ranges, bands: see spmm_weights.py. whole: 1 when all columns of a tile are
    packed first and ranges of rows then finished one by one, because the sums of all rows would not stay in the cache.
    """
    lanes, stored = target.lanes, int(n * k * rounded_share(share))
    bands = 1 if plain else max(1, ceil(stored / _BAND_ELEMENTS))
    strips = ceil(n / strip)
    bands = min(bands, strips)
    wanted = min(_WANTED_UNITS, max(1, stored * pixels * images // _UNIT_MACS))

    def most_ranges(count: int) -> int:
        return max(1, min(ceil(wanted / count), strips // bands))

    p = {"pixels": pixels, "vectors": most_vectors(strip, target), "per_lane": per_lane}
    if strip == 1 and lanes == 16 and (tokens or k < _FEW_COLUMNS):
        p["vectors"] = min(p["vectors"], _NARROW_TILE)
    if tokens:
        ranges = most_ranges(tiles(p, lanes) * images * bands)
    else:
        p["vectors"], ranges = _planes(
            k, stored / strip / bands, strip, pixels, images, bands, p["vectors"], most_ranges, span(p, lanes)
        )
    width = pitch(p, lanes)
    larger = _LARGER if strip == 1 and target.arch == "x86_64" and lanes == 8 else 1
    wanted_floats = _RUN_ENTRIES * n * k * width / max(1, stored)
    floats, undivided = (
        min(max(larger * _PANEL_FLOATS, wanted), _PANEL_FLOATS_MOST)
        for wanted in (wanted_floats, larger * wanted_floats)
    )
    chunks = ceil(k * width / floats) if k * width > undivided * 1.5 else 1
    if per_lane > 1:
        chunks = max(chunks, ceil(k * rounded_share(share) / MOST_WEIGHTS))
    chunk = min(k, ceil(ceil(k / chunks) / quantum) * quantum)
    chunks = ceil(k / chunk)
    sums = n * width * per_lane
    whole = int(sums > _SUMS_FLOATS and k * width <= _WHOLE_PANEL_FLOATS)
    if whole:
        ranges = max(ranges, min(ceil(sums / (_RANGE_FLOATS * bands)), strips // bands))
    sizes = {
        "vectors": p["vectors"], "chunk": chunk, "chunks": chunks, "ranges": ranges, "bands": bands, "whole": whole,
    }  # fmt: skip
    return sizes | ({"per_lane": per_lane} if per_lane > 1 else {})
