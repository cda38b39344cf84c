"""The long tail: ops without a kernel of ours go through TVM's Relax, one node a kernel, untuned and on one thread.

`OPS` lists what was tested this way; anything else is refused. The work a kernel needs is only known once it is compiled, so
`signature` compiles (through the cache).
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.program import ITEMSIZE, Arg, KernelSpec, Signature
from sparsec.errors import ToolchainError
from sparsec.target import Target

OPS = (
    "AffineGrid",
    "AveragePool",
    "BitShift",
    "Conv",
    "ConvTranspose",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "Einsum",
    "GridSample",
    "Hardmax",
    "LRN",
    "LpPool",
    "MatMul",
    "MatMulInteger",
    "MaxPool",
    "MeanVarianceNormalization",
    "QuantizeLinear",
    "Resize",
)

_EMBEDDED = (
    64  # int64 constants up to so many elements (axes, sizes ...) become part of the kernel, and Resize's factors
)
_OPSET = 18


def _args(p: Mapping[str, Any]) -> tuple[list[Arg], list[Arg]]:
    ins = [Arg(f"in{i}", dtype, size, "in") for i, (dtype, size) in enumerate(p["ins"])]
    return ins, [Arg(f"out{i}", dtype, size, "out") for i, (dtype, size) in enumerate(p["outs"])]


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """One unit. Raises ToolchainError when Relax cannot compile the node."""
    from sparsec.codegen.build import build_kernels

    spec = KernelSpec("relax", p)
    work = build_kernels([spec], target)[spec.canonical()].meta["work"]
    ins, outs = _args(p)
    moved = sum(a.size * ITEMSIZE[a.dtype] for a in (*ins, *outs))
    return Signature((*ins, *outs, Arg("work", "uint8", max(1, work), "work")), units=1, cost=moved)


def compile_kernel(params: Mapping[str, Any], target: Target, symbol: str, object_path: str) -> dict[str, Any]:
    """In a worker process: compile, and say how many bytes of work the kernel needs."""
    from sparsec.codegen.relax_adapter import compile_node

    ins, outs = _args(params)
    model = base64.b64decode(params["model"])
    return {"work": compile_node(model, ins, outs, target, symbol, object_path)}


def lower_relax(node: ir.Node, low: Lowering) -> Refusal | None:
    """One of `OPS`, shapes static."""
    found = node_model(node, low)
    if isinstance(found, Refusal):
        return found
    model, passed, outs = found
    params = {
        "model": base64.b64encode(model).decode(),
        "ins": [[low.dtype(v), low.get(v, "row").size] for v in passed],
        "outs": [[low.dtype(v), _size(low, v)] for v in outs],
    }
    try:
        signature(params, low.target)
    except ToolchainError as error:
        return cannot_compile(error)
    ins = [low.get(v, "row") for v in passed]
    results = [low.new(v) for v in outs]
    low.call("relax", params, ins, results, node=node.name or "", op=node.op_type, note=relax_note(passed, low))
    return None


def cannot_compile(error: ToolchainError) -> Refusal:
    """The reason that the last line of an error gives."""
    return Refusal(f"Relax cannot compile it: {str(error).strip().splitlines()[-1]}")


def relax_note(passed: list[ir.Value], low: Lowering) -> str:
    """What is said of the node in the generated C."""
    return "Relax, " + " ".join(str(list(low.shape(v))) for v in passed)


def node_model(node: ir.Node, low: Lowering) -> Refusal | tuple[bytes, list[ir.Value], list[ir.Value]]:
    """(a model of the node alone, the values it takes as in0, in1 ..., those it gives as out0, out1 ...)."""
    if node.domain or node.op_type not in OPS:
        return Refusal(f"{node.op_type} is not among the ops that go through Relax ({', '.join(OPS)})")
    types = {low.dtype(v) for v in (*node.inputs, *node.outputs) if v is not None and v.name}
    if unknown := sorted(types - set(ITEMSIZE)):
        return Refusal(f"element types {unknown}")
    if node.op_type == "Resize" and (why := _resize_refusal(node, low)):
        return Refusal(why)
    if node.op_type in ("Conv", "ConvTranspose") and low.constant(node.inputs[1]) is None:
        return Refusal(f"the weight '{node.inputs[1].name}' is not a constant")  # type: ignore[union-attr]
    given = [v for v in node.inputs if v is not None]
    embedded = {v for v in given if _is_embedded(node, low, v)}
    passed = list(dict.fromkeys(v for v in given if v not in embedded))
    outs = [v for v in node.outputs if v.name]
    if any(0 in low.shape(v) for v in (*passed, *outs)):
        return Refusal("an input or output is empty")
    return _model(node, low, passed, embedded), passed, outs


def _resize_refusal(node: ir.Node, low: Lowering) -> str:
    """Relax takes the scale to be the ratio of the sizes, and knows few of ONNX's options."""
    attributes = node.attributes
    modes = ("half_pixel", "align_corners", "asymmetric")
    if (mode := attributes.get_string("coordinate_transformation_mode", "half_pixel")) not in modes:
        return f"Resize with coordinate_transformation_mode '{mode}'"
    if attributes.get_int("antialias", 0) or attributes.get_int("exclude_outside", 0):
        return "Resize with antialias or exclude_outside"
    if "axes" in attributes or attributes.get_string("keep_aspect_ratio_policy", "stretch") != "stretch":
        return "Resize of some axes or with an aspect ratio policy"
    factors = low.constant(node.inputs[2]) if len(node.inputs) > 2 else None
    assert node.inputs[0] is not None
    before, after = low.shape(node.inputs[0]), low.shape(node.outputs[0])
    if (
        factors is not None
        and factors.size
        and any(n * float(x) != m for n, x, m in zip(before, factors, after, strict=True))
    ):
        return f"Resize by {factors.tolist()}, which is no whole number of pixels"
    return ""


