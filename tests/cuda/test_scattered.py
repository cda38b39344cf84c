"""Weights of any structure on the GPU, in the simulator: tiles put together of what is stored."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.cuda import scattered
from sparsec.codegen.cuda.kernels import gemm
from sparsec.formats import Scheme
from sparsec.formats.encoded import decode, encode, unpack
from sparsec.target import resolve_target
from tests.cuda.products import NUMPY, PLAIN, bound, run_product


def mask_of(scheme: Scheme, n: int, k: int, kept: float, rng: np.random.Generator) -> np.ndarray:
    r, c = scheme.block
    text = str(scheme.structure)
    grid = (-(-n // r), -(-k // c))
    blocks = rng.random(grid) < kept
    if ":" in text or text.startswith("sf"):  # as many in every row and in every four
        blocks = np.tile(rng.permuted(np.tile([True, False, False, False], (grid[0], 1)), axis=1), -(-grid[1] // 4))[
            :, : grid[1]
        ]
    return np.repeat(np.repeat(blocks, r, 0)[:n], c, 1)[:, :k]


def check(
    scheme: str, m: int, n: int, k: int, rng: np.random.Generator, target_name: str = "cuda", kept: float = 0.3
) -> scattered.Packed:
    target, parsed = resolve_target(target_name), Scheme.parse(scheme)
    encoded = encode(rng.standard_normal((n, k)).astype(np.float32), parsed, mask_of(parsed, n, k, kept, rng))
    w, weight = decode(encoded), unpack(encoded)
    assert scattered.refused(weight) == ""
    many = m > 16
    packed = scattered.pack(weight, 2 if many else 1, target.storage)
    a = rng.standard_normal((m, k)).astype(NUMPY[target.storage])
    params = {"m": m, "weight": packed.params, "vector": 8 if k % 8 == 0 else 1, **PLAIN}
    if many:
        params |= {**gemm.blocking(m, packed.params, target.gpu), "parts": 1}
    got = run_product("gemm" if many else "gemv", params, a, [array for _, array in packed.arrays], [], target, n)
    want = a.astype(np.float64) @ w.astype(np.float64).T
    assert (np.abs(got - want) <= bound(a, w, target.storage) + 2.0**-8 * np.abs(want)).all(), np.abs(got - want).max()
    return packed


SCHEMES = [
    "s70",
    "s70-int8",
    "s70-int4-g8",
    "s1:4-cb3",
    "sf75-uint4-g32",
    "s4x1@70-cb4-g16",
    "s2x4@70-vq2d4.x2-g32",
    "s16x1@70-ternary",
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_few_rows(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(1, 4)), 40, 4 * int(rng.integers(30, 60)), rng)


@pytest.mark.parametrize("scheme", ["s70", "s70-uint5-g32", "s2x4@70-vq2d4", "s1:4-int8"])
def test_many_rows(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(17, 40)), 70, 4 * int(rng.integers(20, 40)), rng)


@pytest.mark.parametrize("m", [3, 20])
def test_bfloat16(m: int, rng: np.random.Generator) -> None:
    check("s70-int4-g32", m, 32, 256, rng, "cuda:sm_80:bf16")


@pytest.mark.parametrize(("n", "k", "kept"), [(1, 1, 1.0), (17, 130, 0.02), (50, 65, 0.95)])
def test_sizes(n: int, k: int, kept: float, rng: np.random.Generator) -> None:
    check("s70-cb4", 2, n, k, rng, kept=kept)


def test_bytes_follow_what_is_stored(rng: np.random.Generator) -> None:
    sizes = {name.split(".")[1]: array.nbytes for name, array in check("s70-int8", 1, 64, 1024, rng).arrays}
    assert sizes["codes"] == 64 * 1024 // 8
    assert sizes["stored"] < 0.35 * 64 * 1024
