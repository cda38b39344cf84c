"""Rivals of `bench gpu`, all from Python packages on top of torch: each makes one call on weights of its own.

A rival is `make(m, n, k, copies) -> (bytes of a weight, call(copy))`. What is missing raises ImportError, what the rival cannot do
RuntimeError.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Made = tuple[int, Callable[[int], Any]]


def dense(m: int, n: int, k: int, copies: int) -> Made:
    """torch.matmul in fp16: cuBLAS."""
    import torch

    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randn(n, k, device="cuda", dtype=torch.float16) for _ in range(copies)]
    return weights[0].nbytes, lambda i: a @ weights[i].T


def int4(m: int, n: int, k: int, copies: int) -> Made:
    """torch's weight-only int4 product, groups of 128, bfloat16 (it has no fp16)."""
    import torch

    a = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
    codes = torch.randint(0, 256, (n, k // 2), device="cuda", dtype=torch.uint8)
    weights = [torch.ops.aten._convert_weight_to_int4pack(codes, 8) for _ in range(copies)]
    scales = torch.rand(k // 128, n, 2, device="cuda", dtype=torch.bfloat16)
    return weights[0].nbytes + scales.nbytes, lambda i: torch.ops.aten._weight_int4pack_mm(a, weights[i], 128, scales)


def two_of_four(m: int, n: int, k: int, copies: int) -> Made:
    """torch's 2:4 product in fp16: cuSPARSELt, or CUTLASS where torch prefers it."""
    import torch
    from torch.sparse import to_sparse_semi_structured

    if m % 8:
        raise RuntimeError("it takes rows in eights")
    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    pattern = torch.tensor([1, 0, 0, 1], device="cuda", dtype=torch.float16).repeat(n, k // 4)
    weights = [
        to_sparse_semi_structured(torch.randn(n, k, device="cuda", dtype=torch.float16) * pattern)
        for _ in range(copies)
    ]
    return n * k * 9 // 8, lambda i: torch.nn.functional.linear(a, weights[i])


def nf4(m: int, n: int, k: int, copies: int) -> Made:
    """bitsandbytes NF4, groups of 64."""
    import bitsandbytes.functional as bnb
    import torch
    from bitsandbytes import matmul_4bit

    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    made = [bnb.quantize_nf4(torch.randn(n, k, device="cuda", dtype=torch.float16)) for _ in range(copies)]
    size = made[0][0].nbytes + made[0][1].absmax.nbytes
    return size, lambda i: matmul_4bit(a, made[i][0].t(), quant_state=made[i][1])


def triton(m: int, n: int, k: int, copies: int) -> Made:
    """A plain Triton product that unpacks int4, groups of 128, in front of tl.dot."""
    import torch

    from bench.gpu_triton import int4_product

    a = torch.randn(m, k, device="cuda", dtype=torch.float16)
    weights = [torch.randint(-128, 127, (k // 2, n), device="cuda", dtype=torch.int8) for _ in range(copies)]
    scales = torch.rand(k // 128, n, device="cuda", dtype=torch.float16)
    return weights[0].nbytes + scales.nbytes, lambda i: int4_product(a, weights[i], scales)


RIVALS: dict[str, Callable[[int, int, int, int], Made]] = {
    "torch fp16": dense,
    "torch int4": int4,
    "torch 2:4 fp16": two_of_four,
    "bitsandbytes nf4": nf4,
    "triton int4": triton,
}
