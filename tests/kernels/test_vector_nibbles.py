"""One row times a codebook of vectors whose codes are two of four bits, against float64 on the same rounded operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.assembly import assembly, innermost_loops, uses_stack
from bench.instructions import kernel
from sparsec.codegen.kernels import vector_gemv
from sparsec.codegen.kernels.vector_weights import MOST_UNITS, most_rows
from sparsec.formats import Scheme, encode, unpack
from sparsec.target import NAMED
from tests.kernels.test_vector_gemv import check, run

TARGETS = ["x86-avx2", "arm"]


@pytest.mark.parametrize(
    ("text", "n", "k", "x_group"),
    [
        ("vq2d2", 67, 1031, 0),
        ("vq2d4.x2-g32", 40, 96, 0),
        ("vq2d2-g48", 131, 144, 48),
        ("vq2d4.x2-c", 2111, 67, 0),
        ("vq2d2", 1, 1, 0),
        ("vq2d2.x2", 70, 130, 0),
        ("vq2d4.x2", 66, 4099, 0),
    ],
)
@pytest.mark.parametrize("name", TARGETS)
def test_products(name: str, text: str, n: int, k: int, x_group: int) -> None:
    weight = unpack(encode(np.ones((n, k), np.float32), Scheme.parse(text)))
    assert vector_gemv.pack(weight, NAMED[name], x_group, whole=True)[0]["form"] == "nibbles"
    check(text, n, k, NAMED[name], whole=True, x_group=x_group, act="relu")


@pytest.mark.parametrize(("text", "x_group"), [("vq2d2-c", 0), ("vq2d4.x2-g32", 32)])
@pytest.mark.parametrize("name", TARGETS)
def test_rows(name: str, text: str, x_group: int) -> None:
    """Several rows of activations, one after the other; more are left to kernels that decode weights."""
    rng = np.random.default_rng()
    weight = encode(rng.normal(size=(75, 96)).astype(np.float32), Scheme.parse(text))
    most = most_rows(NAMED[name], "nibbles")
    for m in range(2, most + 1):
        run(weight, rng.normal(size=(m, 96)).astype(np.float32), NAMED[name], whole=True, x_group=x_group)
    assert "more rows" in vector_gemv.refused(unpack(weight), NAMED[name], x_group, whole=True, m=most + 1)
    other = unpack(encode(np.ones((75, 96), np.float32), Scheme.parse("vq2d4")))
    assert "more rows" in vector_gemv.refused(other, NAMED["x86-avx2"], 0, whole=True, m=2)


@pytest.mark.parametrize("text", ["vq2d2", "vq2d4.x2"])
@pytest.mark.parametrize("name", TARGETS)
def test_largest_products_are_exact(name: str, text: str) -> None:
    """All products at their limits, of either sign, over more than a span."""
    k = 8 * MOST_UNITS["nibbles"]
    signs = np.where(np.arange(k) % 1024 < 512, -1, 1).astype(np.float32)
    for matrix in (np.ones((64, k)), np.broadcast_to(signs, (64, k)), -np.ones((64, k))):
        run(encode(matrix.astype(np.float32), Scheme.parse(text)), signs, NAMED[name], whole=True)


def test_longer_groups() -> None:
    """Groups longer than sums may be: in memory on x86, not at all on aarch64."""
    weight = unpack(encode(np.ones((4, 512), np.float32), Scheme.parse("vq2d2-g512")))
    assert vector_gemv.pack(weight, NAMED["x86-avx2"], 0, whole=True)[0]["form"] == "memory"
    assert "half of the products" in vector_gemv.refused(weight, NAMED["arm"], 0, whole=True)


@pytest.mark.parametrize(("name", "shuffle", "most"), [("x86-avx2", "vpshufb", 130), ("arm", "tbl", 90)])
def test_loop(name: str, shuffle: str, most: int, tmp_path: Any) -> None:
    """Four shuffles a unit; no sums on the stack (AVX2 may read tables there)."""
    text = assembly(*kernel("vq2d2", 1, NAMED[name]), NAMED[name], tmp_path)
    body = max(innermost_loops(text), key=lambda lines: sum(line.startswith(shuffle) for line in lines))
    assert sum(line.startswith(shuffle) for line in body) == 16
    assert not any(line.endswith("(%rsp)") or (name == "arm" and uses_stack([line])) for line in body)
    assert len(body) <= most
