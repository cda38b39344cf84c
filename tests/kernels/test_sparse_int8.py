"""Which kernel takes a sparse weight with int8 activations, and that each is right: the operator's body in onnxruntime decides."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.codegen.kernels import sparse_int8
from sparsec.codegen.lower import lower
from sparsec.formats import Scheme, decode, encode, unpack
from sparsec.formats.encoded import EncodedWeight
from sparsec.target import NAMED, Target, host_target
from tests.kernels.programs import lower_and_run, reference, refusals
from tests.kernels.test_decode import keep_mask
from tests.kernels.test_gemv import model

WHOLE, FILLED, FLOATS = "spmm in whole numbers", "gemv", "float32"


def _check(text: str, m: int, n: int, k: int, target: Target, taken: str) -> None:
    share = {"75": 0.25, "98": 0.02}.get(text.split("-")[0][-2:], 0.5)
    made, feed = model(text, m, n, k, "int8", share)
    assert _taken(made, target) == taken
    (wanted,) = reference(made, feed)
    (got,) = lower_and_run(made, feed, target)
    assert np.abs(got - wanted).max() <= 3e-6 * np.abs(wanted).max()


def _taken(made: ir.Model, target: Target) -> str:
    steps = lower(made, target, "taken").steps
    last = steps[-1].spec
    if last.family == "spmm" and last.params["values"]["word"] == "whole":
        return WHOLE
    return FILLED if last.family == "gemv" else FLOATS


@pytest.mark.parametrize(
    ("text", "m", "taken", "with_vnni"),
    [
        ("s2:4-int8", 1, FILLED, FILLED), ("s2:4-int8", 4, FILLED, FILLED), ("s2:4-int8", 130, WHOLE, FILLED),
        ("s50-int8", 1, FILLED, FILLED), ("s50-ternary", 2, FILLED, FILLED), ("s4x4@75-cb4", 1, WHOLE, WHOLE),
        ("s4x4@75-cb4", 67, WHOLE, WHOLE), ("s1x4@75-nf4", 9, WHOLE, WHOLE), ("s4x2@75-uint8", 40, WHOLE, WHOLE),
        ("s4x4@75-cb4-g32", 20, WHOLE, WHOLE), ("s2:4-int8-g32", 40, WHOLE, WHOLE), ("sf50-cb4.r16", 48, WHOLE, FILLED),
        ("s16x1@50-int8", 64, WHOLE, FILLED),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512", "x86-avx512vnni"])
def test_on_x86(text: str, m: int, taken: str, with_vnni: str, name: str) -> None:
    target = NAMED[name]
    if lacking := set(target.features) - set(host_target().features):
        pytest.skip(f"this machine lacks {', '.join(sorted(lacking))}")
    _check(text, m, 101, 203, target, with_vnni if target.vnni else taken)


@pytest.mark.parametrize(
    ("text", "m", "taken"), [("s4x4@75-cb4", 5, WHOLE), ("s50-int8", 2, FILLED), ("s98-int8", 64, FLOATS)]
)
def test_on_arm(text: str, m: int, taken: str) -> None:
    _check(text, m, 61, 99, NAMED["arm"], taken)


@pytest.mark.parametrize(
    "text", ["s50-int8", "s3:7-uint4-t", "s4x4@60-ternary", "s60-cb3.r4", "s2x1@50-int5", "s50-cb2"]
)
def test_filled_weights_are_the_same(text: str) -> None:
    rng, scheme = np.random.default_rng(len(text)), Scheme.parse(text)
    weight = encode(rng.normal(size=(37, 53)).astype(np.float32), scheme, mask=keep_mask(scheme, 37, 53, rng))
    dense = sparse_int8.filled(unpack(weight))
    assert dense is not None
    assert dense.scheme.is_dense
    assert dense.scales is not None
    codes = dense.codes[:, 0, 0].reshape(37, 53).astype(np.int32)
    values = (codes - (1 << dense.scheme.codec.code_bits - 1)) * dense.scales
    wanted = decode(weight)
    if weight.codebook is not None:
        wanted = decode(_with_rounded_table(weight))
    assert np.allclose(values, wanted, rtol=1e-6, atol=0)


def _with_rounded_table(weight: EncodedWeight) -> Any:
    from dataclasses import replace

    from sparsec import int8

    assert weight.codebook is not None
    return replace(weight, codebook=int8.rounded_values(weight.codebook))


def test_refusals_say_what_is_faster() -> None:
    reasons = " ".join(refusals(model("s98-int8", 1, 301, 403, "int8", 0.02)[0]))
    assert "dense bytes not possible or too large" in reasons
    assert "whole numbers by tokens" in reasons
    reasons = " ".join(refusals(model("s50-cb4-g32", 64, 301, 404, "int8-g4")[0]))
    assert "groups of 4 inputs have scales of their own" in reasons
