"""sparsec::MatMul, MatMul and Gemm lowered as nodes, against onnxruntime."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.formats import Scheme, encode
from tests.kernels.programs import lower_and_run, one_node_model, reference, refusals
from tests.kernels.test_conv import build, constant
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]


def _normal(*shape: int) -> Array:
    return np.random.default_rng([*shape, 7]).normal(size=shape).astype(np.float32)


def _agree(model: ir.Model, feed: dict[str, Array]) -> None:
    (want,) = reference(model, feed)
    (got,) = lower_and_run(model, feed)
    assert got.shape == want.shape
    assert np.abs(got - want).max() <= 3e-6 * max(np.abs(want).max(), 1e-6)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((3, 4), (4, 5)), ((2, 3, 4, 5), (2, 3, 5, 6)), ((2, 3, 4, 5), (5, 7)), ((4, 5), (3, 5, 2)), ((2, 1, 4, 5), (3, 5, 6)),
        ((5,), (5, 3)), ((4, 5), (5,)), ((7,), (7,)), ((12, 33, 32), (12, 32, 33)),
    ],
)  # fmt: skip
def test_matmul_broadcasts_like_numpy(a: tuple[int, ...], b: tuple[int, ...]) -> None:
    feed = {"a": _normal(*a), "b": _normal(*b)}
    _agree(one_node_model("MatMul", feed), feed)


@pytest.mark.parametrize("trans", [0, 1])
def test_gemm_of_computed_operands(trans: int) -> None:
    feed = {"a": _normal(5, 7), "b": _normal(*((9, 7) if trans else (7, 9))), "c": _normal(5, 9)}
    _agree(one_node_model("Gemm", feed, attributes={"transB": trans}), feed)


def test_gemm_refuses_what_it_does_not_compute() -> None:
    feed = {"a": _normal(5, 7), "b": _normal(7, 9)}
    assert any("alpha" in reason for reason in refusals(one_node_model("Gemm", feed, attributes={"alpha": 2.0})))


@pytest.mark.parametrize(
    "scheme",
    ["fp32", "int8", "cb4-g32", "s50", "s2:4", "s16x1@50-cb4-g32", "ternary", "vq2d4-c", "s16x8@50-vq2d8-g32", "fp8"],
)
@pytest.mark.parametrize("shape", [(1, 64), (2, 3, 37)], ids=str)
def test_fused(scheme: str, shape: tuple[int, ...]) -> None:
    rng = np.random.default_rng(3)
    k, n = shape[-1], 45
    parsed = Scheme.parse(scheme)
    weight: Any = rng.normal(size=(n, k)).astype(np.float32)
    if scheme != "fp32":
        weight = encode(weight, parsed, mask=keep_mask(parsed, n, k, rng))
    bias = constant("bias", _normal(n))
    feed = {"x": _normal(*shape), "r": _normal(*shape[:-1], n)}

    def make(values: dict[str, ir.Value]) -> Any:
        inputs = ops.weight_inputs(weight, "w")
        return ops.matmul(values["x"], inputs, bias=bias, residual=values["r"], activation="silu", name="linear")

    model = build(make, feed, (*shape[:-1], n))
    if bias.name not in model.graph.initializers:
        model.graph.register_initializer(bias)
    _agree(model, feed)
