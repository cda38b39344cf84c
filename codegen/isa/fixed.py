"""16-bit fixed-point vectors: two numbers in each 32-bit lane, products that keep their upper 16 bits, rounded."""

from __future__ import annotations

from typing import Any

_MULTIPLY = {
    ("x86_64", 8): "llvm.x86.avx2.pmul.hr.sw",
    ("x86_64", 16): "llvm.x86.avx512.pmul.hr.sw.512",
    ("aarch64", 4): "llvm.aarch64.neon.sqrdmulh.v8i16",
}


def multiply(k: Any, a: Any, b: Any) -> Any:
    """round(a * b / 2^15) of int16 lanes, halves up; not of -2^15 times itself."""
    return k.T.call_llvm_pure_intrin(f"int16x{2 * k.lanes}", _MULTIPLY[k.target.arch, k.lanes], a, b)


def join(k: Any, low: Any, high: Any) -> Any:
    """int32 vectors of 16-bit numbers -> one vector: `low` in the lower halves of its lanes, `high` in the upper."""
    n = k.lanes
    return (low & k.i32(0xFFFF, n)) | (high << k.i32(16, n))


def halves(k: Any, words: Any) -> tuple[Any, Any]:
    """(low, high) of `join`, as int32 vectors."""
    n = k.lanes
    return (words << k.i32(16, n)) >> k.i32(16, n), words >> k.i32(16, n)
