"""Few float32 rows times dense weights of small codes, against float64."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.kernels import coded_gemv
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel

CODECS = [
    "cb4-g32",
    "cb4",
    "int4-g16",
    "int4",
    "ternary",
    "ternary-g32",
    "cb2-g32",
    "cb1-t",
    "nf4-g32",
    "int2-c",
    "binary-g32",
    "cb3-g32",
    "cb3-c",
    "cb5-c",
    "cb5-g20",
    "cb6-g32",
    "int3-g32",
    "int5-g32",
    "int6-c",
    "int7-g12",
    "int8",
    "int8-g4",
]
LARGE = ["cb7-c", "cb8-g32", "fp8", "fp8-c"]  # for 512 bits


def check(text: str, m: int, n: int, k: int, target: Target, act: str = "") -> None:
    """One product with bias and residual."""
    rng = np.random.default_rng([m, n, k, len(text)])
    weight = encode(rng.normal(size=(n, k)).astype(np.float32), Scheme.parse(text))
    unpacked = unpack(weight)
    assert not coded_gemv.refused(unpacked, target)
    params, arrays = coded_gemv.pack(unpacked, m, target)
    x, residual = (rng.normal(size=(m, size)).astype(np.float32) for size in (k, n))
    bias = rng.normal(size=n).astype(np.float32)
    p = {**params, "bias": True, "residual": True, "act": act, "act_params": []}
    (out,) = run_kernel("coded_gemv", p, [x, *(a for _, a in arrays), bias, residual], target=target)
    wanted = x.astype(np.float64) @ decode(weight).T.astype(np.float64) + bias + residual
    wanted = np.maximum(wanted, 0) if act == "relu" else wanted
    assert np.abs(out.reshape(m, n) - wanted).max() <= 2e-6 * max(np.abs(wanted).max(), np.sqrt(k))


@pytest.mark.parametrize("text", CODECS)
def test_codecs(text: str) -> None:
    check(text, 1, 77, 137, host_target())


@pytest.mark.parametrize("text", LARGE)
def test_large_tables(text: str) -> None:
    check(text, 1, 77, 137, NAMED["x86-avx512"])


@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512"])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 131, 67), (3, 67, 131), (4, 193, 64)], ids=str)
def test_sizes_and_targets(size: tuple[int, int, int], name: str) -> None:
    for text in ("cb4-g32", "int4", "cb2", "cb3-g32", "cb5-g12", "cb6", "int5-g32", "int8"):
        check(text, *size, NAMED[name], act="relu")


def test_refusals() -> None:
    """What other kernels compute."""
    ones = np.ones((32, 64), np.float32)
    for text, why in (
        ("vq2d4", "code for each weight"),
        ("cb8", "in memory"),
        ("uint4-g32", "zero points"),
        ("cb4.r16", "several"),
    ):
        assert why in coded_gemv.refused(unpack(encode(ones, Scheme.parse(text))), NAMED["x86-avx2"])
    assert "x86-64 only" in coded_gemv.refused(unpack(encode(ones, Scheme.parse("cb4"))), NAMED["arm"])
