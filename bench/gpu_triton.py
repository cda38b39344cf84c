"""A plain Triton product with int4 weights, as tutorials write it: a rival of `bench gpu`."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl

_GROUP = 128


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(a, w, s, c, M, N, K, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr):  # type: ignore[no-untyped-def]
    rows = tl.program_id(1) * BM + tl.arange(0, BM)
    cols = tl.program_id(0) * BN + tl.arange(0, BN)
    total = tl.zeros((BM, BN), tl.float32)
    for first in range(0, K, BK):
        pair = first // 2 + tl.arange(0, BK // 2)
        packed = tl.load(w + pair[:, None] * N + cols[None, :])
        low = ((packed << 4) >> 4).to(tl.float16)
        high = (packed >> 4).to(tl.float16)
        scale = tl.load(s + first // GROUP * N + cols)
        even = tl.load(a + rows[:, None] * K + 2 * pair[None, :], mask=rows[:, None] < M, other=0.0)
        odd = tl.load(a + rows[:, None] * K + 2 * pair[None, :] + 1, mask=rows[:, None] < M, other=0.0)
        total += tl.dot(even, low * scale[None, :]) + tl.dot(odd, high * scale[None, :])
    tl.store(c + rows[:, None] * N + cols[None, :], total.to(tl.float16), mask=rows[:, None] < M)


def int4_product(a: Any, w: Any, scales: Any) -> Any:
    """a [M, K] fp16, w int8 [K / 2, N] (two codes a byte, the even input low), scales fp16 [K / 128, N]."""
    (m, k), n = a.shape, w.shape[1]
    c = torch.empty(m, n, device=a.device, dtype=a.dtype)
    rows = 16 if m <= 16 else 64
    _kernel[(n // 64, -(-m // rows))](a, w, scales, c, m, n, k, rows, 64, _GROUP, _GROUP)
    return c
