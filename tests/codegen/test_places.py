"""Values produced inside the result of a Concat: no copies, the same numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.codegen.choice import Policy
from sparsec.codegen.lower import lower
from sparsec.codegen.program import Program
from sparsec.formats import Scheme, encode
from sparsec.target import host_target
from tests.kernels.programs import reference, run_program

Array = np.ndarray


class Net:
    """A graph in the making."""

    def __init__(self, *shape: int) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": 20}, name="net")
        self.model = ir.Model(self.graph, ir_version=10)
        self.x = ir.Value(name="x", shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))
        self.graph.inputs.append(self.x)
        self.feed = {"x": np.random.default_rng().normal(size=shape).astype(np.float32)}

    def conv(self, x: ir.Value, filters: int, kernel: int = 1, scheme: str = "fp32") -> ir.Value:
        assert x.shape is not None
        name, columns = f"conv{len(self.graph)}", int(x.shape[1]) * kernel * kernel  # type: ignore[arg-type]
        weight: Array = np.random.default_rng().normal(size=(filters, columns)).astype(np.float32)
        data = weight if scheme == "fp32" else encode(weight, Scheme.parse(scheme))
        built = ops.conv(
            x, ops.weight_inputs(data, f"{name}.w"), kernel_shape=(kernel, kernel), pads=[kernel // 2] * 4, name=name
        )
        self.graph.append(built.node)
        built.register(self.model)
        built.output.name = f"{name}.y"
        return built.output

    def node(self, op: str, inputs: Sequence[ir.Value], channels: int, **attributes: int) -> ir.Value:
        node = ir.node(op, list(inputs), attributes, name=f"{op.lower()}{len(self.graph)}")
        out = node.outputs[0]
        assert self.x.shape is not None
        out.name, out.type = f"{node.name}.y", self.x.type
        out.shape = ir.Shape([self.x.shape[0], channels, *list(self.x.shape)[2:]])
        self.graph.append(node)
        return out

    def check(self, *outputs: ir.Value, copies: int) -> Program:
        self.graph.outputs.extend(outputs)
        program = lower(self.model, host_target(), "net")
        for found, wanted in zip(run_program(program, self.feed), reference(self.model, self.feed), strict=True):
            np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
        assert sum(s.op == "Concat" for s in program.steps) == copies, [(s.op, s.note) for s in program.steps]
        return program


@pytest.mark.parametrize("batch", [1, 2])
def test_fire_module(batch: int) -> None:
    net = Net(batch, 16, 9, 11)
    squeezed = net.conv(net.x, 5)
    left, right = net.conv(squeezed, 19), net.conv(squeezed, 40, 3, "int8")
    joined = net.node("Concat", [left, right], 59, axis=1)
    net.check(net.conv(joined, 7), copies=0)


def test_dense_block() -> None:
    net = Net(1, 16, 8, 8)
    first = net.conv(net.x, 12, 3)
    second = net.conv(net.node("Concat", [net.x, first], 28, axis=1), 12, 3)
    third = net.node("Concat", [net.x, first, second], 40, axis=1)
    net.check(net.conv(third, 9), copies=4)  # only `second` has a single reader


def test_row_order() -> None:
    net = Net(1, 3, 6, 7)
    a, b = (net.node(op, [net.x], 3) for op in ("Relu", "Exp"))
    inner = net.node("Concat", [a, b], 6, axis=1)
    outer = net.node("Concat", [inner, net.node("Abs", [net.x], 3)], 9, axis=-3)  # a Concat in a Concat
    net.check(outer, copies=0)


def test_value_with_other_readers_is_copied() -> None:
    net = Net(1, 16, 9, 9)
    a, b = net.conv(net.x, 24), net.conv(net.x, 24, 3)
    joined = net.node("Concat", [a, b], 48, axis=1)
    net.check(net.conv(joined, 7), net.conv(a, 8), copies=1)


def test_twice_the_same_value() -> None:
    net = Net(1, 3, 6, 7)
    a = net.node("Relu", [net.x], 3)
    net.check(net.node("Concat", [a, a], 6, axis=1), copies=1)


def test_chosen_kernels_write_in_place_too() -> None:
    net = Net(1, 16, 9, 11)
    left, right = net.conv(net.x, 19, 1, "int8"), net.conv(net.x, 40, 3, "int8")
    out = net.conv(net.node("Concat", [left, right], 59, axis=1), 7)
    net.graph.outputs.append(out)
    program = lower(net.model, host_target(), "net", policy=Policy(keep="speed"))
    assert not any(s.op == "Concat" for s in program.steps)
    (wanted,) = reference(net.model, net.feed)
    np.testing.assert_allclose(run_program(program, net.feed)[0], wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())
