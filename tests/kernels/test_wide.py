"""Products of 8-bit codes without VNNI: exact in 32 bits."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec import int8
from sparsec.codegen.kernels import byte_weights, wide
from sparsec.formats import Scheme, encode, unpack
from sparsec.target import NAMED
from tests.kernels.harness import run_kernel
from tests.kernels.test_gemv import rounded


@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512"])
@pytest.mark.parametrize("text", ["int8", "uint8", "int8-g32", "uint8-g4"])
@pytest.mark.parametrize("m", [1, 3, 9])
def test_largest_and_random(name: str, text: str, m: int) -> None:
    """Rows of inputs at their largest, of equal and of alternating signs, and random ones; no whole number of vectors or steps."""
    rng = np.random.default_rng()
    n, k = (
        int(rng.integers(1, 70)),
        4 * int(rng.integers(1, 50)) if text.endswith("g4") else 32 * int(rng.integers(1, 5)),
    )
    rows = [np.ones(k), rng.choice([-1.0, 1.0], k), rng.normal(size=k)]
    x = np.array([rows[i % 3] for i in range(m)], np.float32)
    matrix = np.where(rng.random((n, k)) < 0.5, np.sign(x[-1]), rng.uniform(-1, 1, (n, k))).astype(np.float32)
    weight = encode(matrix, Scheme.parse(text))
    packed = byte_weights.pack(unpack(weight), NAMED[name], 0, "w", m)
    p = {"m": m, "w": packed.params, "x_group": 0, "bias": False, "residual": False, "act": "", "act_params": []}
    assert wide.applies(p, NAMED[name])
    (out,) = run_kernel("gemv", p, [x, *(a for _, a in packed.arrays)], target=NAMED[name])
    wanted = int8.quantised(x, 0).astype(np.float64) @ rounded(weight).T
    size = np.abs(int8.quantised(x, 0)).astype(np.float64) @ np.abs(rounded(weight)).T
    assert np.all(np.abs(out.reshape(m, n) - wanted) <= 2e-6 * size + 1e-6)


def test_where_it_applies() -> None:
    for name, text, applies in (
        ("x86-avx2", "int8", True),
        ("x86-avx2", "uint4", False),
        ("x86-avxvnni", "int8", False),
        ("arm", "int8", False),
    ):
        weight = unpack(encode(np.ones((8, 32), np.float32), Scheme.parse(text)))
        assert wide.applies({"w": byte_weights.pack(weight, NAMED[name], 0, "w").params}, NAMED[name]) == applies
