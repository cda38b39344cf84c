"""The loops of products keep their accumulators in registers: their assembly does not touch the stack, on any target."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from bench.assembly import assembly, innermost_loops, multiplies, uses_stack
from bench.instructions import kernel
from sparsec.codegen.kernels.frames import frame
from sparsec.codegen.kernels.window import Window
from sparsec.target import NAMED

# A loop of this many multiply-adds, most of its instructions, is the loop of a product.
_LEAST, _SHARE = 24, 0.55
_SUMS = 12  # of a tile of 6 rows and 16 columns, 8 lanes


def _dense(m: int, n: int, k: int, act: str = "") -> tuple[str, dict[str, Any]]:
    return "dense", {
        "m": m, "n": n, "k": k, "bias": True, "residual": not act, "act": act, "act_params": [],
    }  # fmt: skip


def _winograd(size: int, channels: int) -> tuple[str, dict[str, Any]]:
    """All pairs are (vertical, horizontal)."""
    pairs = {"size": size, "out": size, "kernel": 3, "strides": 1, "dilations": 1, "pads": 1, "pads_end": 1}
    return "winograd", {
        **{name: [value, value] for name, value in pairs.items()}, "x": "cl", "batch": 1, "channels": channels, "filters": channels,
        "pitch": channels, "bias": True, "residual": False, "act": "relu", "act_params": [],
    }  # fmt: skip


def _attention(t: int, s: int, d: int, *, causal: bool = True, turned: bool = False) -> tuple[str, dict[str, Any]]:
    rows = {"batch": 0, "head": d, "row": 2 * d, "size": 2 * max(t, s) * d}
    if turned:
        rows |= {"head": d * t, "row": 1, "element": t}
    return "attention", {
        "batch": 1, "heads": 2, "groups": 1, "t": t, "s": s, "d": d, "dv": d, "scale": 0.1, "causal": causal,
        "mask": {"batch": 0, "head": 0, "row": 0, "key": 1, "size": s}, "q": rows, "k": rows, "v": rows, "out": rows,
    }  # fmt: skip


def _window(size: int, kernel: int, stride: int) -> dict[str, Any]:
    out, pad = [(size - 1) // stride + 1] * 2, [kernel // 2] * 2
    return Window(
        (size, size), (out[0], out[1]), (kernel, kernel), (stride, stride), (1, 1), (pad[0], pad[1]), (pad[0], pad[1])
    ).params()


def _planar(kernel: int, filters: int) -> tuple[str, dict[str, Any]]:
    return "planar", {
        **_window(224, kernel, 2), "batch": 1, "channels": 3, "filters": filters, "bias": True, "residual": False, "act": "relu6",
        "act_params": [],
    }  # fmt: skip


def _framed(target: str) -> tuple[str, dict[str, Any]]:
    """A depthwise convolution of images with zeros around them."""
    p = _window(112, 3, 1)
    framed = frame(Window.of(p), NAMED[target])
    assert framed is not None
    return "depthwise", {
        **p, "batch": 1, "channels": 32, "layout": "row", "bias": True, "residual": False, "activation": "relu", "act_params": [],
        "decode": None, "frame": framed.params(),
    }  # fmt: skip


def _decoded(n: int, k: int, word: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A product whose weights are decoded panel by panel, on targets of 8 lanes."""
    rows = {"kind": "rows", "lda": k, "batch_stride": 0, "size": 128 * k}
    coded = {
        "k": k, "nr": 16, "panels": n // 16, "kind": "dense", "taps": 1, "bits": 4, "dim": 1, "scales": "group", "group": 32, "strip": 0,
        "groups": k // 32, **word,
    }  # fmt: skip
    return "gemm", {
        "m": 128, "n": n, "k": k, "batch": 1, "batch_b": 1, "a": rows, "b": {"kind": "coded", "decode": coded},
        "c": {"ldc": n, "batch_stride": 0, "size": 128 * n}, "bias": False, "residual": False, "act": "", "act_params": [],
    }  # fmt: skip


def _coded(group: int, m: int, bits: int = 4, tile: int = 64, converted: bool = False) -> tuple[str, dict[str, Any]]:
    return "coded_gemv", {
        "m": m, "rows": 512, "k": 512, "bits": bits, "tile": tile, "scales": "group" if group else "none", "group": group,
        "converted": converted, "bias": False, "residual": False, "act": "", "act_params": [],
    }  # fmt: skip


def _vector(whole: bool, half: bool) -> tuple[str, dict[str, Any]]:
    return "vector_gemv", {
        "m": 1, "rows": 512, "k": 512, "whole": whole, "half": half, "form": "registers", "units": 0, "tile": 64, "x_group": 0, "group": 0,
        "scales": "none", "bias": False, "residual": False, "act": "", "act_params": [],
    }  # fmt: skip


