"""Dense products with packed constant weights, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.codegen.kernels import dense
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]
HOST = [host_target(), *([NAMED["x86-avx2"]] if host_target().arch == "x86_64" else [])]
# few rows, primes, tile sizes +- 1, chunks of K with and without a rest, several parts of the rows
SIZES = [
    (1, 1, 1), (1, 45, 67), (1, 300, 64), (2, 129, 3), (3, 40, 33), (5, 17, 31), (9, 48, 16), (10, 49, 16), (14, 32, 18),
    (29, 64, 256), (61, 7, 13), (19, 100, 1061), (20, 24, 768), (128, 52, 515), (301, 40, 64),
]  # fmt: skip


def params(m: int, n: int, k: int, **extra: Any) -> dict[str, Any]:
    return {"m": m, "n": n, "k": k, "bias": False, "residual": False, "act": "", "act_params": [], **extra}


def close(got: Array, want: Array, spread: float = 1e-6) -> None:
    """Within float32 rounding of a sum of products; spread: what a sum would be if its products did not cancel."""
    got = got.reshape(want.shape)
    assert np.abs(got - want).max() <= 3e-6 * max(np.abs(want).max(), spread)


def operands(m: int, n: int, k: int) -> tuple[Array, Array]:
    rng = np.random.default_rng([m, n, k])
    return rng.normal(size=(m, k)).astype(np.float32), rng.normal(size=(n, k)).astype(np.float32)


@pytest.mark.parametrize("target", HOST, ids=lambda t: t.name)
@pytest.mark.parametrize("size", SIZES, ids=lambda s: "x".join(map(str, s)))
def test_with_bias_residual_and_activation(size: tuple[int, int, int], target: Target) -> None:
    m, n, k = size
    a, w = operands(m, n, k)
    rng = np.random.default_rng(n)
    residual, bias = rng.normal(size=(m, n)).astype(np.float32), rng.normal(size=n).astype(np.float32)
    p = params(m, n, k, bias=True, residual=True, act="relu")
    (out,) = run_kernel("dense", p, [a, dense.pack(w, p, target), bias, residual], target=target)
    close(out, np.maximum(a.astype(np.float64) @ w.T.astype(np.float64) + bias + residual, 0))


def test_costly_activation_is_applied_to_every_column() -> None:
    m, n, k = 31, 53, 20
    a, w = operands(m, n, k)
    p = params(m, n, k, act="sigmoid")
    (out,) = run_kernel("dense", p, [a, dense.pack(w, p, host_target())])
    close(out, 1 / (1 + np.exp(-a.astype(np.float64) @ w.T.astype(np.float64))))


@settings(max_examples=8, deadline=None)
@given(st.integers(1, 70), st.integers(1, 140), st.integers(1, 800), st.integers(1, 9))
def test_any_size_split_anywhere(m: int, n: int, k: int, splits: int) -> None:
    a, w = operands(m, n, k)
    p = params(m, n, k)
    (out,) = run_kernel("dense", p, [a, dense.pack(w, p, host_target())], splits=splits)
    close(
        out, a.astype(np.float64) @ w.T.astype(np.float64), spread=float(np.sqrt(np.square(a) @ np.square(w).T).max())
    )


@pytest.mark.parametrize("target", sorted(NAMED))
@pytest.mark.parametrize("size", [(128, 1536, 384), (512, 512, 512), (1, 4096, 4096), (7, 5, 3)], ids=str)
def test_blocking_fits_the_registers_and_covers_the_product(target: str, size: tuple[int, int, int]) -> None:
    m, n, k = size
    machine = NAMED[target]
    t = dense.blocking(params(m, n, k), machine)
    vectors = t.nr // machine.lanes
    assert t.mr * vectors + vectors + 1 <= machine.vector_registers
    assert (t.tiles - 1) * t.mr < m <= t.tiles * t.mr
    assert (t.panels - 1) * t.nr < n <= t.panels * t.nr
    assert (t.parts - 1) * t.part_tiles < t.tiles <= t.parts * t.part_tiles
