"""One-node models: built, run by onnxruntime as the reference, and lowered and run kernel by kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Layout, Lowering, Refusal, Tensor
from sparsec.codegen.kernels.table import rules_for
from sparsec.codegen.lower import lower
from sparsec.codegen.program import ITEMSIZE, Program
from sparsec.target import Target, host_target
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]


def one_node_model(
    op: str,
    inputs: Mapping[str, Array],
    constants: Sequence[str] = (),
    attributes: Mapping[str, Any] | None = None,
    *,
    opset: int = 22,
) -> ir.Model:
    """A model of one ai.onnx node over `inputs` (those in `constants` are initializers), shapes inferred by onnx.

    The output has the element type of the first input.
    """
    from onnx import helper, numpy_helper, shape_inference

    node = helper.make_node(op, list(inputs), ["y"], name=op.lower(), **(attributes or {}))
    kinds = {
        k: helper.make_tensor_value_info(k, helper.np_dtype_to_tensor_dtype(v.dtype), v.shape)
        for k, v in inputs.items()
    }
    first = next(iter(inputs.values()))
    graph = helper.make_graph(
        [node],
        "one",
        [v for k, v in kinds.items() if k not in constants],
        [helper.make_tensor_value_info("y", helper.np_dtype_to_tensor_dtype(first.dtype), None)],
        [numpy_helper.from_array(v, k) for k, v in inputs.items() if k in constants],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return ir.from_proto(shape_inference.infer_shapes(proto, strict_mode=True, data_prop=True))


def reference(model: ir.Model, feed: Mapping[str, Array]) -> list[Array]:
    """onnxruntime's outputs, graph optimisations off."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.log_severity_level = 3
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = {i.name for i in session.get_inputs()}
    return list(session.run(None, {k: v for k, v in feed.items() if k in names}))


def refusals(model: ir.Model) -> list[str]:
    """Why rules of the model's first node refuse it, up to the rule that takes it."""
    low = Lowering(model, host_target(), "refused")
    for value in model.graph.inputs:
        low.bind(value, low.temp(low.dtype(value), low.shape(value)))
    node = next(iter(model.graph))
    reasons = []
    for rule in rules_for(node):
        answer = rule(node, low)
        if answer is None:
            break
        assert isinstance(answer, Refusal)
        reasons.append(answer.reason)
    return reasons


def run_program(program: Program, feed: Mapping[str, Array]) -> list[Array]:
    """Run every step through the kernel harness; outputs in the model's order."""
    memory: dict[int, Array] = {}
    outputs: dict[int, Array] = {}
    for buffer in program.buffers:
        raw = np.full(buffer.nbytes, 0xA5, np.uint8)
        if buffer.kind == "const":
            assert buffer.data is not None
            raw[:] = np.ascontiguousarray(buffer.data).reshape(-1).view(np.uint8)
        elif buffer.kind == "input":
            raw[:] = np.ascontiguousarray(feed[program.inputs[buffer.index].name]).reshape(-1).view(np.uint8)
        elif buffer.kind == "output":
            outputs[buffer.index] = raw
        memory[id(buffer)] = raw

    for step in program.steps:
        views = []
        for arg, ref in zip([a for a in step.signature.args if a.role != "work"], step.refs, strict=True):
            span = memory[id(ref.buffer)][ref.byte_offset : ref.byte_offset + arg.size * ITEMSIZE[arg.dtype]]
            views.append((arg, span.view(arg.dtype)))
        ins = [v for a, v in views if a.role == "in"]
        outs = [v for a, v in views if a.role == "out"]
        work = {a.name: a.size for a in step.signature.args if a.role == "work"}
        results = run_kernel(step.spec.family, step.spec.params, ins, target=program.target, outs=outs, scratch=work)
        for out, result in zip(outs, results, strict=True):
            out[:] = result
    return [outputs[i].view(info.dtype).reshape(info.shape) for i, info in enumerate(program.outputs)]


def lower_and_run(
    model: ir.Model, feed: Mapping[str, Array], target: Target | None = None, layout: Layout | None = None
) -> list[Array]:
    """Lower for this host (or `target`) and run; `layout` is forced on every node that has the choice."""
    plan = None if layout is None else dict.fromkeys(model.graph, layout)
    return run_program(lower(model, target or host_target(), "test", plan), feed)


__all__ = ["Tensor", "lower_and_run", "one_node_model", "reference", "refusals", "run_program"]
