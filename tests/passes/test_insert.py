"""A node behind a value: who reads it, and the names of outputs."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from sparsec.passes.insert import insert_behind


@pytest.mark.parametrize("is_output", [True, False])
def test_readers_and_outputs_follow(is_output: bool) -> None:
    model = ir.from_onnx_text(
        """<ir_version: 9, opset_import: ["": 18]> net (float[3] x) => (float[3] y) {
            a = Neg (x)
            y = Add (a, a)
        }"""
    )
    first, last = list(model.graph)
    value = (last if is_output else first).outputs[0]
    value.shape = ir.Shape([3])
    node = ir.node("Abs", [value])
    insert_behind(model, value, node, made="new", was="old")
    assert [n.op_type for n in model.graph] == (["Neg", "Add", "Abs"] if is_output else ["Neg", "Abs", "Add"])
    assert model.graph.outputs[0].name == "y"
    assert (value.name, node.outputs[0].name) == (("y.old", "y") if is_output else ("a", "a.new"))
    assert node.inputs[0] is value
    assert node.outputs[0].shape == [3]
    if not is_output:
        assert list(last.inputs) == [node.outputs[0]] * 2
