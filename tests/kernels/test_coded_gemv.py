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
]


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


@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512"])
@pytest.mark.parametrize("size", [(1, 1, 1), (2, 131, 67), (3, 67, 131), (4, 193, 64)], ids=str)
def test_sizes_and_targets(size: tuple[int, int, int], name: str) -> None:
    for text in ("cb4-g32", "int4", "cb2"):
        check(text, *size, NAMED[name], act="relu")


def test_refusals() -> None:
    """What other kernels compute."""
    ones = np.ones((32, 64), np.float32)
    for text, why in (
        ("cb3", "1, 2 or 4"),
        ("vq2d4", "1, 2 or 4"),
        ("uint4-g32", "zero points"),
        ("cb4.r16", "several"),
        ("int4-g4", "whole words"),
    ):
        assert why in coded_gemv.refused(unpack(encode(ones, Scheme.parse(text))), NAMED["x86-avx2"])
    assert "x86-64 only" in coded_gemv.refused(unpack(encode(ones, Scheme.parse("cb4"))), NAMED["arm"])
