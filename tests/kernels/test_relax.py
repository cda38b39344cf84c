"""Every op of the Relax list against onnxruntime; what is not on the list is refused with a reason."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.kernels.relax import OPS, lower_relax
from sparsec.codegen.kernels.table import TABLE
from tests.kernels.nodes import check, node_check, node_model, node_refusal


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


def _bytes(*shape: int) -> np.ndarray:
    return np.random.default_rng(2).integers(0, 7, shape).astype(np.uint8)


def _scalar(value: float, dtype: str = "float32") -> np.ndarray:
    return np.array(value, dtype)


KERNEL = {"kernel_shape": [2, 3, 2]}
CASES: dict[str, list[tuple[dict[str, np.ndarray], list[str], dict]]] = {
    "AffineGrid": [({"t": _x(1, 2, 3), "s": np.array([1, 1, 3, 4])}, ["s"], {})],
    "AveragePool": [({"x": _x(1, 2, 4, 5, 6)}, [], KERNEL)],
    "BitShift": [({"x": _bytes(5), "y": _bytes(5)}, [], {"direction": d}) for d in ("LEFT", "RIGHT")],
    "Conv": [
        ({"x": _x(1, 2, 4, 5, 6), "w": _x(3, 2, 3, 3, 3), "b": _x(3)}, ["w", "b"], {"pads": [1, 0, 1, 1, 0, 1]}),
        ({"x": _x(1, 4, 2, 5, 6), "w": _x(6, 2, 1, 3, 3)}, ["w"], {"group": 2, "strides": [1, 2, 1]}),
    ],
    "DequantizeLinear": [({"x": _bytes(3, 4), "s": _scalar(0.1), "z": _scalar(3, "uint8")}, ["s", "z"], {})],
    "DynamicQuantizeLinear": [({"x": _x(3, 4)}, [], {"outputs": 3})],
    "GridSample": [({"x": _x(1, 2, 4, 5), "g": _x(1, 3, 3, 2).clip(-1, 1)}, [], {})],
    "Hardmax": [({"x": _x(3, 5)}, [], {"axis": a}) for a in (0, -1)],
    "LRN": [({"x": _x(1, 7, 4, 5)}, [], {"size": 5})],
    "LpPool": [({"x": _x(1, 2, 6, 6)}, [], {"kernel_shape": [2, 2], "p": 2})],
    "MatMul": [({"x": np.arange(6).reshape(2, 3), "y": np.arange(12).reshape(3, 4)}, [], {})],
    "MatMulInteger": [({"x": _bytes(2, 3), "y": _bytes(3, 4)}, [], {})],
    "MaxPool": [({"x": _x(1, 2, 4, 5, 6)}, [], KERNEL)],
    "MeanVarianceNormalization": [({"x": _x(2, 3, 4, 5)}, [], {})],
    "QuantizeLinear": [({"x": _x(3, 4), "s": _scalar(0.1), "z": _scalar(3, "uint8")}, ["s", "z"], {})],
    "Resize": [
        (
            {"x": _x(1, 2, 4, 5), "_roi": _x(0), "s": np.array([1, 1, 2, 3], np.float32)},
            ["s"],
            {"mode": "cubic", "coordinate_transformation_mode": mode, "cubic_coeff_a": a},
        )
        for mode in ("half_pixel", "align_corners", "asymmetric")
        for a in (-0.75, -0.5)
    ],
}


@pytest.mark.parametrize("op", sorted(CASES))
def test_op(op: str) -> None:
    for inputs, constants, attributes in CASES[op]:
        model = node_model(op, inputs, constants, **attributes)
        program = check(model, inputs, **CLOSE)
        assert [step.spec.family for step in program.steps][-1] == "relax"


def test_every_op_of_the_list_is_tested_and_in_the_table() -> None:
    assert set(OPS) == {*CASES, "ConvTranspose", "Einsum"}
    assert all(TABLE["", op][-1] is lower_relax for op in OPS)


def test_resize_refusals() -> None:
    inputs = {"x": _x(1, 2, 4, 5), "_roi": _x(0), "s": np.array([1, 1, 2, 2.5], np.float32)}
    assert "whole number" in node_refusal("Resize", inputs, ["s"], mode="cubic")
    inputs["s"][3] = 3
    assert "antialias" in node_refusal("Resize", inputs, ["s"], mode="cubic", antialias=1)
