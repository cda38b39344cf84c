"""gemv on the GPU against numpy, in the simulator: every dense scheme, odd sizes, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.cuda import fragments
from sparsec.codegen.cuda.kernels.gemv import launch
from sparsec.formats import Scheme
from sparsec.formats.encoded import encode, unpack
from sparsec.target import resolve_target
from tests.cuda import products

SCHEMES = [
    "fp16", "int8", "int8-g64", "int4-g32", "int3-g64", "int2", "int5-c", "uint4-g64", "uint3-g16", "uint8-g128", "uint2-t",
    "cb1", "cb2-g64", "cb3", "cb4-g128", "cb5", "cb6-g32", "cb8", "cb4.r32", "nf4-g64", "fp4", "fp8", "pow2", "ternary", "binary",
    "vq2d4", "vq1d8", "vq2d2", "vq3d4", "vq2d4.x2", "vq2d4-g64", "vq2d4.q8", "pg3",
]  # fmt: skip


def check(
    scheme: str, target_name: str, m: int, n: int, k: int, rng: np.random.Generator, tiles: int = 1, **more: Any
) -> None:
    target = resolve_target(target_name)
    encoded = encode(rng.standard_normal((n, k)).astype(np.float32), Scheme.parse(scheme))
    weight = unpack(encoded)
    tiles = fragments.row_tiles(weight, tiles)
    assert fragments.refused(weight, 16 * tiles, target.storage) == ""
    products.check(encoded, fragments.pack(weight, tiles, target.storage), m, rng, target, **more)


@pytest.mark.parametrize("scheme", SCHEMES)
def test_schemes(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, "cuda", int(rng.integers(1, 4)), 40, 192, rng)


@pytest.mark.parametrize("scheme", ["int4-g32", "int8", "uint4-g64", "cb4", "vq2d4.x2", "fp16"])
def test_bfloat16(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, "cuda:sm_80:bf16", 2, 24, 128, rng)


@pytest.mark.parametrize(
    ("m", "n", "k", "tiles"), [(1, 1, 1, 1), (16, 33, 65, 1), (9, 50, 1100, 2), (8, 70, 520, 4), (5, 17, 63, 1)]
)
def test_sizes(m: int, n: int, k: int, tiles: int, rng: np.random.Generator) -> None:
    check("cb4", "cuda", m, n, k, rng, tiles)
    check("int4-g64", "cuda", m, n, k, rng, tiles)


@pytest.mark.parametrize(("act", "params"), [("gelu", []), ("clip", [-0.5, float("inf")]), ("silu", [])])
def test_epilogue(act: str, params: list[float], rng: np.random.Generator) -> None:
    check("cb4-g64", "cuda", 3, 20, 128, rng, bias=True, residual=True, act=act, act_params=params)


def test_bytes_read_are_the_bytes_stored(rng: np.random.Generator) -> None:
    """Sizes that fill panels: the kernel's weight arguments hold what the scheme stores, but for a table's pairs."""
    for scheme in ("int4-g128", "cb4-g128", "int8", "cb3", "ternary", "vq2d4"):
        encoded = encode(rng.standard_normal((64, 512)).astype(np.float32), Scheme.parse(scheme))
        weight = unpack(encoded)
        packed = fragments.pack(weight, fragments.row_tiles(weight, 2), "float16")
        table = sum(array.nbytes for name, array in packed.arrays if name.endswith(".table"))
        stored = encoded.nbytes - (0 if encoded.codebook is None else encoded.codebook.nbytes)
        assert sum(array.nbytes for _, array in packed.arrays) - table == stored, scheme
        assert launch({"m": 1, "weight": packed.params}, resolve_target("cuda")).shared_bytes <= 48 * 1024
