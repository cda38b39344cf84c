"""Depth removal: residual branches that can be bypassed, and which of them the outputs miss least (the second stage of Sandri,
Cunegatti, Iacca, "2SSP: A Two-Stage Framework for Structured Pruning of LLMs", 2025, with output error in place of perplexity)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common

from sparsec.passes.structure.axes import sizes
from sparsec.passes.structure.moments import linear_use
from sparsec.reference import Reference

__all__ = ["Branch", "branches", "bypass", "greedy"]

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Branch:
    """An addition one operand of which can be left out. add: the node's name; keep: which operand stays; kind: `attention` if the
    other multiplies computed values, else `feedforward`; weights: constants that only the branch reads, in order of execution (the
    first linear layer's first); nbytes: what they hold."""

    add: str
    keep: int
    kind: str
    weights: tuple[str, ...]
    nbytes: int


def branches(model: ir.Model) -> list[Branch]:
    """Every addition of two computed values of one shape where linear layers work for one of them alone. Where they do for both,
    the one with fewer weights (a projection shortcut) stays."""
    found = []
    for node in model.graph:
        shapes = [sizes(value) for value in (*node.inputs, *node.outputs) if value is not None]
        computed = [value is not None and value.const_value is None for value in node.inputs]
        if node.op_type != "Add" or node.domain or not all(computed) or len(set(shapes)) != 1:
            continue
        if node.outputs[0].is_graph_output():
            continue
        made = [one for keep in (0, 1) if (one := _branch(node, keep)) is not None]
        if made:
            found.append(max(made, key=lambda one: one.nbytes))
    return found


def _branch(add: ir.Node, keep: int) -> Branch | None:
    region = _region(add, 1 - keep)
    layers = [node for node in region if linear_use(node) is not None]
    if not layers:
        return None
    mixing = any(node.op_type == "MatMul" and linear_use(node) is None for node in region)
    constants: dict[ir.Value, None] = {}
    for node in (*layers, *region):
        for value in reversed(node.inputs[:2]) if node in layers else node.inputs:
            if value is not None and value.const_value is not None and all(user in region for user, _ in value.uses()):
                constants[value] = None
    nbytes = sum(value.const_value.nbytes for value in constants if value.const_value is not None)
    names = tuple(value.name or "" for value in constants)
    return Branch(add.name or "", keep, "attention" if mixing else "feedforward", names, nbytes)


def _region(add: ir.Node, index: int) -> list[ir.Node]:
    """The nodes that only this operand of `add` needs, in order of execution."""
    found: set[ir.Node] = set()
    todo = [add.inputs[index]]
    while todo:
        value = todo.pop()
        node = None if value is None else value.producer()
        if node is None or node in found:
            continue
        uses = [use for out in node.outputs for use in out.uses()]
        if any(out.is_graph_output() for out in node.outputs):
            continue
        if all(user in found or (user is add and place == index) for user, place in uses):
            found.add(node)
            todo += node.inputs
    # A node whose readers were found after it is met again through the last of them.
    place = {node: number for number, node in enumerate(add.graph or [])}
    return sorted(found, key=lambda node: place[node])


def bypass(model: ir.Model, branch: Branch) -> None:
    """Take the branch out, in place: the addition gives its other operand."""
    node = next(node for node in model.graph if node.name == branch.add)
    kept = node.inputs[branch.keep]
    assert kept is not None
    ir.convenience.replace_all_uses_with(node.outputs[0], kept)
    common.RemoveUnusedNodesPass()(model)


def greedy(
    model: ir.Model,
    count: int,
    samples: Sequence[Mapping[str, Array]],
    allowed: Callable[[Branch], bool],
    *,
    threads: int = 1,
) -> list[tuple[Branch, float]]:
    """Bypass up to `count` branches, one after the other, in place: each time the one without which the outputs of `samples` are
    nearest to those of the whole model (of equals the first).

    Returns:
        The branches, each with the error after it went: squared differences over squares, summed over outputs and samples.
    """
    reference = Reference(model, threads=threads, spin=False)
    wanted = [reference.run(sample) for sample in samples]
    power = sum(float(np.square(y, dtype=np.float64).sum()) for outputs in wanted for y in outputs.values()) or 1.0
    gone: list[tuple[Branch, float]] = []
    for _ in range(count):
        options = []
        for branch in filter(allowed, branches(model)):
            without = model.clone()
            bypass(without, branch)
            run = Reference(without, threads=threads, spin=False).run
            lost = 0.0
            for sample, outputs in zip(samples, wanted, strict=True):
                made = run(sample)
                lost += sum(float(np.square(made[name].astype(np.float64) - y).sum()) for name, y in outputs.items())
            options.append((branch, lost / power))
        if not options:
            break
        best = min(options, key=lambda option: option[1])
        bypass(model, best[0])
        gone.append(best)
    return gone
