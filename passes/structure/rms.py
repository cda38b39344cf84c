"""LayerNormalization to RMSNormalization, exactly ("Pre-RMSNorm and Pre-CRMSNorm Transformers", Jiang, Gu, Zhu, Pan, 2023): what writes the
hidden stream writes it without its mean, so that norms need not subtract it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.constants import register_constant
from sparsec.passes.structure.axes import sizes
from sparsec.passes.structure.dead import fold
from sparsec.passes.structure.hidden import Norm, Stream, linear_readers
from sparsec.passes.structure.moments import linear_use
from sparsec.passes.structure.rotation import write

__all__ = ["without_means"]


def without_means(model: ir.Model, stream: Stream) -> tuple[dict[str, str], list[str]]:
    """Rewrite every LayerNormalization where that needs no additional product, in place.

    Returns:
        Norms (by node) that stay as they are, with the reason, and the nodes of layers that now write without the mean.
    """
    left = _left(stream)
    centre = np.eye(stream.width) - 1 / stream.width
    layers = []
    for point in stream.points:
        if point.value in left or not point.norms[0].centres:
            continue
        for term in point.terms:
            if term.kind in ("constant", "linear", "table"):
                write(model, term, centre)
                node = term.value.producer()
                layers += [node.name or ""] if term.kind == "linear" and node is not None else []
        for norm in point.norms:
            _replace(model, norm)
    reasons = {norm.node.name or "": left[p.value] for p in stream.points if p.value in left for norm in p.norms}
    return reasons, layers


def _left(stream: Stream) -> dict[ir.Value, str]:
    """Points that are written by what cannot be made to write without the mean."""
    left: dict[ir.Value, str] = {}
    for point in stream.points:  # in order: a point is made of earlier ones
        for term in point.terms:
            if stream.why_not:
                left.setdefault(point.value, stream.why_not)
            elif term.kind in ("norm", "other"):
                what = (
                    "the result of a norm" if term.kind == "norm" else "what has other readers or no weight of its own"
                )
                left.setdefault(point.value, f"it adds up {what} ('{term.value.name}')")
            elif term.kind == "point" and term.value in left:
                left.setdefault(point.value, left[term.value])
    return left


def _replace(model: ir.Model, norm: Norm) -> None:
    node, out = norm.node, norm.output
    made = ir.node(
        "RMSNormalization", node.inputs[:2], attributes={"axis": -1, "epsilon": norm.epsilon}, name=f"{node.name}.rms"
    )
    result = made.outputs[0]
    result.name, result.type, result.shape = f"{node.name}.rms.out", out.type, out.shape
    model.graph.insert_after(node, made)
    readers = linear_readers([out])
    shifts = {}
    if norm.bias.any() and len(readers) == len(out.uses()) and not out.is_graph_output():
        for reader in readers:  # their biases take over the norm's
            use, value = linear_use(reader), reader.inputs[1]
            assert use is not None
            assert value is not None
            assert value.const_value is not None
            array = value.const_value.numpy().astype(np.float64)
            shifts[reader.name or ""] = (array.T if use.flipped else array) @ norm.bias
    elif norm.bias.any():
        add = ir.node(
            "Add",
            [result, register_constant(model, f"{node.name}.bias", norm.bias.astype(np.float32))],
            name=f"{node.name}.bias",
        )
        model.graph.insert_after(made, add)
        result = add.outputs[0]
        result.name, result.type, result.shape = f"{node.name}.bias.out", out.type, ir.Shape(sizes(out))
    ir.convenience.replace_all_uses_with(out, result)
    for index, output in enumerate(model.graph.outputs):
        if output is out:
            name, out.name = out.name, f"{out.name}.before"
            result.name = name
            model.graph.outputs[index] = result
    model.graph.remove(node, safe=True)
    for name, shift in shifts.items():
        fold(model, name, shift)
