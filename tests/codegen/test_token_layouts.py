"""Layouts of transformers: between sparse products tokens lie side by side, through attention and normalisation too."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.codegen.kernels import spmm_rules
from sparsec.codegen.lower import lower
from sparsec.codegen.program import Program
from sparsec.formats import Scheme, encode
from sparsec.target import NAMED, host_target
from tests.kernels.programs import reference, run_program
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]
HEADS, SIZE, WIDE = 3, 8, 40
DEPTH = HEADS * SIZE


class _Block:
    """An encoder block on [batch, tokens, DEPTH]: attention and two layers, each with its residual and normalisation."""

    def __init__(self, batch: int, tokens: int, scheme: str) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="block")
        self.model = ir.Model(self.graph, ir_version=10)
        self.scheme = scheme
        shape = (batch, tokens, DEPTH)
        x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.graph.inputs.append(x)
        heads = [self._reshape(self._linear(x, DEPTH), (batch, tokens, HEADS, SIZE)) for _ in range(3)]
        built = ops.attention(*heads, scale=SIZE**-0.5, swapped=(True,) * 4, name="attention")
        self.graph.append(built.node)
        built.register(self.model)
        built.output.name = "attention.y"
        y = self._norm(self._linear(self._reshape(built.output, shape), DEPTH, residual=x))
        y = self._norm(self._linear(self._linear(y, WIDE, activation="gelu"), DEPTH, residual=y))
        self.graph.outputs.append(y)
        self.feed = {"x": np.random.default_rng().normal(size=shape).astype(np.float32)}

    def _constant(self, array: Array) -> ir.Value:
        tensor = ir.tensor(array, name=f"c{len(self.graph.initializers)}")
        value = ir.Value(
            name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
        )
        self.graph.register_initializer(value)
        return value

    def _node(self, node: ir.Node, shape: tuple[int, ...]) -> ir.Value:
        out = node.outputs[0]
        out.name, out.shape, out.type = f"v{len(self.graph)}", ir.Shape(shape), ir.TensorType(ir.DataType.FLOAT)
        self.graph.append(node)
        return out

    def _shape(self, value: ir.Value) -> tuple[int, ...]:
        assert value.shape is not None
        return tuple(int(n) for n in value.shape.numpy())

    def _linear(self, x: ir.Value, n: int, residual: ir.Value | None = None, activation: str = "") -> ir.Value:
        rng, parsed, name = np.random.default_rng(), Scheme.parse(self.scheme), f"linear{len(self.graph)}"
        k = self._shape(x)[-1]
        weight: Any = (rng.normal(size=(n, k)) / np.sqrt(k)).astype(np.float32)
        if self.scheme != "fp32":
            weight = encode(weight, parsed, mask=keep_mask(parsed, n, k, rng, 0.3))
        bias = self._constant(rng.normal(size=n).astype(np.float32))
        built = ops.matmul(
            x, ops.weight_inputs(weight, f"{name}.w"), bias=bias, residual=residual, activation=activation, name=name
        )
        self.graph.append(built.node)
        built.register(self.model)
        built.output.name = f"{name}.y"
        return built.output

    def _reshape(self, x: ir.Value, shape: tuple[int, ...]) -> ir.Value:
        return self._node(ir.Node("", "Reshape", [x, self._constant(np.array(shape, np.int64))]), shape)

    def _norm(self, x: ir.Value) -> ir.Value:
        rng = np.random.default_rng()
        scale, bias = (self._constant(rng.normal(size=DEPTH).astype(np.float32)) for _ in range(2))
        return self._node(ir.Node("", "LayerNormalization", [x, scale, bias]), self._shape(x))


def _check(block: _Block, program: Program) -> None:
    (want,) = reference(block.model, block.feed)
    (got,) = run_program(program, block.feed)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=2e-5)


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products are worth it here."""
    monkeypatch.setattr(spmm_rules, "dense_wins", lambda *_: None)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("scheme", ["s80", "s2x1@80", "s80-cb4"])
def test_tokens_stay_side_by_side(scheme: str) -> None:
    block = _Block(1, 64, scheme)
    program = lower(block.model, host_target(), "block")
    assert sum(step.op == "Layout" for step in program.steps) == 2  # of the model's input and output
    assert {s.spec.params["source"] for s in program.steps if s.spec.family == "spmm"} == {"planes"}
    norms = [step.spec.family for step in program.steps if step.op == "LayerNormalization"]
    assert norms[0] == "norm_columns"  # the last one lies behind the conversion as well as in front of it
    _check(block, program)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("layout", ["row", "cl"])
@pytest.mark.parametrize("target", [host_target(), NAMED["x86-avx2"], NAMED["arm"]], ids=lambda t: f"{t.name}-{t.arch}")
def test_odd_sizes_in_both_layouts(target: Any, layout: Any) -> None:
    block = _Block(2, 19, "s80")
    _check(block, lower(block.model, target, "block", dict.fromkeys(block.model.graph, layout)))


def test_dense_products_stay_in_row_order() -> None:
    block = _Block(1, 64, "fp32")
    program = lower(block.model, host_target(), "block")
    assert not any(step.op == "Layout" or step.spec.family == "norm_columns" for step in program.steps)
