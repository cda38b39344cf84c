"""The specification of a graph between two stages; run after each with SPARSEC_CHECK=1 and in the tests."""

from __future__ import annotations

from collections import Counter

import onnx
import onnx_ir as ir
import onnx_ir.passes.common as common

from sparsec.errors import ModelError, ShapeError, UnsupportedOpError


def check_model(model: ir.Model, stage: str, *, static: bool) -> None:
    """Single assignment, sorted nodes, unique names, known functions, and, if asked, static shapes.

    Raises:
        ModelError: an invariant is broken; `stage` is the pass that left the graph so.
        ShapeError: a value has no static shape.
    """
    _check_names(model, stage)
    _check_order(model, stage)
    _check_functions(model, stage)
    if not static:
        return  # the onnx checker wants shapes on the graph's outputs
    check_static(model)
    try:
        common.CheckerPass(full_check=False)(model)
    except Exception as error:
        cause = error.__cause__ or error
        if isinstance(cause, onnx.checker.ValidationError):
            raise ModelError(f"after {stage}: the onnx checker says: {cause}") from error
        raise


def check_static(model: ir.Model) -> None:
    """Every value of the main graph has a dtype and a static shape.

    Raises:
        UnsupportedOpError: lists all nodes of domains that neither ONNX nor sparsec knows, if one of them is the cause.
        ModelError: lists the nodes whose inputs have shapes they cannot take.
        ShapeError: lists the nodes with which it begins: their inputs are static, their results are not.
    """
    causes = []
    for node in model.graph:
        if all(value is None or _is_static(value) for value in node.inputs):
            causes += [(node, value) for value in node.outputs if value.name and not _is_static(value)]
    if not causes:
        return
    if any(_is_foreign(node) for node, _ in causes):
        foreign = [node for node in model.graph if _is_foreign(node)]
        raise UnsupportedOpError(
            f"{len(foreign)} node(s) of the model are operators that sparsec does not know:\n  "
            + "\n  ".join(
                f"{n.domain}::{n.op_type} (opset {model.opset_imports.get(n.domain)}) node '{n.name}'" for n in foreign
            )
        )
    wrong = [
        f"{n.op_type} ({n.name}): {why}" for n in dict.fromkeys(n for n, _ in causes) if (why := _misfit(model, n))
    ]
    if wrong:
        raise ModelError(
            f"{len(wrong)} node(s) do not fit the shapes of their inputs; export the model again, or bind other "
            "input shapes:\n  " + "\n  ".join(wrong[:10])
        )
    listing = [
        f"{value.name} = {node.domain or 'onnx'}::{node.op_type} ({node.name}): {_shape_text(value)}"
        for node, value in causes
    ]
    more = f"\n  and {len(listing) - 10} more" if len(listing) > 10 else ""
    raise ShapeError(
        f"{len(listing)} value(s) have no static shape although all inputs do; shapes that depend on data "
        "(NonZero, Loop ...) cannot be compiled:\n  " + "\n  ".join(listing[:10]) + more
    )


def _is_static(value: ir.Value) -> bool:
    if value.shape is None or not value.shape.is_static() or value.dtype is None:
        return False
    return all(isinstance(dim, int) and dim >= 0 for dim in value.shape)


def _misfit(model: ir.Model, node: ir.Node) -> str | None:
    """Why a standard node whose inputs are static cannot take them, in the words of ONNX's shape inference; None if it can."""
    for value in node.outputs:
        if value.shape is not None and any(isinstance(dim, int) and dim < 0 for dim in value.shape):
            return f"its output would be {_shape_text(value)}: its window is larger than its padded input"
    if node.domain not in ("", "ai.onnx"):
        return None
    known = [value for value in node.inputs if value is not None and value.type is not None]
    try:
        schema = onnx.defs.get_schema(node.op_type, model.opset_imports.get("", 1), "")
        onnx.shape_inference.infer_node_outputs(
            schema,
            ir.to_proto(node),
            {str(v.name): ir.to_proto(v).type for v in known},
            {
                str(v.name): ir.to_proto(v.const_value)
                for v in known
                if v.const_value is not None and v.const_value.size < 64
            },
        )
    except onnx.shape_inference.InferenceError as error:
        return str(error).strip().splitlines()[-1].removeprefix("[ShapeInferenceError] ")
    except onnx.defs.SchemaError:
        return f"ONNX has no such operator in opset {model.opset_imports.get('')}"
    return None


def _is_foreign(node: ir.Node) -> bool:
    return node.domain not in ("", "ai.onnx", "sparsec")


def _shape_text(value: ir.Value) -> str:
    if value.shape is None:
        return "unknown"
    return "[" + ", ".join(str(d) if isinstance(d, int) else "?" for d in value.shape) + "]"


def _check_names(model: ir.Model, stage: str) -> None:
    graph = model.graph
    defined = dict.fromkeys((*graph.inputs, *graph.initializers.values()))
    names = [v.name for v in defined] + [out.name for node in graph for out in node.outputs if out.name]
    twice = sorted(str(name) for name, count in Counter(names).items() if count > 1)
    if twice:
        raise ModelError(f"after {stage}: values defined more than once: {', '.join(twice[:10])}")
    nodes = Counter(node.name for node in graph if node.name)
    twice = sorted(name for name, count in nodes.items() if count > 1)
    if twice:
        raise ModelError(f"after {stage}: node names used more than once: {', '.join(twice[:10])}")


def _check_order(model: ir.Model, stage: str) -> None:
    graph = model.graph
    seen = {*graph.inputs, *graph.initializers.values()}
    for node in graph:
        for value in node.inputs:
            if value is not None and value not in seen:
                raise ModelError(f"after {stage}: {node.op_type} ({node.name}) reads {value.name} before it exists")
        seen.update(node.outputs)
    missing = [str(value.name) for value in graph.outputs if value not in seen]
    if missing:
        raise ModelError(f"after {stage}: graph outputs that nothing produces: {', '.join(missing)}")


def _check_functions(model: ir.Model, stage: str) -> None:
    missing = {
        f"{node.domain}::{node.op_type}:{node.overload}"
        for node in model.graph.all_nodes()
        if node.domain == "sparsec" and node.op_identifier() not in model.functions
    }
    if missing:
        raise ModelError(f"after {stage}: nodes without a function body: {', '.join(sorted(missing))}")
