"""Attention on tensor cores over strides, masks, groups and sizes, against numpy in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.cuda.capacity import shared_limit
from sparsec.codegen.cuda.kernels.attention import LARGEST_HEAD
from sparsec.codegen.cuda.table import family_for
from sparsec.codegen.nvrtc import compile_image
from sparsec.codegen.program import KernelSpec
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.programs import run_kernel, source_of
from tests.kernels.test_attention import expected, strided

Array = np.ndarray[Any, Any]
# batch, heads, heads of k and v, queries, keys, elements of a head, of a value
SIZES = [
    (1, 1, 1, 1, 1, 1, 1), (2, 4, 2, 1, 137, 8, 8), (1, 2, 2, 3, 16, 32, 24), (1, 8, 2, 1, 70, 64, 64), (1, 3, 3, 17, 31, 48, 48),
    (2, 2, 1, 33, 65, 32, 32), (1, 2, 1, 70, 130, 20, 40), (1, 1, 1, 67, 67, 128, 128), (1, 2, 2, 19, 129, 5, 3),
]  # fmt: skip


def check(
    size: tuple[int, ...], rng: np.random.Generator, *, mask: str = "", causal: bool = False, beside: bool = False,
    half: str = "float16", spread: float = 1.0,
) -> None:  # fmt: skip
    b, h, kv, t, s, d, dv = size
    shapes = ((b, h, t, d), (b, kv, s, d), (b, kv, s, dv))
    target = "cuda" if half == "float16" else "cuda:bf16"
    rounded = [spread * rng.normal(size=shape).astype(np.float32) for shape in shapes]
    memory = [strided(array, beside) for array in rounded]
    added: dict[str, Any] = {}
    ins = [array for _, array in memory]
    values = None
    if mask:
        rows, heads = (t if "rows" in mask else 1), (h if "heads" in mask else 1)
        values = np.where(rng.random((b, heads, rows, s)) < 0.3, -1e4, rng.normal(size=(b, heads, rows, s))).astype(
            np.float32
        )
        values[..., 0] = 0.0
        added = {"batch": heads * rows * s, "head": rows * s if heads > 1 else 0, "row": s if rows > 1 else 0, "key": 1}
        added["size"] = values.size
        ins.append(values)
    out, result = strided(np.zeros((b, h, t, dv), np.float32), beside)
    params = {
        "batch": b, "heads": h, "groups": h // kv, "t": t, "s": s, "d": d, "dv": dv, "scale": d**-0.5, "causal": causal,
        "mask": added or None, "q": memory[0][0], "k": memory[1][0], "v": memory[2][0], "out": out,
    }  # fmt: skip
    storage = (half, half, half, *(["float32"] if mask else []), half)
    (found,) = run_kernel(KernelSpec("cuda.attention", params, storage), ins, storage, target)
    found = found.astype(np.float64).reshape(result.shape)
    found = found.transpose(0, 2, 1, 3) if beside else found
    stored = np.dtype(np.float16) if half == "float16" else np.dtype("bfloat16")
    q, keys, v = (array.astype(stored).astype(np.float32) for array in rounded)
    wanted = expected(q, keys, v, values, causal, d**-0.5)
    # weights are rounded for the second product, results when they are stored
    step = 2.0**-11 if half == "float16" else 2.0**-8
    assert np.abs(found - wanted).max() <= 2 * step * np.abs(v).max() + 1e-5


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size: tuple[int, ...], rng: np.random.Generator) -> None:
    check(size, rng)


@pytest.mark.parametrize("size", [SIZES[1], SIZES[4], SIZES[6]], ids=str)
def test_heads_side_by_side_in_bfloat16(size: tuple[int, ...], rng: np.random.Generator) -> None:
    check(size, rng, beside=True, half="bfloat16")


@pytest.mark.parametrize("mask", ["keys", "rows", "rows heads"])
@pytest.mark.parametrize("size", [SIZES[2], SIZES[3], SIZES[5]], ids=str)
def test_masks(size: tuple[int, ...], mask: str, rng: np.random.Generator) -> None:
    check(size, rng, mask=mask)


@pytest.mark.parametrize(
    "size", [(1, 2, 1, 1, 40, 16, 16), (1, 2, 2, 5, 9, 16, 16), (1, 2, 1, 90, 100, 24, 24), (2, 1, 1, 65, 65, 16, 8)]
)
def test_causal(size: tuple[int, ...], rng: np.random.Generator) -> None:
    check(size, rng, causal=True)


def test_large_scores(rng: np.random.Generator) -> None:
    check((1, 1, 1, 20, 90, 64, 16), rng, spread=12.0)


def test_larger_heads_run_on_threads() -> None:
    assert family_for("attention", {"d": LARGEST_HEAD, "dv": LARGEST_HEAD}) == "cuda.attention"
    assert family_for("attention", {"d": LARGEST_HEAD + 1, "dv": 8}) == "attention"


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("queries", [1, 128])
def test_largest_heads_fit(queries: int, arch: str) -> None:
    """Registers and shared memory suffice; keys and values come by asynchronous copies and leave shared memory as matrices."""
    heads, size = 4, LARGEST_HEAD
    memory = {
        name: strided(np.zeros((1, heads, t, size), np.float32), True)[0]
        for name, t in (("q", queries), ("k", 200), ("v", 200), ("out", queries))
    }
    params = {
        "batch": 1, "heads": heads, "groups": 1, "t": queries, "s": 200, "d": size, "dv": size, "scale": 0.1, "causal": False, "mask": None,
        **memory,
    }  # fmt: skip
    text, launch = source_of(KernelSpec("cuda.attention", params, ("float16",) * 4), resolve_target(f"cuda:{arch}"))
    image = compile_image(text, "kernel", arch)
    assert image.spills == 0
    assert launch.shared_bytes <= shared_limit(arch)
    for instruction in (
        b"cp.async.cg",
        b"ldmatrix.sync.aligned.m8n8.x4.shared",
        b"ldmatrix.sync.aligned.m8n8.x4.trans",
    ):
        assert instruction in image.ptx
