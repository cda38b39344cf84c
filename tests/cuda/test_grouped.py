"""Convolutions in groups of few filters: a thread for up to 4 filters of a group."""

from __future__ import annotations

from typing import Any

import pytest

from sparsec.codegen.build import build_kernels
from sparsec.codegen.lower import lower
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.test_conv import check, convolution, families


@pytest.mark.parametrize("target", ["cuda", "cuda:bf16"])
@pytest.mark.parametrize(
    ("shape", "filters", "kernel", "attributes"),
    [
        ((1, 16, 8, 7), 16, (3, 3), {"group": 4, "pads": [1, 1, 1, 1]}),  # 4 filters each
        ((2, 15, 9, 7), 6, (3, 2), {"group": 3, "pads": [1, 0, 1, 2], "strides": [2, 1]}),
        ((1, 5, 6, 6), 15, (3, 3), {"group": 5, "dilations": [1, 2]}),  # several filters a channel
        ((2, 14, 11), 14, (3,), {"group": 2, "pads": [1, 1]}),
        ((1, 6, 1, 1), 6, (1, 1), {"group": 3}),
    ],
)
def test_windows(
    shape: tuple[int, ...], filters: int, kernel: tuple[int, ...], attributes: dict[str, Any], target: str
) -> None:
    program = check(*convolution(shape, filters, kernel, **attributes), None, target)
    assert families(program) == ["cuda.grouped"]
    assert not program.decisions


@pytest.mark.parametrize("scheme", ["int8", "cb4-g32", "s2:4"])
def test_coded_weights_are_decoded_and_the_reason_is_told(scheme: str) -> None:
    model, x = convolution((1, 16, 6, 6), 16, (3, 3), group=4, pads=[1, 1, 1, 1])
    (decision,) = check(model, x, scheme).decisions.values()
    assert str(decision) == f"groups of 4 filters are too narrow for tensor cores, which decode {scheme}"
    assert decision.stored == "float16"


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_it_compiles_without_spills(arch: str) -> None:
    model, _ = convolution((1, 128, 14, 14), 128, (3, 3), group=32, pads=[1, 1, 1, 1])
    program = lower(compress(model, load_recipe(None)).model, resolve_target(f"cuda:{arch}"), "test")
    (spec,) = [s.spec for s in program.steps if s.op == "Conv"]
    assert build_kernels([spec], program.target)[spec.canonical()].meta["spills"] == 0
