"""Rows in an order in which runs of them go well together: codebooks that serve runs of rows (quantise/group_rows.py), blocks of several
outputs that are pruned as wholes (sparsify/order_rows.py).

What reads the outputs is reordered with them. Where that cannot be, a Gather can put the outputs of a weight with blocks back; it costs
a pass over them, so it must pay.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.formats import decode, encode
from sparsec.formats.meaning import TableValue, VectorValue
from sparsec.passes.equivalent.channels import Channels, channels_of, output_space
from sparsec.passes.equivalent.put_back import room_behind
from sparsec.passes.equivalent.row_blocks import order_for_blocks
from sparsec.passes.equivalent.steps import Refused
from sparsec.passes.quantise.group_rows import row_order
from sparsec.passes.select import Choice

__all__ = ["group_rows"]

GATHER_PAYS = 0.001
"""Share of the outputs' power that must stay more for a Gather, which reads and writes every output once."""

Order = NDArray[np.intp]
Found = tuple[Order, float, float]
"""An order, what is lost without it, and with it."""


@dataclass
class _Task:
    """Weights whose rows get one order; the channels that take it up, or None and why it is a Gather. `waits`: earlier tasks change
    what the order depends on."""

    members: list[Choice]
    channels: Channels | None
    why: str = ""
    waits: bool = False


def group_rows(
    model: ir.Model,
    choices: Sequence[Choice],
    power: Mapping[str, NDArray[np.float64]] | None = None,
    executor: Executor | None = None,
) -> bool:
    """Reorder the outputs of the weights whose rules say `reorder`, in place; whether anything changed. Notes tell what came of it.

    power: E[x^2] of the inputs of a weight with blocks, float64 [K], by its name; without: 1. Blocks are scored for the share of zeros in
    `Choice.structure`. executor: where orders for blocks are looked for; None: here.
    """
    known = dict(power or {})
    tasks = _tasks(model, choices)
    early = {id(task): _start(task, known, executor) for task in tasks if not task.waits}
    changed = False
    for task in tasks:
        found = early[id(task)] if id(task) in early else _start(task, known, executor)
        changed |= _apply(model, task, found(), known, choices)
    return changed


def _tasks(model: ir.Model, choices: Sequence[Choice]) -> list[_Task]:
    """First what can be folded into its neighbours, in order of the graph, then what needs a Gather."""
    wanted = {c.weight.name: c for c in choices if c.rule.quantize.reorder or c.rule.sparsify.reorder}
    permuted = {choice.weight.name for choice in choices if choice.rule.sparsify.permute}
    folds: list[_Task] = []
    gathers: list[_Task] = []
    settled: set[str] = set()
    for name, choice in wanted.items():
        if any(choice in task.members for task in folds):
            continue
        try:
            channels = _channels(model, choice, settled, permuted)
        except Refused as why:
            if choice.rule.sparsify.reorder:
                gathers.append(_Task([choice], None, str(why), waits=name in settled or _wide(choice)))
            else:
                choice.notes.append(f"rows keep their order: {why}")
            continue
        makers = dict.fromkeys(touch.value.name or "" for touch in channels.touches if touch.role == "out")
        members = [wanted[maker] for maker in makers if maker in wanted and _alike(wanted[maker], choice, channels)]
        folds.append(_Task(members, channels, waits=any(_wide(member) for member in members)))
        settled |= set(makers)
    return folds + [task for task in gathers if _has_room(task.members[0])]


def _has_room(choice: Choice) -> bool:
    try:
        _check_alone(choice)
        room_behind(choice.weight.uses[0].node)
    except Refused as why:
        choice.notes.append(f"rows keep their order: {why}")
        return False
    return True


def _check_alone(choice: Choice) -> None:
    if len(choice.weight.uses) > 1 or choice.weight.uses[0].operator == "Gather":
        raise Refused("the weight is looked up or read by several nodes")
    if choice.weight.uses[0].operator == "DepthwiseConv":
        raise Refused("rows of a depthwise convolution belong to its inputs")


def _channels(model: ir.Model, choice: Choice, settled: set[str], permuted: set[str]) -> Channels:
    _check_alone(choice)
    channels = channels_of(model, *output_space(choice.weight.uses[0].node), "order")
    assert channels.count == choice.weight.rows
    for touch in channels.touches:
        name = touch.value.name or ""
        if touch.role == "out" and name in settled:
            raise Refused(f"'{name}' makes the same channels and orders them")
        if touch.role == "in" and name in permuted:
            raise Refused(f"'{name}' reads them in an order of its own (sparsify.permute)")
    return channels


