"""One row times a codebook of vectors, float32 and int8 activations, against float64 on the same (rounded) operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec import int8
from sparsec.codegen.kernels import vector_gemv
from sparsec.formats import EncodedWeight, Scheme, decode, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.test_gemv import rounded

Array = np.ndarray[Any, Any]


def check(
    text: str,
    n: int,
    k: int,
    target: Target,
    *,
    whole: bool,
    x_group: int = 0,
    act: str = "",
    book: Array | None = None,
) -> None:
    """One product with bias and residual; book: another codebook for the weight."""
    rng = np.random.default_rng([n, k, len(text)])
    weight = encode(rng.normal(size=(n, k)).astype(np.float32), Scheme.parse(text))
    if book is not None:
        object.__setattr__(weight, "codebook", book.astype(np.float16))
    run(weight, rng.normal(size=k).astype(np.float32), target, whole=whole, x_group=x_group, act=act)


def run(weight: EncodedWeight, x: Array, target: Target, *, whole: bool, x_group: int = 0, act: str = "") -> None:
    """The product of x [K] or [M, K]."""
    rng = np.random.default_rng(weight.rows)
    unpacked = unpack(weight)
    m = x.size // unpacked.cols
    assert not vector_gemv.refused(unpacked, target, x_group, whole=whole, m=m)
    params, arrays = vector_gemv.pack(unpacked, target, x_group, whole=whole, m=m)
    bias = rng.normal(size=weight.rows).astype(np.float32)
    residual = rng.normal(size=(*x.shape[:-1], weight.rows)).astype(np.float32)
    p = {**params, "bias": True, "residual": True, "act": act, "act_params": []}
    (out,) = run_kernel("vector_gemv", p, [x, *(a for _, a in arrays), bias, residual], target=target)
    matrix, row = (rounded(weight), int8.quantised(x, x_group)) if whole else (decode(weight), x)
    products = matrix.astype(np.float64) * row[..., None, :]
    wanted = products.sum(-1) + bias + residual
    wanted = np.maximum(wanted, 0) if act == "relu" else wanted
    size = max(np.abs(wanted).max(), np.sqrt(np.square(products).sum(-1)).max())
    assert np.abs(out.reshape(wanted.shape) - wanted).max() <= 2e-6 * size


CODECS = ["vq2d4", "vq2d4-c", "vq2d4.x2-g32", "vq2d2-t", "vq2d4.q8-g16", "vq2d2-g48"]
avx512 = pytest.mark.skipif("avx512" not in host_target().features, reason="this machine has no AVX-512")


@pytest.mark.parametrize("text", CODECS)
def test_float_activations(text: str) -> None:
    check(text, 77, 132, host_target(), whole=False)


@avx512
@pytest.mark.parametrize("text", CODECS)
def test_int8_activations(text: str) -> None:
    check(text, 77, 132, NAMED["x86-avx512"], whole=True)


@avx512
def test_int8_activations_in_groups() -> None:
    check("vq2d4", 100, 320, NAMED["x86-avx512"], whole=True, x_group=32)
    check("vq2d4-g32", 100, 320, NAMED["x86-avx512"], whole=True, x_group=32)


@pytest.mark.parametrize("name", ["x86-avx2", "arm"])
def test_targets(name: str) -> None:
    check("vq2d4-g32", 37, 101, NAMED[name], whole=False, act="relu")


def _book(half: bool) -> Array:
    rng = np.random.default_rng(7)
    entries = rng.normal(size=(128, 4))
    return np.concatenate([entries, -entries if half else rng.normal(size=(128, 4))])[None, None]


@pytest.mark.parametrize(
    ("text", "n", "k", "x_group"),
    [
        ("vq2d4", 67, 1031, 0),
        ("vq2d4-g48", 40, 96, 48),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("vq2d4", 1, 1, 0),
                ("vq2d4", 2111, 67, 0),
                ("vq2d4-c", 131, 4099, 0),
                ("vq2d4", 100, 320, 32),
                ("vq2d4.q8-g16", 50, 112, 0),
            )
        ),
    ],
)
@pytest.mark.parametrize(
    ("name", "half"),
    [("x86-avx2", True), ("x86-avx2", False), ("arm", True), pytest.param("arm-v8.0", True, marks=pytest.mark.slow)],
)
def test_int8_activations_without_wide_registers(
    name: str, half: bool, text: str, n: int, k: int, x_group: int
) -> None:
    """Looked up by bytes where the codebook is mirrored, else (x86) in memory."""
    check(text, n, k, NAMED[name], whole=True, x_group=x_group, book=_book(half))


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=avx512)])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("size", [(1, 1), (2111, 67), (131, 1031), (67, 4099)], ids=str)
def test_sizes(size: tuple[int, int], half: bool, whole: bool) -> None:
    """Codebooks with and without symmetry, more outputs than share tables, more inputs than 16 bits of sums hold."""
    rng = np.random.default_rng(size)
    entries = rng.normal(size=(128, 4))
    book = np.concatenate([entries, -entries if half else rng.normal(size=(128, 4))])[None, None]
    check("vq2d4", *size, NAMED["x86-avx512"] if whole else host_target(), whole=whole, book=book)


@pytest.mark.parametrize("text", ["vq2d4", "vq2d4-c", "vq2d4-g32", "vq2d4-g16", "vq2d4-g48"])
@pytest.mark.parametrize("k", [4, 16, 48, 112, 144])
def test_inputs_that_end_within_a_word_of_codes(k: int, text: str) -> None:
    """Codes are padded to 32 inputs, activations are not."""
    for target in (host_target(), NAMED["x86-avx2"], NAMED["arm"]):
        check(text, 33, k, target, whole=False)
        check(text, 33, k, target, whole=True, book=_book(True))


@pytest.mark.parametrize(
    ("name", "half"),
    [
        pytest.param("x86-avx512", False, marks=avx512),
        pytest.param("x86-avx512", True, marks=avx512),
        ("x86-avx2", False),
        ("x86-avx2", True),
        ("arm", True),
    ],
)
def test_largest_products_are_exact(name: str, half: bool) -> None:
    """All products at their limits, of either sign, over many spans."""
    signs = np.where(np.arange(4096) % 2048 < 1024, -1, 1).astype(np.float32)
    entries = np.repeat([[1.0], [-1.0]], 128, 0) * np.ones(4)
    entries[5] = 1.0 if half else 0.5
    for matrix in (np.ones((64, 4096)), np.broadcast_to(signs, (64, 4096)), -np.ones((64, 4096))):
        weight = encode(matrix.astype(np.float32), Scheme.parse("vq2d4"))
        object.__setattr__(weight, "codebook", entries.astype(np.float16)[None, None])
        codes = np.where(matrix[:, ::4] > 0, 0, 128).astype(np.uint8)
        object.__setattr__(weight, "codes", (codes.reshape(-1),))
        run(weight, signs, NAMED[name], whole=True)


def test_refusals() -> None:
    """What other kernels compute."""
    ones = np.ones((32, 64), np.float32)
    for text, why in (
        ("cb4", "not a dense"),
        ("vq1d8", "8 bits"),
        ("vq2d4.r16", "several"),
        ("vq2d4-g8", "whole words"),
    ):
        assert why in vector_gemv.refused(unpack(encode(ones, Scheme.parse(text))), host_target(), 0, whole=False)
    weight = unpack(encode(ones, Scheme.parse("vq2d4")))
    assert "half of the products" in vector_gemv.refused(weight, NAMED["arm"], 0, whole=True)
