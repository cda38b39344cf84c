"""Strips times many tokens with int8 activations against float64 on the rounded operands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.assembly import assembly, innermost_loops, uses_stack
from sparsec import int8
from sparsec.codegen.kernels import token_weights
from sparsec.formats import Scheme, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.programs import lower_and_run, reference
from tests.kernels.test_decode import keep_mask
from tests.kernels.test_gemv import STRIPS, model, rounded

Array = np.ndarray[Any, Any]

SCHEMES = [*STRIPS, "s16x1@50-cb4-g64", "s16x1@50-cb4-g8", "s16x1@50-cb4-c", "s16x1@50-cb4.r32-g32"]


def check(
    text: str, m: int, n: int, k: int, target: Target, *, share: float = 0.5, act: str = "", signs: bool = False
) -> None:
    """One product with bias and residual; `signs`: all operands as large as they can be."""
    rng = np.random.default_rng([m, n, k, len(text)])
    scheme = Scheme.parse(text)
    matrix, x = rng.normal(size=(n, k)).astype(np.float32), rng.normal(size=(m, k)).astype(np.float32)
    if signs:
        matrix, x = np.sign(matrix), np.sign(matrix[np.arange(m) % n])
    weight = encode(matrix, scheme, mask=keep_mask(scheme, n, k, rng, share))
    unpacked = unpack(weight)
    assert not token_weights.refusal(unpacked, target, 0)
    packed = token_weights.pack(unpacked, target, "w")
    residual = rng.normal(size=(m, n)).astype(np.float32)
    if not signs:
        x[m // 2] = 0  # no scale of its own
    bias = np.zeros(packed.params["tiles"] * packed.params["tile"], np.float32)
    bias[:n] = rng.normal(size=n)
    p = {"m": m, "w": packed.params, "bias": True, "residual": True, "act": act, "act_params": []}
    (out,) = run_kernel("token_strips", p, [x, *(array for _, array in packed.arrays), bias, residual], target=target)
    wanted = int8.quantised(x, 0).astype(np.float64) @ rounded(weight).T.astype(np.float64) + bias[:n] + residual
    wanted = np.maximum(wanted, 0) if act == "relu" else wanted
    if act == "gelu":
        wanted = 0.5 * wanted * (1 + np.vectorize(math.erf)(wanted * math.sqrt(0.5)))
    assert np.abs(out.reshape(m, n) - wanted).max() <= 2e-6 * np.abs(wanted).max(initial=1.0)


def _targets() -> list[Target]:
    host = host_target()
    narrower = ["x86-avx2"] if host.lanes == 16 else []
    if host.lanes == 16 and host.vnni:  # 16-bit sums, and 32-bit ones with few registers
        narrower += ["x86-avx512", "x86-avxvnni"]
    return [host, *(NAMED[name] for name in narrower)]


TARGETS = pytest.mark.parametrize("target", _targets(), ids=lambda t: t.name)


@TARGETS
@pytest.mark.parametrize("text", SCHEMES)
def test_scheme(text: str, target: Target) -> None:
    check(text, 37, 77, 131, target, act="relu")


@TARGETS
@pytest.mark.parametrize("size", [(1, 1, 4), (64, 48, 96), (130, 50, 401), (70, 33, 1031)], ids=str)
def test_sizes(size: tuple[int, int, int], target: Target) -> None:
    check("s16x1@50-cb4-g32", *size, target)


@TARGETS
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_densities(share: float, target: Target) -> None:
    check("s16x1@50-cb4-g32", 33, 48, 200, target, share=share)


@TARGETS
@pytest.mark.parametrize("text", ["s16x1@50-cb4-g32", "s16x1@50-int4", "s16x1@50-cb2", "s16x1@50-ternary-g16"])
def test_largest_products_do_not_overflow(text: str, target: Target) -> None:
    check(text, 32, 32, 256, target, share=1.0, signs=True)


@pytest.mark.parametrize("target", [*_targets(), NAMED["arm"]], ids=lambda t: f"{t.name}-{t.arch}")
def test_node(target: Target) -> None:
    """The operator's body in onnxruntime decides; other instruction sets take another kernel."""
    made, feed = model("s16x1@50-cb4-g32", 48, 45, 96, "int8")
    (wanted,) = reference(made, feed)
    (got,) = lower_and_run(made, feed, target)
    assert np.abs(got - wanted).max() <= 3e-6 * np.abs(wanted).max()


@TARGETS
def test_tables_of_tiles_that_are_stored_together(target: Target) -> None:
    check("s16x1@50-cb4.r16-g32", 33, 256, 64, target)


@TARGETS
def test_gelu_of_runs_of_blocks(target: Target) -> None:
    """More blocks than a run has, tiles of 32 rows, and tiles that are stored together."""
    check("s32x1@60-ternary", 40, 150, 900, target, share=0.9, act="gelu")


@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512", "x86-avxvnni", "x86-avx512vnni"])
@pytest.mark.parametrize("text", ["s16x1@50-cb4-g32", "s16x1@50-int4-g32"])
def test_loop_of_products_stays_in_registers(name: str, text: str, tmp_path: Path) -> None:
    weight = encode(np.random.default_rng(0).normal(size=(32, 96)).astype(np.float32), Scheme.parse(text), mask=None)
    w = token_weights.pack(unpack(weight), NAMED[name], "w").params
    p = {"m": 64, "w": w, "bias": False, "residual": False, "act": "", "act_params": []}
    loops = [
        loop
        for loop in innermost_loops(assembly("token_strips", p, NAMED[name], tmp_path))
        if sum(line.startswith(("vpmaddubsw", "vpdpbusd", "{vex}")) for line in loop) >= 12
    ]
    assert loops
    assert not any(uses_stack(loop) for loop in loops)