def _alike(other: Choice, choice: Choice, channels: Channels) -> bool:
    """Whether both are ordered for the same runs of rows."""
    return other.weight.rows == channels.count and _runs(other) == _runs(choice)


def _runs(choice: Choice) -> tuple[bool, int]:
    """(whether rows are ordered for blocks, how many make a run)."""
    if choice.rule.sparsify.reorder:
        return True, choice.scheme.structure.block[0]
    meaning = choice.scheme.codec.meaning
    assert isinstance(meaning, TableValue | VectorValue)
    return False, meaning.scope.span


def _wide(choice: Choice) -> bool:
    """Whether blocks span several inputs, whose order earlier folds may change."""
    return choice.scheme.structure.block[1] > 1


def _start(task: _Task, power: Mapping[str, NDArray[np.float64]], executor: Executor | None) -> Callable[[], Found]:
    """Begin to look for an order."""
    blocks, size = _runs(task.members[0])
    matrices = [member.weight.matrix() for member in task.members]
    if not blocks:
        return partial(_order_for_codebooks, task.members, matrices, size)
    structures = [member.structure for member in task.members]
    each = [power.get(member.weight.name, np.ones(member.weight.cols)) for member in task.members]
    if executor is None:
        return partial(order_for_blocks, matrices, each, structures, size)
    return executor.submit(order_for_blocks, matrices, each, structures, size).result


def _order_for_codebooks(members: Sequence[Choice], matrices: Sequence[NDArray[np.float32]], size: int) -> Found:
    # Every member's spread counts alike, whatever the size of its values.
    sizes = [max(float(np.sqrt(np.mean(np.square(matrix)))), 1e-30) for matrix in matrices]
    order = row_order(np.concatenate([m / s for m, s in zip(matrices, sizes, strict=True)], 1), size)
    before, after = (sum(_error(member, matrix[o]) for member, matrix in zip(members, matrices, strict=True))
                     for o in (np.arange(len(order)), order))  # fmt: skip
    return order, before, after


def _error(choice: Choice, matrix: np.ndarray) -> float:
    """Relative squared error of rounding, whatever is pruned."""
    scheme = type(choice.scheme).of(choice.scheme.codec, scales=choice.scheme.scales)
    found = decode(encode(matrix, scheme)) - matrix
    return float(np.square(found, dtype=np.float64).sum()) / max(
        float(np.square(matrix, dtype=np.float64).sum()), 1e-30
    )


def _apply(
    model: ir.Model, task: _Task, found: Found, power: dict[str, NDArray[np.float64]], choices: Sequence[Choice]
) -> bool:
    order, before, after = found
    pays = after < before and (task.channels is not None or before - after >= GATHER_PAYS)
    if pays and task.channels is not None:
        _move_power(task.channels, order, power, choices)
        task.channels.reorder(model, order)
    elif pays:  # folds before this may have given the node constants of its own
        room_behind(task.members[0].weight.uses[0].node).reorder(model, order)
    for member in task.members:
        member.notes.append(f"rows {'reordered' if pays else 'keep their order'}: {_note(task, before, after)}")
    return pays


def _note(task: _Task, before: float, after: float) -> str:
    blocks = _runs(task.members[0])[0]
    if after >= before:
        return f"no other fits {'blocks' if blocks else 'codebooks'} better"
    if not blocks:
        return f"codebooks fit with {100 * (1 - after / before):.0f} % less error"
    gain = f"{100 * after:.1f} % of the outputs' power goes, {100 * before:.1f} % without"
    if task.channels is not None:
        return gain
    if before - after < GATHER_PAYS:
        return f"{gain}, which does not pay for a Gather behind it ({task.why})"
    return f"{gain}; a Gather puts the outputs back ({task.why})"


def _move_power(
    channels: Channels, order: Order, power: dict[str, NDArray[np.float64]], choices: Sequence[Choice]
) -> None:
    """What is known of the inputs of other weights moves with them."""
    readers = {touch.value.name: touch for touch in channels.touches if touch.role == "in"}
    for weight in (choice.weight for choice in choices):
        touch = readers.get(weight.name)
        if touch is None or weight.name not in power:
            continue
        each = np.broadcast_to(power[weight.name], (weight.rows, weight.cols))
        stored = (each.T if weight.flipped else each).reshape(weight.shape)
        moved = channels.moved(stored, touch.space, order)
        power[weight.name] = (moved.T if weight.flipped else moved.reshape(weight.rows, -1))[0].copy()
