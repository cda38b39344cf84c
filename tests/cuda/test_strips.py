"""Weights of blocks of 16 outputs and more on the GPU, in the simulator: only what is stored is read."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.cuda import strips
from sparsec.formats import Scheme
from sparsec.formats.encoded import encode, unpack
from sparsec.target import resolve_target
from tests.cuda import products


def check(
    scheme: str, m: int, n: int, k: int, rng: np.random.Generator, target_name: str = "cuda", kept: float = 0.5
) -> strips.Packed:
    target, parsed = resolve_target(target_name), Scheme.parse(scheme)
    (r, c), w = parsed.block, rng.standard_normal((n, k)).astype(np.float32)
    blocks = rng.random((-(-n // r), -(-k // c))) < kept
    blocks[0] = False  # a strip of zeros
    mask = np.repeat(np.repeat(blocks, r, 0)[:n], c, 1)[:, :k]
    encoded = encode(w, parsed, mask)
    weight = unpack(encoded)
    assert strips.refused(weight) == ""
    packed = strips.pack(weight, target.storage)
    products.check(encoded, packed, m, rng, target)
    return packed


@pytest.mark.parametrize(
    "scheme",
    ["s16x1@50-cb4-g64", "s16x1@50-cb4", "s32x4@50-int8", "s16x16@50", "s64x1@50-int4-g32", "s48x8@50-vq2d4", "s16x1@50-uint4-g64"],
)  # fmt: skip
def test_schemes(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(1, 4)), 70, 300, rng)


@pytest.mark.parametrize(("m", "n", "k", "kept"), [(16, 17, 1030, 0.9), (1, 200, 2, 0.5), (9, 40, 700, 0.05)])
def test_sizes(m: int, n: int, k: int, kept: float, rng: np.random.Generator) -> None:
    check("s16x1@50-cb4-g64", m, n, k, rng, kept=kept)


def test_bfloat16(rng: np.random.Generator) -> None:
    check("s16x1@50-int4-g32", 2, 32, 128, rng, "cuda:sm_80:bf16")


def test_bytes_follow_what_is_stored(rng: np.random.Generator) -> None:
    """Codes and positions of a weight half of which is stored: those of the scheme, whole steps and the ranks."""
    packed = check("s16x1@50-int4", 1, 64, 1024, rng)
    sizes = {name.split(".")[1]: array.nbytes for name, array in packed.arrays}
    assert sizes["positions"] == 4 * 1024 // 8
    assert sizes["codes"] < 0.5 * (48 * 1024 // 2) * 1.25
