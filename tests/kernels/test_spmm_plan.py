"""Sizes of sparse products: every pixel lies in one tile, threads have their share without packing the same pixels often."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

from sparsec.codegen.kernels.spmm_plan import choose, tile_kinds, tiles
from sparsec.target import NAMED

X86 = NAMED["x86-avx512"]


def sizes(n: int, k: int, pixels: int, share: float = 0.1, strip: int = 1) -> tuple[int, int]:
    """(tiles, ranges)"""
    found = choose(n, k, pixels, 1, share, strip, 1, True, X86)
    return tiles({"pixels": pixels} | found, X86.lanes), found["ranges"]


@pytest.mark.parametrize("lanes", [4, 8, 16])
def test_tiles_cover_every_pixel_once(lanes: int) -> None:
    for pixels, widest in product((1, 3, 16, 17, 49, 196, 197, 784, 3136), (1, 2, 3, 4, 7, 8)):
        p, seen, number = {"pixels": pixels, "vectors": widest}, 0, 0
        for kind in tile_kinds(p, lanes):
            assert kind.pixel == seen
            assert kind.first == number
            assert 1 <= kind.vectors <= widest
            number += kind.count
            seen += kind.count * kind.vectors * lanes
            if kind.tail:
                seen -= lanes - kind.tail
        assert seen == pixels
        assert number == tiles(p, lanes)


def test_many_tiles_are_not_cut_into_ranges() -> None:
    assert sizes(32, 192, 784) == (7, 1)
    assert sizes(24, 144, 3136)[1] == 1


def test_many_columns_for_few_rows_are_packed_by_one_thread_each() -> None:
    assert sizes(96, 576, 196)[0] == 4


def test_few_columns_for_many_rows_keep_wide_tiles() -> None:
    assert sizes(1024, 256, 196) == (2, 4)


def test_small_images_are_shared_by_rows() -> None:
    assert sizes(160, 960, 49) == (1, 8)
    assert sizes(3, 960, 49)[1] <= 3


def test_sizes_fit_whatever_is_asked() -> None:
    rng = np.random.default_rng()
    for _ in range(300):
        n, k, pixels, images = (int(rng.integers(1, most)) for most in (600, 900, 900, 4))
        strip, share = int(rng.choice([1, 2, 4])), float(rng.uniform(0.005, 1))
        plain, tokens = bool(rng.random() < 0.5), bool(rng.random() < 0.3)
        for target in (NAMED["x86-avx2"], X86, NAMED["arm"]):
            found = choose(n, k, pixels, images, share, strip, 1, plain, target, tokens=tokens)
            assert min(found[name] for name in ("vectors", "chunk", "chunks", "ranges", "bands")) >= 1
            assert found["bands"] * found["ranges"] <= max(1, -(-n // strip))
            assert (found["chunks"] - 1) * found["chunk"] < k <= found["chunks"] * found["chunk"]
