"""Single-node models in every mix of layouts: lowered, run kernel by kernel, compared with onnxruntime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper, shape_inference

from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.kernels.table import rules_for
from sparsec.codegen.lower import _bind_outputs
from sparsec.codegen.program import Buffer, IoInfo, Program
from sparsec.target import host_target
from tests.kernels.programs import reference, run_program

Array = np.ndarray[Any, Any]


def node_model(
    op: str,
    inputs: Mapping[str, Array],
    constants: Sequence[str] = (),
    *,
    outputs: int | Sequence[str] = 1,
    opset: int = 22,
    output_shapes: Sequence[tuple[int, ...]] | None = None,
    **attributes: Any,
) -> ir.Model:
    """One ai.onnx node; inputs named in `constants` are initializers, names starting with "_" are left out ("")."""
    names = [f"y{i}" for i in range(outputs)] if isinstance(outputs, int) else list(outputs)
    node = helper.make_node(op, ["" if n[0] == "_" else n for n in inputs], names, name=op.lower(), **attributes)
    shown = {n: v for n, v in inputs.items() if n[0] != "_"}
    infos = {
        n: helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape) for n, v in shown.items()
    }
    graph = helper.make_graph(
        [node],
        "one",
        [info for n, info in infos.items() if n not in constants],
        [onnx.ValueInfoProto(name=n) for n in names if n],
        [numpy_helper.from_array(shown[n], n) for n in constants],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    model = ir.from_proto(shape_inference.infer_shapes(proto, data_prop=True))
    feed = {n: v for n, v in shown.items() if n not in constants}
    for value, array in zip(model.graph.outputs, reference(model, feed), strict=True):
        value.shape, value.dtype = ir.Shape(array.shape), ir.DataType.from_numpy(array.dtype)
    return model


def lower_in_layouts(model: ir.Model, channels_last: Sequence[str] = ()) -> Program | Refusal:
    """Lower with the named inputs arriving channels last."""
    low = Lowering(model, host_target(), "test")
    for index, value in enumerate(i for i in model.graph.inputs if i.const_value is None):
        shape, dtype = low.shape(value), low.dtype(value)
        assert value.name is not None
        buffer = Buffer(value.name, dtype, int(np.prod(shape)), "input", index)
        low.program.buffers.append(buffer)
        low.bind(value, Tensor(buffer, dtype, shape, "cl" if value.name in channels_last else "row"))
        low.program.inputs.append(IoInfo(value.name, dtype, shape))
    refusal: Refusal | None = Refusal("no rule")
    for node in model.graph:
        for rule in rules_for(node):
            refusal = rule(node, low)
            if refusal is None:
                break
        if refusal is not None:
            return refusal
    _bind_outputs(low)
    return low.program


def check(
    model: ir.Model,
    feed: Mapping[str, Array],
    channels_last: Sequence[str] = (),
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    steps: int | None = None,
) -> Program:
    """Run both; every output must agree (exactly, by default). `steps` is the number of kernel calls expected."""
    program = lower_in_layouts(model, channels_last)
    assert isinstance(program, Program), program
    inputs = {n: feed[n] for n in (i.name for i in program.inputs)}
    given = {n: np.moveaxis(v, 1, -1) if n in channels_last else v for n, v in inputs.items()}
    results = run_program(program, given)
    for result, expected, info in zip(results, reference(model, inputs), program.outputs, strict=True):
        assert result.shape == expected.shape, info.name
        assert result.dtype == expected.dtype, info.name
        np.testing.assert_allclose(result, expected, rtol=rtol, atol=atol, err_msg=info.name)
    if steps is not None:
        assert len(program.steps) == steps, [(s.op, s.spec.family, s.note) for s in program.steps]
    return program


def node_check(
    op: str,
    inputs: Mapping[str, Array],
    constants: Sequence[str] = (),
    channels_last: Sequence[str] = (),
    *,
    rtol: float = 0.0,
    atol: float = 0.0,
    steps: int | None = None,
    **model: Any,
) -> Program:
    """`node_model` and `check` in one."""
    built = node_model(op, inputs, constants, **model)
    return check(built, inputs, channels_last, rtol=rtol, atol=atol, steps=steps)


def node_refusal(op: str, inputs: Mapping[str, Array], constants: Sequence[str] = (), **model: Any) -> str:
    """The reason the last rule gives for not taking the node."""
    answer = lower_in_layouts(node_model(op, inputs, constants, **model))
    assert isinstance(answer, Refusal)
    return answer.reason
