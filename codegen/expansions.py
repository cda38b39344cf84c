"""Joins a sparse 1x1 convolution with the depthwise convolution that reads it, where what lies between them is far from the core."""

from __future__ import annotations

from collections import Counter
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
from sparsec.codegen.kernels.frames import Frame, frame
from sparsec.codegen.kernels.weights import unpacked_weight
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Buffer, KernelSpec, Ref, Step
from sparsec.formats.encoded import Unpacked
from sparsec.op_view import view
from sparsec.target import Target

# Bytes between the convolutions from which on joining them pays (at 0.6 MB it costs 8 %), and of a block of channels at most.
_LEAST, _BLOCK = 1 << 20, 1 << 19
# The same of a strip of framed images, which should stay in a level-1 cache beside the input, and its lines: strips of 4 rows of results.
_STRIP, _LINES = 40 << 10, 12
# Blocks, where the channels allow it, for threads to share: as many for each of so many.
_WANTED_BLOCKS, _THREADS = 8, 4


def join_expansions(low: Lowering) -> None:
    """Replace pairs of steps of the program by steps of kernels/expand_depthwise.py."""
    program, names = low.program, Counter(node.name for node in low.graph)
    nodes = {node.name: node for node in low.graph if node.name and names[node.name] == 1}
    uses = Counter(ref.buffer for step in program.steps for ref in step.refs)
    steps: list[Step] = []
    for step in program.steps:
        joint = None
        if steps and steps[-1].node in nodes and _follow(steps[-1], step, uses):
            joint = _joined(low, steps[-1], step, unpacked_weight(view(nodes[steps[-1].node])))
        if joint is not None:
            steps[-1] = joint
        else:
            steps.append(step)
    program.steps = steps
    left = {ref.buffer for step in steps for ref in step.refs}
    program.buffers = [b for b in program.buffers if b in left or b.kind in ("input", "output")]


def _follow(first: Step, second: Step, uses: Counter[Buffer]) -> bool:
    """Whether the steps are what can be joined, and enough lies between them."""
    if (first.spec.family, second.spec.family) != ("spmm", "depthwise"):
        return False
    a, b = first.spec.params, second.spec.params
    between = first.refs[-1].buffer
    if a["source"] != "planes" or a["dest"] != "planes" or a["images"] > 1 or "groups" in a or a["residual"]:
        return False
    if b["layout"] != "row" or second.refs[0] != first.refs[-1] or between.kind != "arena" or uses[between] > 2:
        return False
    return not spmm_bytes.is_whole(a["values"]) and between.nbytes >= _LEAST


def _joined(low: Lowering, first: Step, second: Step, weight: Unpacked) -> Step | None:
    """One step for both, None where their channels make no blocks; `weight`, of the first, is laid out again in even bands."""
    a, b, target = first.spec.params, second.spec.params, low.target
    geometry = {key: a[key] for key in ("pixels", "images", "source", "dest")}
    rounds = spmm_fixed.is_fixed(a["values"])
    framed, vectors = _frame(Window.of(b), a["strip"], 2 if rounds else 1, target)
    if framed is None:
        count = _blocks(a["n"], a["strip"], 4 * a["pixels"], _BLOCK)
    else:
        count = _blocks(a["n"], a["strip"], 4 * framed.plane, _STRIP)
    if not count:
        return None
    made = spmm_rules.prepare_fastest(weight, geometry, target, rounds=rounds, even=count, **vectors)
    given: dict[str, Any] = {} if framed is None else {"frame": framed.params()}
    p = {**made.params, **{key: a[key] for key in ("bias", "residual", "act", "act_params")}, **given}
    params = {"first": p, "second": {**b, **given}, "block": a["n"] // count}
    x, *others, _ = _operands(first)
    bias = others[-1:] if a["bias"] else []
    weights = [low.const(array, f"{first.node}.{name}") for name, array in made.arrays]
    ins = [x, *((tensor.ref, tensor.size) for tensor in weights), *bias, *_operands(second)[1:]]
    signature = expand_depthwise.signature(params, target).bound(
        [size for _, size in ins],
        {expand_depthwise.FIRST + name: size for name, size in made.scratch.items()},
        spmm.cost(p, made.entries) + depthwise.signature(b, target).cost,
    )
    refs, note = tuple(ref for ref, _ in ins), f"{first.note}; {second.note}"
    return Step(KernelSpec("expand_depthwise", params), signature, refs, second.node, second.op, note, (first.node,))


def _blocks(channels: int, strip: int, nbytes: int, most: int) -> int:
    """How many blocks of at most `most` bytes the channels, of `nbytes` each, are computed in; 0 where they make no even ones."""
    counts = [c for c in range(2, channels // strip + 1) if channels % (c * strip) == 0]
    fit = [c for c in counts if channels // c * nbytes <= most]
    several = [c for c in fit if c >= _WANTED_BLOCKS]
    return min((c for c in several if c % _THREADS == 0), default=min(several, default=max(fit, default=0)))


def _frame(window: Window, strip: int, per_lane: int, target: Target) -> tuple[Frame | None, dict[str, int]]:
    """Where what lies between is held with zeros around it, if tiles are whole rows of the image or even parts of a row; the `vectors` of
    these tiles, whose lanes hold one pixel or `per_lane` of them."""
    row, (height, width) = window.size[1] // target.lanes, window.size

    def tile_rows(vectors: int) -> int:
        """Rows of the image that a tile is, 1 if it is a part of one, 0 if it does not end with it."""
        if vectors % row == 0 and height % (vectors // row) == 0:
            return vectors // row
        return int(row % vectors == 0)

    if not row or width % target.lanes:
        return None, {}
    least = spmm_plan.most_vectors(strip, target) // 2
    fit = [v for v in range(1, spmm_plan.widest(strip, target) + 1) if tile_rows(v) and tile_rows(v * per_lane)]
    vectors = max(fit, default=0)
    if vectors <= least:
        return None, {}
    framed = frame(window, target, tile_rows(vectors * per_lane), _LINES)
    return framed, {"vectors": vectors} if framed is not None else {}


def _operands(step: Step) -> list[tuple[Ref, int]]:
    """In and out arguments of a step with their sizes."""
    sizes = [arg.size for arg in step.signature.args if arg.role != "work"]
    return list(zip(step.refs, sizes, strict=True))
