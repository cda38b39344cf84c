"""The matrix multiplication skeleton on plain float32 operands, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels import gemm
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]


def params(m: int, n: int, k: int, b: dict[str, Any], batch: int = 1, **extra: Any) -> dict[str, Any]:
    """Row-major A [batch, M, K] and C [batch, M, N]."""
    return {
        "m": m, "n": n, "k": k, "batch": batch, "batch_b": 1, "b": b,
        "a": {"kind": "rows", "lda": k, "batch_stride": m * k, "size": batch * m * k},
        "c": {"ldc": n, "batch_stride": m * n, "size": batch * m * n},
        "bias": False, "residual": False, "act": "", "act_params": [], **extra,
    }  # fmt: skip


def pack(weight: Array, nr: int) -> Array:
    """W[N, K] as panels [K][NR], padded with zeros."""
    n, k = weight.shape
    padded = np.zeros((-(-n // nr) * nr, k), np.float32)
    padded[:n] = weight
    return padded.reshape(-1, nr, k).transpose(0, 2, 1)


def close(got: Array, want: Array) -> None:
    """Within float32 rounding of a sum of products."""
    got = got.reshape(want.shape)
    assert np.abs(got - want).max() <= 3e-6 * max(np.abs(want).max(), 1e-6)


SIZES = [(1, 1, 1), (1, 45, 67), (2, 129, 3), (5, 17, 31), (14, 32, 16), (15, 33, 16), (29, 64, 256), (61, 7, 13)]


@pytest.mark.parametrize("target", [host_target(), NAMED["x86-avx2"]], ids=["host", "avx2"])
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_packed_with_bias_residual_and_activation(size: tuple[int, int, int], target: Target) -> None:
    m, n, k = size
    rng = np.random.default_rng(m * n + k)
    a, w = rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)
    residual, bias = rng.normal(size=(m, n)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    p = params(m, n, k, {"kind": "packed"}, bias=True, residual=True, act="relu")
    t = gemm.tiling(p, target)
    padded = np.pad(bias, (0, t.panels * t.nr - n))
    (out,) = run_kernel("gemm", p, [a, pack(w, t.nr), padded, residual], target=target)
    close(out, np.maximum(a.astype(np.float64) @ w.T.astype(np.float64) + bias + residual, 0))


@pytest.mark.parametrize("kind", ["rows", "cols"])
@pytest.mark.parametrize("size", [(1, 1, 1), (7, 37, 11), (16, 64, 8), (128, 32, 128), (3, 129, 50)])
def test_batches_of_computed_operands(kind: str, size: tuple[int, int, int]) -> None:
    m, n, k = size
    batch = 3
    rng = np.random.default_rng(m + n + k)
    a = rng.normal(size=(batch, m, k)).astype(np.float32)
    b = rng.normal(size=(batch, k, n) if kind == "rows" else (batch, n, k)).astype(np.float32)
    p = params(m, n, k, {"kind": kind, "ldb": b.shape[-1], "batch_stride": n * k, "size": b.size}, batch=batch)
    (out,) = run_kernel("gemm", p, [a, b])
    right = b if kind == "rows" else b.transpose(0, 2, 1)
    close(out, a.astype(np.float64) @ right.astype(np.float64))


def test_shared_operand_has_batch_stride_zero() -> None:
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(9, 12)).astype(np.float32), rng.normal(size=(4, 12, 21)).astype(np.float32)
    p = params(9, 21, 12, {"kind": "rows", "ldb": 21, "batch_stride": 12 * 21, "size": b.size}, batch=4)
    p["a"] = {"kind": "rows", "lda": 12, "batch_stride": 0, "size": a.size}
    (out,) = run_kernel("gemm", p, [a, b])
    close(out, a.astype(np.float64) @ b.astype(np.float64))


@pytest.mark.parametrize("name", sorted(NAMED))
@pytest.mark.parametrize("size", [*SIZES, (3136, 64, 576), (128, 1536, 384), (49, 2048, 512), (1, 4096, 4096)])
def test_tiles_fit_registers_and_cover_the_product(name: str, size: tuple[int, int, int]) -> None:
    target = NAMED[name]
    m, n, k = size
    for kind in ("packed", "coded"):
        t = gemm.tiling(params(m, n, k, {"kind": kind}), target)
        assert t.mr * t.nv + t.nv + 1 <= target.vector_registers
        assert t.tiles * t.mr >= m > (t.tiles - 1) * t.mr
        assert t.blocks * t.block_tiles >= t.tiles > (t.blocks - 1) * t.block_tiles
        assert t.panel_units * t.unit_panels >= t.panels > (t.panel_units - 1) * t.unit_panels
