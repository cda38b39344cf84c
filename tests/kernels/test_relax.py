"""Every op of the Relax list against onnxruntime; what is not on the list is refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.kernels.relax import OPS
from tests.kernels.nodes import node_check


def _x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"strides": [2, 2], "pads": [1, 1, 1, 1], "output_padding": [1, 1]},
        {"strides": [2, 1], "group": 2},
        {"dilations": [2, 2]},
    ],
)
@pytest.mark.parametrize("cl", [[], ["x"]])
def test_conv_transpose(attributes: dict, cl: list[str]) -> None:
    group = attributes.get("group", 1)
    inputs = {"x": _x(1, 4, 5, 7), "w": _x(4, 6 // group, 3, 3), "b": _x(6)}
    node_check("ConvTranspose", inputs, ["w", "b"], cl, **attributes, **CLOSE)


def test_conv_transpose_1d() -> None:
    node_check("ConvTranspose", {"x": _x(2, 3, 9), "w": _x(3, 5, 4)}, ["w"], strides=[3], **CLOSE)


@pytest.mark.parametrize("equation", ["bij,bkj->bik", "ij->ji", "bhid,bhjd->bhij"])
def test_einsum(equation: str) -> None:
    sizes = {"b": 2, "h": 3, "i": 4, "j": 5, "k": 6, "d": 7}
    terms = equation.split("->")[0].split(",")
    inputs = {f"x{n}": _x(*(sizes[c] for c in term), seed=n) for n, term in enumerate(terms)}
    node_check("Einsum", inputs, equation=equation, **CLOSE)


def test_the_list_is_what_is_tested() -> None:
    assert OPS == ("ConvTranspose", "Einsum")
