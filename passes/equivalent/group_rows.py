"""Rows of weights whose codebooks serve runs of rows, reordered so that runs are alike (quantise/group_rows.py); what reads the outputs
is reordered with them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsec.formats import decode, encode
from sparsec.formats.meaning import TableValue, VectorValue
from sparsec.passes.equivalent.channels import Channels, channels_of, output_space
from sparsec.passes.equivalent.steps import Refused
from sparsec.passes.quantise.group_rows import row_order
from sparsec.passes.select import Choice

__all__ = ["group_rows"]


def group_rows(model: ir.Model, choices: Sequence[Choice]) -> bool:
    """Reorder the outputs of the weights whose rules say `reorder`, in place; whether anything changed. Notes tell what came of it."""
    wanted = {choice.weight.name: choice for choice in choices if choice.rule.quantize.reorder}
    done: set[str] = set()
    changed = False
    for name, choice in wanted.items():
        if name in done:
            continue
        done.add(name)
        try:
            channels = _channels(model, choice)
        except Refused as why:
            choice.notes.append(f"rows keep their order: {why}")
            continue
        makers = [touch.value.name or "" for touch in channels.touches if touch.role == "out"]
        members = [wanted[maker] for maker in dict.fromkeys(makers) if maker in wanted]
        members = [
            member for member in members if member.weight.rows == channels.count and _span(member) == _span(choice)
        ]
        done |= {member.weight.name for member in members}
        changed |= _reorder(model, channels, members)
    return changed


def _channels(model: ir.Model, choice: Choice) -> Channels:
    use = choice.weight.uses[0]
    if len(choice.weight.uses) > 1 or use.operator == "Gather":
        raise Refused("the weight is looked up or read by several nodes")
    if use.operator == "DepthwiseConv":
        raise Refused("rows of a depthwise convolution belong to its inputs")
    channels = channels_of(model, *output_space(use.node), "order")
    assert channels.count == choice.weight.rows
    return channels


def _span(choice: Choice) -> int:
    meaning = choice.scheme.codec.meaning
    assert isinstance(meaning, TableValue | VectorValue)
    return meaning.scope.span


def _reorder(model: ir.Model, channels: Channels, members: Sequence[Choice]) -> bool:
    matrices = [member.weight.matrix() for member in members]
    # Every member's spread counts alike, whatever the size of its values.
    sizes = [max(float(np.sqrt(np.mean(np.square(matrix)))), 1e-30) for matrix in matrices]
    stacked = np.concatenate([matrix / size for matrix, size in zip(matrices, sizes, strict=True)], 1)
    order = row_order(stacked, _span(members[0]))
    before, after = (sum(_error(m, matrix[o]) for m, matrix in zip(members, matrices, strict=True))
                     for o in (np.arange(len(order)), order))  # fmt: skip
    if after >= before:
        for member in members:
            member.notes.append("rows keep their order: no other fits codebooks better")
        return False
    channels.reorder(model, order)
    for member in members:
        member.notes.append(f"rows reordered: codebooks fit with {100 * (1 - after / before):.0f} % less error")
    return True


def _error(choice: Choice, matrix: np.ndarray) -> float:
    """Relative squared error of rounding, whatever is pruned."""
    scheme = type(choice.scheme).of(choice.scheme.codec, scales=choice.scheme.scales)
    found = decode(encode(matrix, scheme)) - matrix
    return float(np.square(found, dtype=np.float64).sum()) / max(
        float(np.square(matrix, dtype=np.float64).sum()), 1e-30
    )
