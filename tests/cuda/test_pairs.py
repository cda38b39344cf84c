"""2:4 weights on the GPU, in the simulator: mma.sp in gemv and gemm, any codec."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.cuda import pairs
from sparsec.codegen.cuda.kernels import gemm
from sparsec.formats import Scheme
from sparsec.formats.encoded import decode, encode, unpack
from sparsec.target import resolve_target
from tests.cuda.products import NUMPY, PLAIN, bound, run_product


def check(scheme: str, m: int, n: int, k: int, rng: np.random.Generator, target_name: str = "cuda") -> pairs.Packed:
    target, w = resolve_target(target_name), rng.standard_normal((n, k)).astype(np.float32)
    order = rng.random((n, k // 4, 4)).argsort(axis=2)
    encoded = encode(w, Scheme.parse(scheme), (order < 2).reshape(n, k))
    w, weight = decode(encoded), unpack(encoded)
    assert pairs.refused(weight) == ""
    many = m > 16
    packed = pairs.pack(weight, gemm.TILES if many else 2, target.storage)
    a = rng.standard_normal((m, k)).astype(NUMPY[target.storage])
    params = {"m": m, "weight": packed.params, "vector": 8 if k % 8 == 0 else 1, **PLAIN}
    if many:
        params |= {**gemm.blocking(m, packed.params, target.gpu), "parts": 1}
    got = run_product("gemm" if many else "gemv", params, a, [array for _, array in packed.arrays], [], target, n)
    want = a.astype(np.float64) @ w.astype(np.float64).T
    assert (np.abs(got - want) <= bound(a, w, target.storage) + 2.0**-8 * np.abs(want)).all(), np.abs(got - want).max()
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
