"""Operands of products as they lie: strides, joined batch axes, Transposes that are left out."""

from __future__ import annotations

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Tensor
from sparsec.codegen.cuda.operands import Operand, joined, turned_operands
from sparsec.codegen.program import Buffer
from sparsec.target import resolve_target


def operand(row: int, col: int, *steps: int, size: int = 1000, offset: int = 0) -> Operand:
    return Operand(Tensor(Buffer("x", "float32", size, "arena"), "float32", (size,), "row", offset), row, col, steps)


def test_kinds_and_runs() -> None:
    assert (operand(24, 1).kind, operand(24, 1).ld) == ("rows", 24)
    assert (operand(1, 40).kind, operand(1, 40).ld) == ("cols", 40)
    assert operand(24, 1).turned().kind == "cols"
    assert operand(24, 1, 48).run(24) == 8
    for odd in (operand(25, 1), operand(24, 1, 4), operand(24, 1, offset=4 * 12)):
        assert odd.run(24) == 1
    assert operand(24, 1).run(20) == 1


def test_batch_axes_are_joined_where_both_operands_allow_it() -> None:
    a, b = operand(8, 1, 240, 80, 40), operand(8, 1, 120, 40, 0)
    sizes, left, right = joined((2, 3, 2), a, b)
    assert (sizes, left.steps, right.steps) == ((6, 2), (80, 40), (40, 0))
    sizes, left, right = joined((1, 4, 1), operand(8, 1, 7, 80, 9), operand(8, 1, 0, 0, 0))
    assert (sizes, left.steps, right.steps) == ((4,), (80,), (0,))
    assert joined((1,), operand(8, 1, 5), operand(8, 1, 7))[0] == ()


def test_which_transposes_are_left_out() -> None:
    text = """<ir_version: 10, opset_import: ["" : 20]>
    g (float[2, 5, 3, 8] x, float[2, 3, 5, 8] z) => (float[2, 3, 5, 5] y, float[2, 3, 5, 8] u, float[8, 3, 5, 2] v) {
        a = Transpose <perm = [0, 2, 3, 1]> (x)
        y = MatMul (z, a)
        b = Transpose <perm = [0, 2, 1, 3]> (x)
        c = MatMul (y, b)
        u = Add (b, c)
        v = Transpose <perm = [3, 2, 1, 0]> (x)
    }"""
    low = Lowering(ir.from_onnx_text(text), resolve_target("cuda"), "test")
    shapes = {
        "a": (2, 3, 8, 5),
        "y": (2, 3, 5, 5),
        "b": (2, 3, 5, 8),
        "c": (2, 3, 5, 8),
        "u": (2, 3, 5, 8),
        "v": (8, 3, 5, 2),
    }
    for node in low.graph:
        node.outputs[0].shape = ir.Shape(shapes[str(node.outputs[0].name)])
    # b has another reader, and nobody multiplies v
    assert [node.outputs[0].name for node in turned_operands(low)] == ["a"]
