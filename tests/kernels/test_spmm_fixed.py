"""Sparse products in 16-bit fixed point against numpy in float64, within the bound that sparsec/fixed.py states."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec import fixed
from sparsec.codegen.kernels.spmm_rules import prepare
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]

TARGETS = {t.name: t for t in (host_target(), NAMED["x86-avx2"], NAMED["arm"])}
EACH = pytest.mark.parametrize("target", TARGETS.values(), ids=TARGETS)


def check(
    text: str,
    n: int,
    k: int,
    pixels: int,
    target: Target,
    *,
    layout: str = "planes",
    images: int = 1,
    share: float = 0.3,
    act: str = "",
    largest: bool = False,
    **forced: int,
) -> None:
    """One pointwise product with bias and residual; `largest`: sums as large as they can be."""
    rng = np.random.default_rng([n, k, pixels, len(text)])
    scheme = Scheme.parse(text)
    matrix = rng.normal(size=(n, k)).astype(np.float32)
    x = rng.normal(size=(images, pixels, k)).astype(np.float32) * rng.lognormal(size=(images, pixels, 1)).astype("f4")
    if largest:
        matrix, x = np.sign(matrix), np.broadcast_to(np.sign(matrix[np.arange(pixels) % n]), x.shape).copy()
    else:
        x[:, pixels // 2] = 0  # no step of its own
    encoded = encode(matrix, scheme, mask=keep_mask(scheme, n, k, rng, share))
    weight = decode(encoded)
    geometry = {"pixels": pixels, "images": images, "source": layout, "dest": layout}
    made = prepare(unpack(encoded), geometry, target, fixed=True, **forced)
    p = made.params | {"bias": True, "residual": True, "act": act, "act_params": []}
    bias, residual = rng.normal(size=n).astype(np.float32), rng.normal(size=(images, pixels, n)).astype(np.float32)
    product = x.astype(np.float64) @ weight.T.astype(np.float64)
    want = product + bias + residual
    want = np.maximum(want, 0) if act == "relu" else want
    bound = np.stack([fixed.error_bound(image, weight, p["chunk"]) for image in x])
    bound += 1e-5 * (np.abs(x.astype(np.float64)) @ np.abs(weight).T + np.abs(bias) + np.abs(residual))
    given = [x, residual] if layout == "tokens" else [v.swapaxes(1, 2) for v in (x, residual)]
    arrays = [
        given[0],
        *(array for _, array in made.arrays),
        np.pad(bias, (0, -n % p["strip"])),
        given[1],
    ]
    (got,) = run_kernel("spmm", p, arrays, target=target, scratch=made.scratch)
    found = got.reshape(given[1].shape)
    found = found if layout == "tokens" else found.swapaxes(1, 2)
    assert np.all(np.abs(found - want) <= bound), np.max(np.abs(found - want) / bound)
    if k > 100 and share and not largest:  # products are rounded: nothing that multiplies floats passes for this
        assert np.abs(found - want).max() > 1e-5 * np.abs(want).max()


SIZES = [(1, 1, 16), (5, 3, 17), (33, 16, 128), (3, 129, 70), (40, 257, 49), (17, 64, 196), (64, 31, 33), (2, 1031, 37)]


@EACH
@pytest.mark.parametrize("layout", ["planes", "tokens"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, int, int], layout: str, target: Target) -> None:
    check("s70", *size, target, layout=layout)


@EACH
@pytest.mark.parametrize("text", ["s50", "sf50", "s2x1@60", "s4x1@60", "s3x2@60", "s2:4", "s5x1@70"])
def test_structures(text: str, target: Target) -> None:
    check(text, 37, 45, 70, target, act="relu")
    check(text, 37, 45, 33, target, layout="tokens", act="gelu" if text == "s50" else "")


@EACH
@pytest.mark.parametrize("layout", ["planes", "tokens"])
def test_chunks_ranges_and_whole_panels(layout: str, target: Target) -> None:
    check("s80", 50, 131, 75, target, layout=layout, chunk=20, ranges=3)
    check("s80", 50, 131, 75, target, layout=layout, chunk=44, ranges=2, whole=1)
    check("s80", 50, 131, 64, target, layout=layout, chunk=68)
    check("s2x1@80", 50, 131, 75, target, layout=layout, chunk=20, images=1 if layout == "tokens" else 3)


@EACH
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_densities(share: float, target: Target) -> None:
    check("s50", 33, 100, 70, target, share=share)
    check("s2x1@50", 33, 100, 37, target, share=share, layout="tokens")


@EACH
def test_largest_sums_do_not_overflow(target: Target) -> None:
    check("s50", 32, 400, 64, target, share=1.0, largest=True)
    check("s50", 32, 400, 64, target, share=0.1, largest=True, chunk=100)
