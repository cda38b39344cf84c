"""Joins a sparse 1x1 convolution with the depthwise convolution that reads it, where what lies between them is far from the core."""

from __future__ import annotations

from sparsec.codegen.context import Lowering
from sparsec.codegen.kernels import depthwise, expand_depthwise, spmm, spmm_bytes, spmm_fixed, spmm_rules
from sparsec.codegen.kernels.weights import unpacked_weight
from sparsec.codegen.program import Buffer, KernelSpec, Ref, Step
from sparsec.op_view import view

# Bytes between the convolutions from which on joining them pays, and of a block of channels.
_LEAST, _BLOCK = 1 << 20, 1 << 19


def join_expansions(low: Lowering) -> None:
    """Replace pairs of steps of the program by steps of kernels/expand_depthwise.py."""
    program, nodes = low.program, {node.name: node for node in low.graph}
    uses: dict[Buffer, int] = {}
    for step in program.steps:
        for ref in step.refs:
            uses[ref.buffer] = uses.get(ref.buffer, 0) + 1
    steps: list[Step] = []
    for step in program.steps:
        if steps and (count := _blocks(steps[-1], step, uses)):
            op = view(nodes[steps[-1].node])
            weight = unpacked_weight(op)
            steps[-1] = _joined(low, steps[-1], step, count, weight)
        else:
            steps.append(step)
    program.steps = steps
    left = {ref.buffer for step in steps for ref in step.refs}
    program.buffers = [b for b in program.buffers if b in left or b.kind in ("input", "output")]


def _blocks(first: Step, second: Step, uses: dict[Buffer, int]) -> int:
    """How many blocks of channels the two steps are computed in; 0 where they stay two."""
    if (first.spec.family, second.spec.family) != ("spmm", "depthwise"):
        return 0
    a, b = first.spec.params, second.spec.params
    between = first.refs[-1].buffer
    if a["source"] != "planes" or a["dest"] != "planes" or a["images"] > 1 or "groups" in a or a["residual"]:
        return 0
    if b["layout"] != "row" or second.refs[0] != first.refs[-1] or between.kind != "arena" or uses[between] > 2:
        return 0
    if spmm_bytes.is_whole(a["values"]) or between.nbytes < _LEAST:
        return 0
    n, strip = a["n"], a["strip"]
    counts = [c for c in range(2, n // strip + 1) if n % (c * strip) == 0 and between.nbytes <= c * _BLOCK]
    return min(counts, default=0)


def _joined(low: Lowering, first: Step, second: Step, count: int, weight: object) -> Step:
    a, b, target = first.spec.params, second.spec.params, low.target
    geometry = {key: a[key] for key in ("pixels", "images", "source", "dest")}
    made = spmm_rules.prepare(weight, geometry, target, fixed=spmm_fixed.is_fixed(a["values"]), even=count)
    p = made.params | {key: a[key] for key in ("bias", "residual", "act", "act_params")}
    params = {"first": p, "second": dict(b), "block": a["n"] // count}
    weights = [low.const(array, f"{first.node}.{name}") for name, array in made.arrays]
    sized = [(ref, arg.size) for ref, arg in zip(first.refs, (x for x in first.signature.args if x.role != "work"), strict=True)]
    rest = [(ref, arg.size) for ref, arg in zip(second.refs, (x for x in second.signature.args if x.role != "work"), strict=True)]
    biases = sized[-2:-1] if a["bias"] else []
    given: list[tuple[Ref, int]] = [sized[0], *((t.ref, t.size) for t in weights), *biases, *rest[1:]]
    scratch = {f"first_{name}": size for name, size in made.scratch.items()}
    cost = spmm.cost(p, made.entries) + depthwise.signature(b, target).cost
    signature = expand_depthwise.signature(params, target).bound([size for _, size in given], scratch, cost)
    refs = tuple(ref for ref, _ in given)
    note = f"{first.note}; {second.note}"
    return Step(KernelSpec("expand_depthwise", params), signature, refs, second.node, second.op, note, (first.node,))