def _is_embedded(node: ir.Node, low: Lowering, value: ir.Value) -> bool:
    array = low.constant(value)
    if array is None or array.size > _EMBEDDED:
        return False
    return array.dtype == np.int64 or (node.op_type == "Resize" and value is not node.inputs[0])


def _size(low: Lowering, value: ir.Value) -> int:
    size = 1
    for n in low.shape(value):
        size *= n
    return size


def _model(node: ir.Node, low: Lowering, passed: list[ir.Value], embedded: set[ir.Value]) -> bytes:
    """The node as a model of its own, with names that do not depend on the graph: equal nodes share a kernel."""
    fresh: dict[ir.Value, ir.Value] = {}

    def value(old: ir.Value, name: str, **extra: Any) -> ir.Value:
        assert old.dtype is not None
        fresh[old] = ir.Value(name=name, shape=ir.Shape(low.shape(old)), type=ir.TensorType(old.dtype), **extra)
        return fresh[old]

    inputs = [value(v, f"in{i}") for i, v in enumerate(passed)]
    constants: list[ir.Value] = []
    for old in dict.fromkeys(v for v in node.inputs if v is not None and v in embedded):
        array = low.constant(old)
        assert array is not None
        name = f"constant{len(constants)}"
        constants.append(value(old, name, const_value=ir.tensor(array, name=name)))
    outputs = [value(old, f"out{i}") if old.name else ir.Value(name="") for i, old in enumerate(node.outputs)]
    copy = ir.Node(
        "",
        node.op_type,
        [None if v is None else fresh[v] for v in node.inputs],
        [ir.Attr(a.name, a.type, a.value) for _, a in sorted(node.attributes.items())],
        outputs=outputs,
    )
    version = min(low.model.opset_imports.get("", _OPSET), 22)
    graph = ir.Graph(
        inputs,
        [v for v in outputs if v.name],
        nodes=[copy],
        initializers=constants,
        opset_imports={"": version},
        name="node",
    )
    data: bytes = ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString(deterministic=True)
    return data
