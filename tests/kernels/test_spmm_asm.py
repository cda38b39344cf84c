"""The inner loop of sparse products, per instruction set: accumulators stay in registers, few instructions beside the multiplies."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bench.assembly import assembly, innermost_loops, multiplies, uses_stack
from sparsec.codegen.kernels import spmm_words
from sparsec.codegen.kernels.sparse_int8 import prepare_whole
from sparsec.codegen.kernels.spmm_rules import prepare
from sparsec.formats import Scheme, encode, unpack
from sparsec.target import NAMED
from tests.kernels.test_decode import keep_mask


@pytest.mark.parametrize(
    ("name", "text", "multiplied", "beside"),
    [
        # offset, broadcast, counter, compare and jump; an activation is an operand of its multiply on x86 (single weights)
        ("x86-avx512", "s90", 8, 4), ("x86-avx512", "s2x1@90", 16, 16), ("x86-avx2", "s90", 8, 4), ("x86-avx2", "s4x1@90", 8, 15),
        # offset, address, broadcast, count, jump and a pair of activations a load
        ("arm", "s90", 8, 10), ("arm", "s2x1@90", 16, 14),
    ],
)  # fmt: skip
def test_inner_loop(name: str, text: str, multiplied: int, beside: int, tmp_path: Path) -> None:
    target, scheme, rng = NAMED[name], Scheme.parse(text), np.random.default_rng(1)
    pixels = 64 * target.lanes  # whole tiles for every thread
    weight = encode(rng.normal(size=(32, 144)).astype(np.float32), scheme, mask=keep_mask(scheme, 32, 144, rng, 0.1))
    geometry = {"pixels": pixels, "images": 1, "source": "planes", "dest": "planes"}
    p = prepare(unpack(weight), geometry, target).params | {
        "bias": True,
        "residual": False,
        "act": "relu",
        "act_params": [],
    }
    loops = [body for body in innermost_loops(assembly("spmm", p, target, tmp_path)) if multiplies(body)]
    assert loops
    for body in loops:
        assert not uses_stack(body), body
    # unrolled loops keep the ratio
    best = max(loops, key=multiplies)
    times = multiplies(best) // multiplied
    assert times >= 1, best
    assert len(best) - multiplies(best) <= beside * times, best


@pytest.mark.parametrize(
    ("name", "product", "beside"),
    [("x86-avx512", "vpmulhrsw", 5), ("x86-avx2", "vpmulhrsw", 5), ("arm", "sqrdmulh", 9)],
)
def test_inner_loop_of_fixed_point(name: str, product: str, beside: int, tmp_path: Path) -> None:
    """A multiplication and an addition for each vector of an entry; sums stay in registers."""
    target, scheme, rng = NAMED[name], Scheme.parse("s80"), np.random.default_rng(1)
    weight = encode(rng.normal(size=(96, 192)).astype(np.float32), scheme, mask=keep_mask(scheme, 96, 192, rng, 0.2))
    geometry = {"pixels": 128 * target.lanes, "images": 1, "source": "planes", "dest": "planes"}
    p = prepare(unpack(weight), geometry, target, fixed=True).params
    p |= {"bias": True, "residual": False, "act": "relu", "act_params": []}
    loops = innermost_loops(assembly("spmm", p, target, tmp_path))
    products = [body for body in loops if any(line.startswith(product) for line in body)]
    assert products
    for body in products:
        assert not uses_stack(body), body
    best = max(products, key=len)
    times = sum(line.startswith(product) for line in best)
    assert times >= 8, best
    assert len(best) - 2 * times <= beside * (times // 8) + times * ("arm" in name), best


@pytest.mark.parametrize(
    ("name", "text", "product"),
    [
        ("x86-avx512", "s2:4-int8", "vpmaddwd"), ("x86-avx2", "s2:4-int8", "vpmaddwd"), ("x86-avx2", "s4x2@75-int8", "vpmaddwd"),
        ("x86-avx512", "s4x4@75-cb4-g32", "vpmaddubsw"), ("x86-avx2", "s4x4@75-cb4", "vpmaddubsw"),
        ("x86-avx2", "s1x4@75-cb4-g32", "vpmaddubsw"), ("x86-avx512vnni", "s4x4@75-int8", "vpdpbusd"), ("arm", "s4x4@75-int8", "sdot"),
    ],
)  # fmt: skip
def test_inner_loop_of_whole_numbers(name: str, text: str, product: str, tmp_path: Path) -> None:
    """Sums, weights and a vector of inputs stay in registers."""
    target, scheme, rng = NAMED[name], Scheme.parse(text), np.random.default_rng(1)
    matrix = rng.normal(size=(32, 144)).astype(np.float32)
    weight = unpack(encode(matrix, scheme, mask=keep_mask(scheme, 32, 144, rng, 0.3)))
    chosen = spmm_words.choose_form(weight, target)
    assert chosen is not None
    made = prepare_whole(weight, chosen, 16 * target.lanes, target)
    p = made.params | {"bias": True, "residual": False, "act": "relu", "act_params": []}
    loops = [
        body for body in innermost_loops(assembly("spmm", p, target, tmp_path)) if any(product in line for line in body)
    ]
    assert loops
    assert not any(uses_stack(body) for body in loops), loops
