"""Joins a sparse 1x1 convolution with the depthwise convolution that reads it, where what lies between them is far from the core."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from sparsec.codegen.context import Lowering
from sparsec.codegen.kernels import (
    depthwise,
    expand_depthwise,
    spmm,
    spmm_bytes,
    spmm_fixed,
    spmm_plan,
    spmm_rules,
)
from sparsec.codegen.kernels.frames import frame
from sparsec.codegen.kernels.weights import unpacked_weight
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Buffer, KernelSpec, Ref, Step
from sparsec.formats.encoded import Unpacked
from sparsec.op_view import view
from sparsec.target import Target

# Bytes between the convolutions from which on joining them pays (at 0.6 MB it costs 8 %), and of a block of channels at most.
_LEAST, _BLOCK = 1 << 20, 1 << 19
# Blocks, where the channels allow it, for threads to share.
_WANTED_BLOCKS = 8


def join_expansions(low: Lowering) -> None:
    """Replace pairs of steps of the program by steps of kernels/expand_depthwise.py."""
    program, names = low.program, Counter(node.name for node in low.graph)
    nodes = {node.name: node for node in low.graph if node.name and names[node.name] == 1}
    uses = Counter(ref.buffer for step in program.steps for ref in step.refs)
    steps: list[Step] = []
    for step in program.steps:
        count = _blocks(steps[-1], step, uses) if steps and steps[-1].node in nodes else 0
        if count:
            weight = unpacked_weight(view(nodes[steps[-1].node]))
            steps.append(_joined(low, steps.pop(), step, count, weight))
        else:
            steps.append(step)
    program.steps = steps
    left = {ref.buffer for step in steps for ref in step.refs}
    program.buffers = [b for b in program.buffers if b in left or b.kind in ("input", "output")]


def _blocks(first: Step, second: Step, uses: Counter[Buffer]) -> int:
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
    strips = a["n"] // a["strip"]
    counts = [c for c in range(2, strips + 1) if a["n"] % (c * a["strip"]) == 0 and between.nbytes <= c * _BLOCK]
    return min((c for c in counts if c >= _WANTED_BLOCKS), default=max(counts, default=0))


def _joined(low: Lowering, first: Step, second: Step, count: int, weight: Unpacked) -> Step:
    """One step for both; `weight` is that of the first, which is laid out again in `count` bands."""
    a, b, target = first.spec.params, second.spec.params, low.target
    geometry = {key: a[key] for key in ("pixels", "images", "source", "dest")}
    rounds = spmm_fixed.is_fixed(a["values"])
    made, framed = _prepared(weight, geometry, Window.of(b), target, rounds=rounds, even=count)
    p = made.params | {key: a[key] for key in ("bias", "residual", "act", "act_params")} | framed
    params = {"first": p, "second": b | framed, "block": a["n"] // count}
    x, *others, _ = _operands(first)
    bias = others[-1:] if a["bias"] else []
    weights = [low.const(array, f"{first.node}.{name}") for name, array in made.arrays]
    given = [x, *((tensor.ref, tensor.size) for tensor in weights), *bias, *_operands(second)[1:]]
    signature = expand_depthwise.signature(params, target).bound(
        [size for _, size in given],
        {expand_depthwise.FIRST + name: size for name, size in made.scratch.items()},
        spmm.cost(p, made.entries) + depthwise.signature(b, target).cost,
    )
    refs, note = tuple(ref for ref, _ in given), f"{first.note}; {second.note}"
    return Step(KernelSpec("expand_depthwise", params), signature, refs, second.node, second.op, note, (first.node,))


def _prepared(
    weight: Unpacked, geometry: Mapping[str, Any], window: Window, target: Target, **options: Any
) -> tuple[spmm_rules.Prepared, dict[str, Any]]:
    """The first convolution's weight, and `frame` for both if its tiles are whole rows of the image or parts of a row."""
    lanes, (height, width) = target.lanes, window.size
    strip = spmm_rules.strip_of(weight, target)

    def fit(vectors: int) -> bool:
        row = width // lanes
        return vectors % row == 0 and height % (vectors // row) == 0 if vectors > row else row % vectors == 0

    framed = frame(window, target)
    if framed is not None and width % lanes == 0:
        wide = max(v for v in range(1, spmm_plan.widest(strip, target) + 1) if fit(v))
        made = spmm_rules.prepare_fastest(weight, geometry, target, vectors=wide, **options)
        if fit(wide * made.params.get("per_lane", 1)):
            return made, {"frame": framed.params()}
    return spmm_rules.prepare_fastest(weight, geometry, target, **options), {}


def _operands(step: Step) -> list[tuple[Ref, int]]:
    """In and out arguments of a step with their sizes."""
    sizes = [arg.size for arg in step.signature.args if arg.role != "work"]
    return list(zip(step.refs, sizes, strict=True))
