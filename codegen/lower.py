"""Graph -> Program: every node becomes kernel calls through the table of lowering rules."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from sparsec.codegen.choice import Chooser, Policy
from sparsec.codegen.context import Layout, Lowering, Tensor, row_strides
from sparsec.codegen.cuda import table as gpu
from sparsec.codegen.cuda.limits import uncountable
from sparsec.codegen.cuda.operands import turned_operands
from sparsec.codegen.cuda.storage import store_halves
from sparsec.codegen.expansions import join_expansions
from sparsec.codegen.framing import frame_images
from sparsec.codegen.fusion import deferred_nodes
from sparsec.codegen.kernels import table as processor
from sparsec.codegen.layouts import plan_layouts
from sparsec.codegen.places import concat_places, split_parts
from sparsec.codegen.program import MODEL_TYPES, Buffer, IoInfo, Program
from sparsec.errors import UnsupportedOpError
from sparsec.target import Target


def lower(
    model: ir.Model,
    target: Target,
    name: str,
    layouts: Mapping[ir.Node, Layout] | None = None,
    policy: Policy | None = None,
) -> Program:
    """Lower a model whose shapes are all static to a Program for `target`.

    `policy` says how to choose among kernels. `layouts` says in which layout nodes compute that have the choice; left out, it is
    planned (layouts.py).
    Raises ShapeError for a shape that is not static, UnsupportedOpError listing every node no rule takes, TargetError for tuning
    a target that this machine cannot run.
    """
    low = Lowering(model, target, name)
    table = gpu if target.gpu else processor
    if target.gpu:
        low.family_for = gpu.family_for
    graph = model.graph
    for index, value in enumerate(i for i in graph.inputs if i.const_value is None):
        shape, dtype = low.shape(value), low.dtype(value)
        buffer = Buffer(
            low.buffer_name(value.name or f"input{index}"), dtype, int(np.prod(shape, dtype=np.int64)), "input", index
        )
        low.program.buffers.append(buffer)
        low.program.inputs.append(IoInfo(value.name or f"input{index}", dtype, shape))
        low.bind(value, Tensor(buffer, dtype, shape))

    chooser = Chooser(low, policy or Policy())
    blocked = [
        f"input '{value.name}': {reason}"
        for value in graph.inputs
        if not value.uses() and (reason := _odd_type([value])) is not None
    ]
    low.deferred = deferred_nodes(low)
    low.plan = plan_layouts(low, table.choice_of) if layouts is None else dict(layouts)
    low.places = concat_places(low)
    low.parts, low.left_out = split_parts(low)
    if target.gpu:
        low.left_out |= turned_operands(low)
    for node in graph:
        if node in low.deferred or node in low.left_out:
            continue
        odd = _odd_type([*node.inputs, *node.outputs])
        refusals = chooser.lower(node, table.rules_for(node)) if odd is None else [odd]
        if refusals is not None:
            version = model.opset_imports.get(node.domain or "")
            why = "; ".join(refusals) or "no kernel for this op"
            blocked.append(f"{node.domain or 'ai.onnx'}::{node.op_type} (opset {version}) node '{node.name}': {why}")
            for out in node.outputs:  # go on, so that the error lists everything that blocks the model
                low.new(out)
    if not blocked:
        _bind_outputs(low)
        if target.gpu:
            store_halves(low.program)
            blocked = uncountable(low.program)
        else:
            join_expansions(low)
            frame_images(low)
    if blocked:
        raise UnsupportedOpError(
            f"{len(blocked)} node(s) or input(s) of the model have no lowering for target '{target.name}':\n  "
            + "\n  ".join(blocked)
        )
    return low.program


def _odd_type(values: Iterable[ir.Value | None]) -> str | None:
    """What is wrong with the first value whose elements no kernel can store, or None."""
    for value in values:
        if value is not None and value.dtype is not None and str(value.dtype.numpy()) not in MODEL_TYPES:
            return f"'{value.name}' has element type {value.dtype.name.lower()} (possible: {', '.join(sorted(MODEL_TYPES))})"
    return None


def _bind_outputs(low: Lowering) -> None:
    """Give every graph output its own output buffer: in place of the arena buffer where it has one for itself, else by a copy."""
    taken: set[int] = set()
    for index, value in enumerate(low.graph.outputs):
        tensor = low.get(value, "row")
        name = value.name or f"output{index}"
        low.program.outputs.append(IoInfo(name, tensor.dtype, tensor.shape))
        buffer = tensor.buffer
        whole = tensor.offset == 0 and tensor.size == buffer.size and tensor.dtype == buffer.dtype
        if buffer.kind == "arena" and whole and id(buffer) not in taken:
            taken.add(id(buffer))
            buffer.kind, buffer.index, buffer.name = "output", index, low.buffer_name(name)
            continue
        out = Buffer(low.buffer_name(name), tensor.dtype, tensor.size, "output", index)
        low.program.buffers.append(out)
        dest = Tensor(out, tensor.dtype, tensor.shape)
        low.copy(
            tensor,
            dest,
            shape=tensor.shape,
            src_strides=row_strides(tensor.shape),
            node=name,
            op="Output",
            note="copy to the caller's buffer",
        )
