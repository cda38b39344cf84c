"""Sparse products with int8 activations of many tokens against float64 on the rounded operands."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec import int8
from sparsec.codegen.kernels import spmm_words
from sparsec.codegen.kernels.sparse_int8 import prepare_whole
from sparsec.formats import Scheme, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.test_decode import keep_mask
from tests.kernels.test_gemv import rounded

Array = np.ndarray[Any, Any]

TARGETS = {t.name: t for t in (host_target(), NAMED["x86-avx2"], NAMED["arm"])}


def check(
    text: str, m: int, n: int, k: int, target: Target, *, form: str = "", share: float = 0.4, act: str = "",
    signs: bool = False, **forced: int,
) -> None:  # fmt: skip
    """One product with bias and residual; `signs`: all operands as large as they can be."""
    rng = np.random.default_rng([m, n, k, len(text)])
    scheme = Scheme.parse(text)
    matrix, x = rng.normal(size=(n, k)).astype(np.float32), rng.normal(size=(m, k)).astype(np.float32)
    if signs:
        matrix, x = np.sign(matrix), np.sign(matrix[np.arange(m) % n])
    weight = encode(matrix, scheme, mask=keep_mask(scheme, n, k, rng, share))
    unpacked = unpack(weight)
    assert not spmm_words.refusal(unpacked, target, 0)
    chosen = spmm_words.lay_out(unpacked, form) if form else spmm_words.choose_form(unpacked, target)
    assert chosen is not None
    made = prepare_whole(unpacked, chosen, m, target, **forced)
    residual = rng.normal(size=(m, n)).astype(np.float32)
    if not signs:
        x[m // 2] = 0  # no scale of its own
    bias = rng.normal(size=n).astype(np.float32)
    p = made.params | {"bias": True, "residual": True, "act": act, "act_params": []}
    padded = np.pad(bias, (0, -n % p["strip"]))
    ins = [x, *(array for _, array in made.arrays), padded, residual]
    (out,) = run_kernel("spmm", p, ins, target=target, scratch=made.scratch)
    wanted = int8.quantised(x, 0).astype(np.float64) @ rounded(weight).T.astype(np.float64) + bias + residual
    wanted = np.maximum(wanted, 0) if act == "relu" else wanted
    assert np.abs(out.reshape(m, n) - wanted).max() <= 2e-6 * np.abs(wanted).max(initial=1.0)


X86 = pytest.mark.parametrize("target", [t for t in TARGETS.values() if t.arch == "x86_64"], ids=lambda t: t.name)
QUADS = [
    "s4x4@60-cb4", "s1x4@60-int4", "s8x8@60-ternary", "s2x8@60-cb3.r4", "s4x4@50-int7-t", "s3x4@50-cb2-c", "s16x1@50-cb4",
]  # fmt: skip
PAIRS = ["s50", "s2:4", "s1:4", "s3:4", "s4:8", "s2x1@60", "s4x2@60", "s1x2@70", "s16x1@50", "s5x1@60", "sf50"]


@X86
@pytest.mark.parametrize("text", [text for text in QUADS if text != "s16x1@50-cb4"])
def test_quads(text: str, target: Target) -> None:
    check(text, 37, 45, 67, target, act="relu")
    check(text, 70, 33, 130, target, chunk=8, ranges=3)


@X86
@pytest.mark.parametrize("form", ["pairs", "choices"])
@pytest.mark.parametrize("structure", PAIRS)
def test_pairs(structure: str, form: str, target: Target) -> None:
    check(f"{structure}-int8", 37, 45, 67, target, form=form, act="relu")


@X86
@pytest.mark.parametrize("codec", ["int8", "uint8", "uint4-t", "cb4", "cb4.r16-c", "int5", "ternary"])
def test_codecs(codec: str, target: Target) -> None:
    check(f"s2:4-{codec}", 33, 29, 131, target, form="choices", chunk=12, ranges=2)


GROUPS = [
    ("s4x4@60-cb4-g32", ""), ("s1x4@60-int4-g8", ""), ("s2x8@60-ternary-g16", ""), ("s1x4@50-cb4.r8-g4", ""),
    ("s4x2@50-int8-g8", "pairs"), ("s2:4-int8-g32", "choices"), ("s2:4-cb3-g4", "choices"), ("s8x4@50-int8-g16", ""),
    ("s50-int8-g32", ""), ("s80-cb4-g8", ""), ("s3:4-int4-g4", ""), ("s2x1@60-int8-g8", ""),
]  # fmt: skip


@X86
@pytest.mark.parametrize(("text", "form"), GROUPS)
def test_scales_of_groups(text: str, form: str, target: Target) -> None:
    check(text, 37, 45, 67, target, form=form, act="relu")
    check(text, 70, 33, 132, target, form=form, chunk=12, ranges=3)
    check(text, 33, 100, 64, target, form=form, whole=1, ranges=2)


@X86
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
def test_densities_of_groups(share: float, target: Target) -> None:
    check("s4x4@50-cb4-g32", 33, 24, 100, target, share=share)
    check("s2x1@50-int8-g8", 33, 24, 100, target, share=share)


def test_groups_that_meet_inside_a_quad_are_refused() -> None:
    rng, scheme = np.random.default_rng(3), Scheme.parse("s50-int8-g32")
    weight = encode(rng.normal(size=(20, 200)).astype(np.float32), scheme, mask=keep_mask(scheme, 20, 200, rng))
    chosen = spmm_words.choose_form(unpack(weight), NAMED["x86-avx512"])
    assert chosen is not None
    assert chosen.form == "choices"
    assert spmm_words.choose_form(unpack(weight), NAMED["arm"]) is None


@X86
@pytest.mark.parametrize(
    "size", [(2, 1, 1), (1, 5, 3), (16, 33, 128), (129, 3, 7), (257, 40, 4), (17, 2, 1031)], ids=str
)
@pytest.mark.parametrize("form", ["quads", "pairs", "choices"])
def test_sizes(form: str, size: tuple[int, int, int], target: Target) -> None:
    check("s50-int4", *size, target, form=form)


@X86
@pytest.mark.parametrize("share", [0.0, 0.02, 1.0])
@pytest.mark.parametrize("form", ["quads", "pairs", "choices"])
def test_densities(form: str, share: float, target: Target) -> None:
    check("s4x4@50-cb4", 33, 24, 100, target, form=form, share=share)


@X86
@pytest.mark.parametrize(
    ("text", "form"), [("s1x4@50-int7", "quads"), ("s1x4@50-cb4", "quads"), ("s1x4@50-uint8", "choices")]
)
def test_largest_products_do_not_overflow(text: str, form: str, target: Target) -> None:
    check(text, 32, 32, 256, target, form=form, share=1.0, signs=True)


@pytest.mark.parametrize("text", ["s4x4@60-cb4", "s4x4@60-cb4-g32", "s1x4@60-int8", "s2x1@50-int4", "s2:4-cb2"])
def test_arm(text: str) -> None:
    check(text, 19, 21, 67, NAMED["arm"])


@pytest.mark.parametrize("name", ["x86-avxvnni", "x86-avx512vnni"])
def test_vnni(name: str) -> None:
    check("s4x4@60-int7", 19, 21, 67, NAMED[name])
