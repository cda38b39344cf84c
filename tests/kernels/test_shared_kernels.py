"""Layers that differ in nothing but their zeros and values are served by one kernel: sizes that are data are no parameters."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.codegen.build import kernel_symbol
from sparsec.codegen.lower import lower
from sparsec.codegen.program import FROM_DATA, Arg, Program, Signature
from sparsec.formats import Scheme, encode
from sparsec.target import host_target
from tests.kernels.programs import run_program


def two_layers(scheme: str, tokens: int, activations: str = "") -> Program:
    """x [tokens, 512] times two weights [64, 512] whose zeros differ in number and place."""
    rng = np.random.default_rng(3)
    parsed = Scheme.parse(scheme)
    x = ir.Value(name="x", shape=ir.Shape([tokens, 512]), type=ir.TensorType(ir.DataType.FLOAT))
    built = []
    for index, share in enumerate((0.21, 0.19)):
        mask = None
        if not parsed.is_dense:
            r, c = parsed.block
            mask = (rng.random((64 // r, 512 // c)) < share).repeat(r, 0).repeat(c, 1)
        weight = encode(rng.normal(size=(64, 512)).astype(np.float32), parsed, mask=mask)
        made = ops.matmul(x, ops.weight_inputs(weight, f"w{index}"), activations=activations, name=f"layer{index}")
        made.output.name, made.output.dtype, made.output.shape = f"y{index}", ir.DataType.FLOAT, ir.Shape([tokens, 64])
        built.append(made)
    graph = ir.Graph([x], [b.output for b in built], nodes=[b.node for b in built], opset_imports={"": 20}, name="g")
    model = ir.Model(graph, ir_version=10)
    for made in built:
        made.register(model)
    return lower(model, host_target(), "two")


@pytest.mark.parametrize(
    ("scheme", "tokens", "activations"),
    [
        ("s80", 32, ""), ("s80-cb4-g8", 32, ""), ("s4x1@80-uint4", 33, ""), ("s16x1@80-cb4-g32", 3, ""), ("s80-int8", 1, ""),
        ("s80-uint4-g8", 1, ""), ("s16x1@80-cb4-g32", 1, "int8"), ("s16x1@80-int4", 5, "int8"),
    ],
)  # fmt: skip
def test_other_zeros_same_kernel(scheme: str, tokens: int, activations: str) -> None:
    program = two_layers(scheme, tokens, activations)
    first, second = program.steps
    assert first.spec.canonical() == second.spec.canonical()
    assert kernel_symbol(first.spec, program.target) == kernel_symbol(second.spec, program.target)
    # what differs is known all the same: every argument has its size, and they are not equal
    sizes = [[arg.size for arg in step.signature.args] for step in program.steps]
    assert min(size for step in sizes for size in step) >= 0
    assert sizes[0] != sizes[1]
    results = run_program(program, {"x": np.random.default_rng(4).normal(size=(tokens, 512)).astype(np.float32)})
    assert not np.array_equal(*results)


def test_bound_signatures_name_every_size() -> None:
    args = (
        Arg("codes", "uint8", FROM_DATA, "in"),
        Arg("y", "float32", 5, "out"),
        Arg("sums", "float32", FROM_DATA, "work"),
    )
    signature = Signature(args, units=1, cost=7)
    bound = signature.bound([11, 5], {"sums": 3})
    assert [arg.size for arg in bound.args] == [11, 5, 3]
    assert bound.cost == 7
    assert signature.bound([11, 5], {"sums": 3}, cost=9).cost == 9
    with pytest.raises(AssertionError, match="sums"):
        signature.bound([11, 5], {})
    with pytest.raises(AssertionError, match="panel"):
        signature.bound([11, 5], {"sums": 3, "panel": 1})