def _product_loops(text: str) -> list[list[str]]:
    """Bodies of the innermost loops that are mostly multiply-adds."""
    return [
        body
        for body in innermost_loops(text, branches=True)
        if sum("fmadd" in line or line.startswith("fmla") for line in body) >= max(_LEAST, _SHARE * len(body))
    ]


@pytest.mark.parametrize("target", ["arm", "x86-avx2", "x86-avx512"])
@pytest.mark.parametrize(
    "kernel",
    [
        _dense(128, 1536, 384, "gelu"),
        _dense(128, 384, 1536),
        _winograd(28, 128),
        _attention(128, 128, 32),
        _attention(128, 128, 32, causal=False),
        _attention(128, 128, 32, causal=False, turned=True),
    ],
    ids=["up", "down", "winograd", "causal", "attention", "turned"],
)
def test_loops_of_products_stay_in_registers(kernel: tuple[str, dict[str, Any]], target: str, tmp_path: Path) -> None:
    loops = _product_loops(assembly(*kernel, NAMED[target], tmp_path))
    assert loops
    for body in loops:
        assert not uses_stack(body)


@pytest.mark.parametrize("target", ["arm", "x86-avx2", "x86-avx512"])
@pytest.mark.parametrize("kind", ["stem", "large stem", "depthwise"])
def test_loops_of_windows_stay_in_registers(kind: str, target: str, tmp_path: Path) -> None:
    kernel = {"stem": _planar(3, 32), "large stem": _planar(7, 64), "depthwise": _framed(target)}[kind]
    innermost = innermost_loops(assembly(*kernel, NAMED[target], tmp_path), branches=True)
    loops = [body for body in innermost if multiplies(body) >= _LEAST]
    assert loops
    for body in loops:
        assert not uses_stack(body)


@pytest.mark.parametrize("shape", [(384, 384), (1536, 384), (384, 1536)], ids=str)
@pytest.mark.parametrize(
    "word",
    [
        {"word": "table", "entries": 16, "books": 1, "scope": "one"},
        {"word": "affine", "offset": 8},
        {"word": "affine", "offset": None},
    ],
    ids=["codebook", "integers", "zero points"],
)
def test_what_decodes_panels_takes_no_registers_from_sums(
    shape: tuple[int, int], word: dict[str, Any], tmp_path: Path
) -> None:
    innermost = innermost_loops(assembly(*_decoded(*shape, word), NAMED["x86-avx2"], tmp_path), branches=True)
    loops = [body for body in innermost if sum("fmadd" in line for line in body) >= _SUMS]
    assert loops
    for body in loops:
        assert not uses_stack(body)


@pytest.mark.parametrize(
    "kernel",
    [
        _coded(32, 1),
        _coded(0, 4),
        _coded(0, 1, 5),
        _coded(0, 1, 6),
        _coded(32, 1, 8, converted=True),
        _vector(True, True),
        _vector(True, False),
        _vector(False, True),
        _vector(False, False),
    ],
    ids=[
        "codes in groups",
        "four rows",
        "32 entries",
        "64 entries",
        "integers",
        "int8, mirrored",
        "int8",
        "float, mirrored",
        "float",
    ],
)
def test_loops_of_lookups_stay_in_registers(kernel: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    loops = [
        body
        for body in innermost_loops(assembly(*kernel, NAMED["x86-avx512"], tmp_path), branches=True)
        if re.search("vperm|vcvtdq2ps", "".join(body))
    ]
    assert loops
    for body in loops:
        assert not uses_stack(body)


@pytest.mark.parametrize(
    "kernel",
    [_coded(0, 1, 3, 32), _coded(0, 1, 4, 32), _coded(32, 1, 4, 32), _coded(0, 1, 8, 32, converted=True)],
    ids=["8 entries", "16 entries", "in groups", "integers"],
)
def test_loops_of_lookups_stay_in_sixteen_registers(kernel: tuple[str, dict[str, Any]], tmp_path: Path) -> None:
    loops = [
        body
        for body in innermost_loops(assembly(*kernel, NAMED["x86-avx2"], tmp_path), branches=True)
        if "fmadd" in "".join(body)
    ]
    assert loops
    for body in loops:
        assert not uses_stack(body)


@pytest.mark.parametrize(
    ("scheme", "x_group"), [("cb4-g32", 0), ("cb4-g32", 32), ("cb2-g32", 0), ("cb2-g32", 32), ("cb4", 0)]
)
def test_loops_of_one_row_of_bytes_stay_in_registers(scheme: str, x_group: int, tmp_path: Path) -> None:
    family, params = kernel(scheme, 1, NAMED["x86-avx2"])
    innermost = innermost_loops(
        assembly(family, {**params, "x_group": x_group}, NAMED["x86-avx2"], tmp_path), branches=True
    )
    loops = [body for body in innermost if sum("maddubs" in line for line in body) >= _LEAST]
    assert loops
    for body in loops:
        assert not uses_stack(body)
