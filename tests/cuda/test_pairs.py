"""2:4 weights on the GPU, in the simulator: mma.sp in gemv and gemm, any codec."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.cuda import pairs
from sparsec.codegen.cuda.kernels import gemm
from sparsec.formats import Scheme
from sparsec.formats.encoded import encode, unpack
from sparsec.target import resolve_target
from tests.cuda import products


def check(scheme: str, m: int, n: int, k: int, rng: np.random.Generator, target_name: str = "cuda") -> pairs.Packed:
    target, w = resolve_target(target_name), rng.standard_normal((n, k)).astype(np.float32)
    order = rng.random((n, k // 4, 4)).argsort(axis=2)
    encoded = encode(w, Scheme.parse(scheme), (order < 2).reshape(n, k))
    weight = unpack(encoded)
    assert pairs.refused(weight) == ""
    packed = pairs.pack(weight, gemm.TILES if m > 16 else 2, target.storage)
    products.check(encoded, packed, m, rng, target)
    return packed


@pytest.mark.parametrize(
    "scheme", ["s2:4", "s2:4-int8", "s2:4-cb4-g64", "s2:4-int4-g128", "s2:4-cb3", "s2:4-uint4-g64"]
)
def test_few_rows(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(1, 4)), 40, 4 * int(rng.integers(30, 90)), rng)


@pytest.mark.parametrize("scheme", ["s2:4", "s2:4-cb4-g64", "s2:4-int8"])
def test_many_rows(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(17, 40)), 70, 4 * int(rng.integers(30, 90)), rng)


@pytest.mark.parametrize("m", [3, 20])
def test_bfloat16(m: int, rng: np.random.Generator) -> None:
    check("s2:4-int4-g64", m, 32, 256, rng, "cuda:sm_80:bf16")


def test_bytes_are_those_of_the_scheme(rng: np.random.Generator) -> None:
    packed = check("s2:4-int4", 1, 32, 256, rng)
    assert packed.arrays[0][1].nbytes == 32 * 256 // 4 + 32 * 256 // 8


def test_other_structures_are_refused(rng: np.random.Generator) -> None:
    w = rng.standard_normal((8, 64)).astype(np.float32)
    mask = np.zeros((8, 64), bool)
    mask[:, ::4] = True  # one of four, which s2:4 allows
    assert "two of every four" in pairs.refused(unpack(encode(w, Scheme.parse("s2:4"), mask)))
