"""Decoding inside the kernel against the numpy reference: every structure with every codec."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels import decode as kernel_decode
from sparsec.codegen.kernels import gemm
from sparsec.errors import SchemeError
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.formats.structure import Dense, FanIn
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.test_gemm import close, params

Array = np.ndarray[Any, Any]

STRUCTURES = [
    "",
    "s50",
    "s2:4",
    "s3:7",
    "sf80",
    "s16x1@50",
    "s32x1@40",
    "s8x1@60",
    "s4x4@50",
    "s1x16@50",
    "s3x2@50",
    "s16x8@50",
]
CODECS = [
    "fp32", "fp16", "int8", "int4-g32", "int2-t", "uint8", "uint4-g16", "uint2-g48", "ternary", "cb1", "cb2-c", "cb3",
    "cb4-g32", "cb5", "cb6-g16", "cb7.r16", "cb8", "cb4.r3-c", "cb4.i16", "cb2.r32", "int3-g32", "uint5", "int6", "uint7-g16",
    "nf4-g32", "fp4", "fp8-g16", "binary-g16", "pow2-t", "pg3-g16", "vq2d4", "vq2d8-c", "vq3d4-g16", "vq2d4.x2.i8", "vq1d8.r16-t",
    "vq4d2.r3",
]  # fmt: skip


def keep_mask(scheme: Scheme, n: int, k: int, rng: np.random.Generator, share: float = 0.5) -> Array | None:
    """A random legal keep-mask for the scheme's structure."""
    if isinstance(scheme.structure, Dense):
        return None
    if isinstance(scheme.structure, FanIn):
        return rng.random((n, k)).argsort(1) < int(share * k)
    text = str(scheme.structure)
    if ":" in text:
        keep, of = (int(v) for v in text[1:].split(":"))
        padded = -(-k // of) * of
        order = np.argsort(rng.random((n, padded // of, of)), -1)[:, :, :keep]
        mask = np.zeros((n, padded // of, of), bool)
        np.put_along_axis(mask, order, True, -1)
        return mask.reshape(n, padded)[:, :k]
    r, c = scheme.block
    blocks = rng.random((-(-n // r), -(-k // c))) < share
    blocks[0] = False  # an empty strip
    return np.repeat(np.repeat(blocks, r, 0), c, 1)[:n, :k]


def check(text: str, m: int, n: int, k: int, target: Target, share: float = 0.5) -> None:
    """One product with coded weights against float64 on the decoded weights."""
    rng = np.random.default_rng([m, n, k, len(text)])
    scheme = Scheme.parse(text)
    weight, a = rng.normal(size=(n, k)).astype(np.float32), rng.normal(size=(m, k)).astype(np.float32)
    encoded = encode(weight, scheme, mask=keep_mask(scheme, n, k, rng, share))
    packed = kernel_decode.pack(unpack(encoded), gemm.panel_width(n, m, target), target)
    p = params(m, n, k, {"kind": "coded", "decode": packed.params})
    (out,) = run_kernel("gemm", p, [a, *(array for _, array in packed.arrays)], target=target)
    close(out, a.astype(np.float64) @ decode(encoded).T.astype(np.float64))


def _schemes(structures: list[str], codecs: list[str]) -> list[str]:
    legal = []
    for structure in structures:
        for codec in codecs:
            text = f"{structure}-{codec}".lstrip("-")
            try:
                Scheme.parse(text)
            except SchemeError:  # vectors of inputs with single stored values
                continue
            if text != "fp32":
                legal.append(text)
    return legal


QUICK = [
    "sf80", "sf80-cb4-g16", "vq2d4.q8-g16",
    "vq2d4", "vq2d8-c", "vq3d4-g16", "vq2d4.x2.i8", "vq1d8.r16", "s1x16@50-vq2d4", "s16x4@50-vq2d2-g16", "s3x2@50-vq2d2.r3",
    "int8", "uint4-g16", "ternary", "cb3", "cb4-g32", "cb7.r16", "cb4.r3-c", "cb4.i16", "fp16", "s50", "s50-cb4-g32", "s2:4-int4-g8",
    "nf4-g32", "fp8", "s50-binary", "s16x1@50-fp4-g32", "int3-g16", "s1x16@50-uint7",
    "s16x1@50-cb4-g32", "s32x1@40-uint2-g48", "s8x1@60-cb5", "s4x4@50-cb2.r32", "s1x16@50-uint4-g16", "s3x2@50-int8",
]  # fmt: skip


@pytest.mark.parametrize("text", QUICK)
def test_scheme(text: str) -> None:
    check(text, 5, 45, 67, host_target())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["host", "x86-avx2"])
@pytest.mark.parametrize("text", _schemes(STRUCTURES, CODECS))
def test_every_scheme(text: str, name: str) -> None:
    target = host_target() if name == "host" else NAMED[name]
    check(text, 5, 45, 67, target)
    check(text, 1, 7, 33, target)


@pytest.mark.parametrize("share", [0.0, 1.0])
@pytest.mark.parametrize("text", ["s50-int8", "s16x1@50-cb4-g32"])
def test_nothing_and_everything_stored(text: str, share: float) -> None:
    check(text, 3, 40, 21, host_target(), share)


@pytest.mark.parametrize("size", [(1, 1, 1), (1, 100, 384), (40, 96, 128), (2, 15, 5)])
@pytest.mark.parametrize("text", ["cb4-g32", "s16x1@50-cb4-g32", "s50-uint8"])
def test_sizes(text: str, size: tuple[int, int, int]) -> None:
    check(text, *size, host_target())
