"""Static int8 activations: inputs of products are rounded by ranges that calibration has seen (`activations: int8-static`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from sparsec import ops
from sparsec.errors import CalibrationError
from sparsec.passes.layers import LayerRecord
from sparsec.passes.quantise.ranges import Histogram, Range, best_range
from sparsec.progress import Progress
from sparsec.recipe import Rule
from sparsec.reference import Reference

__all__ = ["NAME", "drop_rounding", "has_rounding", "round_inputs"]

NAME = "int8-static"

_AT_ONCE = 1 << 26
"""Values that one run of the model may give beside its outputs."""
_COUNTED = 1 << 15
"""Values of a tensor and sample that are counted; extremes are taken over all."""

Sample = Mapping[str, NDArray[Any]]


def round_inputs(
    model: ir.Model,
    wanted: Mapping[str, tuple[Rule, LayerRecord]],
    samples: Sequence[Sample],
    threads: int = 1,
    progress: Progress | None = None,
) -> bool:
    """Put sparsec::Quantise before the products whose weights' rules (by name of the weight) ask for it; True if there are any.

    Products that share an input share its rounding. Every sample goes through the compressed model once, or several times where the inputs
    would not fit in memory together.

    Raises CalibrationError where an input is not finite.
    """
    readers: dict[ir.Value, list[ir.Node]] = {}
    for node in model.graph:
        if not ops.is_sparsec(node) or node.op_type not in ("MatMul", "Conv"):
            continue
        view = ops.view(node)
        name = (view.weight_inputs.values[0].name or "").removesuffix(".codes")
        if name in wanted and wanted[name][0].activations == NAME:
            assert view.x is not None
            readers.setdefault(view.x, []).append(node)
            wanted[name][1].activations = NAME
    for rule, record in wanted.values():
        if rule.activations == NAME and record.activations != NAME and record.op != "Gather" and not record.factors:
            record.reason = record.reason or "float32 activations: no product reads the weight as it is"
    if not readers:
        return False
    common.NameFixPass()(model)
    found = _ranges(model, list(readers), samples, threads, progress)
    for value, nodes in readers.items():
        chosen = found[value]
        built = ops.quantise(value, chosen.scale, chosen.low, chosen.high, name=f"{value.name}.quantise")
        built.output.name = f"{value.name}.int8"
        reading = set(nodes)
        model.graph.insert_before(next(node for node in model.graph if node in reading), built.node)
        for node in nodes:
            node.replace_input_with(0, built.output)
        built.register(model)
    return True


def has_rounding(model: ir.Model) -> bool:
    """Whether inputs are rounded by fixed ranges."""
    return any(_is_rounding(node) for node in model.graph)


def drop_rounding(model: ir.Model) -> None:
    """Limit values to the ranges instead of rounding them: what is left of the difference is rounding alone."""
    for node in [node for node in model.graph if _is_rounding(node)]:
        scale, low, high = (node.attributes[key].as_float() for key in ("scale", "low", "high"))
        limits = [ir.node("Constant", [], {"value_float": whole * scale}) for whole in (low, high)]
        clip = ir.node("Clip", [node.inputs[0], *(limit.outputs[0] for limit in limits)])
        old, new = node.outputs[0], clip.outputs[0]
        new.shape, new.type = old.shape, old.type
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [*limits, clip], [old], [new])


def _is_rounding(node: ir.Node) -> bool:
    return (node.domain, node.op_type) == (ops.DOMAIN, "Quantise")


def _ranges(
    model: ir.Model,
    values: Sequence[ir.Value],
    samples: Sequence[Sample],
    threads: int,
    progress: Progress | None,
) -> dict[ir.Value, Range]:
    found: dict[ir.Value, Range] = {}
    for group in _groups(values):
        histograms = {value.name or "": Histogram() for value in group}
        made = {value.name for value in group if value.producer() is not None}
        copy = model.clone()
        # outputs that are looked at beside the model's own
        known = {value.name for value in copy.graph.outputs}
        copy.graph.outputs.extend(
            out for node in copy.graph for out in node.outputs if out.name in made and out.name not in known
        )
        reference = Reference(copy, threads=threads, spin=False)
        for index, sample in enumerate(samples):
            arrays = {**sample, **reference.run(sample)}
            for name, histogram in histograms.items():
                _count(histogram, np.asarray(arrays[name]), index, name)
        for value in group:
            if progress is not None:
                progress("ranges", len(found), len(values), value.name or "")
            found[value] = best_range(histograms[value.name or ""])
    return found


def _count(histogram: Histogram, array: NDArray[Any], index: int, name: str) -> None:
    if not np.isfinite(array).all():
        raise CalibrationError(
            f"calibration sample {index}: '{name}' holds NaN or Inf; static activations need its range"
        )
    stride = max(1, array.size // _COUNTED)
    histogram.add(array, array.ravel()[index % stride :: stride])


def _groups(values: Sequence[ir.Value]) -> list[list[ir.Value]]:
    groups: list[list[ir.Value]] = [[]]
    size = 0
    for value in values:
        assert value.shape is not None
        count = prod(int(dim) for dim in value.shape.numpy())
        if groups[-1] and size + count > _AT_ONCE:
            groups.append([])
            size = 0
        groups[-1].append(value)
        size += count
    return groups
