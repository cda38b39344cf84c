"""Sparse products of one or a few rows against numpy in float64: every codec and structure, odd sizes, empty and full weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels import spmv_weights
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.test_decode import keep_mask
from tests.kernels.test_spmm import CODECS, STRUCTURES

Array = np.ndarray[Any, Any]


def check(
    text: str,
    m: int,
    n: int,
    k: int,
    target: Target,
    *,
    share: float = 0.3,
    residual: bool = False,
    act: str = "",
    pieces: int = 5,
) -> None:
    """One product with bias."""
    rng = np.random.default_rng([m, n, k, len(text)])
    scheme = Scheme.parse(text)
    weight = rng.normal(size=(n, k)).astype(np.float32)
    encoded = encode(weight, scheme, mask=keep_mask(scheme, n, k, rng, share))
    made = spmv_weights.pack(unpack(encoded), target, pieces)
    p = made.params | {"m": m, "bias": True, "residual": residual, "act": act, "act_params": []}
    x, r, bias = (rng.normal(size=size).astype(np.float32) for size in ((m, k), (m, n), n))
    want = x.astype(np.float64) @ decode(encoded).T.astype(np.float64) + bias
    size = (np.abs(x).astype(np.float64) @ np.abs(decode(encoded)).T).max() + 1
    want = want + r if residual else want
    want = np.maximum(want, 0) if act == "relu" else want
    arrays = [x, *(array for _, array in made.arrays), made.by_lane(bias), *([r] if residual else [])]
    (got,) = run_kernel("spmv", p, arrays, target=target)
    assert np.abs(got.reshape(m, n) - want).max() <= 1e-6 * size


@pytest.mark.parametrize("name", ["host", "x86-avx2", "arm"])
@pytest.mark.parametrize("text", ["s70", "s70-cb4-g8", "s70-uint4", "s2:4-fp16", "s70-cb3.r16"])
def test_targets(text: str, name: str) -> None:
    target = host_target() if name == "host" else NAMED[name]
    check(text, 1, 37, 52, target, residual=True, act="relu")
    check(text, 3, 21, 40, target, share=0.6)


@pytest.mark.parametrize("text", [f"{s}-{c}" for s, c in zip(STRUCTURES * 3, CODECS, strict=False)])
def test_codecs(text: str) -> None:
    check(text, 2, 45, 67, host_target())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["host", "x86-avx2"])
@pytest.mark.parametrize("text", [f"{s}-{c}" for s in STRUCTURES for c in CODECS])
def test_every_scheme(text: str, name: str) -> None:
    check(text, 1, 45, 67, host_target() if name == "host" else NAMED[name])


@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("text", ["s50", "s50-int8", "s50-cb3-g4", "s50-uint8-g5"])
def test_densities(text: str, share: float) -> None:
    check(text, 1, 21, 40, host_target(), share=share)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 17, 5), (8, 3, 7), (2, 131, 16), (5, 4, 257), (1, 2, 600)], ids=str)
def test_sizes(size: tuple[int, int, int]) -> None:
    check("s50", *size, host_target())


def test_pieces_have_equal_steps() -> None:
    """Rows of very different lengths: no piece has much more than its part."""
    rng = np.random.default_rng(5)
    mask = rng.random((512, 256)) < (rng.random((512, 1)) ** 4)
    weight = encode(rng.normal(size=(512, 256)).astype(np.float32), Scheme.parse("s80"), mask=mask)
    made = spmv_weights.pack(unpack(weight), NAMED["x86-avx2"], 8)
    arrays = dict(made.arrays)
    steps = np.diff(arrays["starts"][arrays["bounds"]])
    assert len(steps) == 8
    assert steps.max() <= 1.5 * made.steps / 8
    # sorted rows leave hardly a lane without a weight
    assert 8 * made.steps <= 1.05 * mask.sum()
