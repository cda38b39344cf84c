"""Memory and threads of a program: where every buffer lies, how much scratch a thread needs, which steps are spread.

Arena buffers are packed by offset: a buffer is live from the first to the last step that names it, and two buffers share bytes
only when their lives do not meet. The packing is greedy best fit (Pisarchyk and Lee, "Efficient memory management for deep neural
net inference", 2020, greedy by size), tried in a few orders; `arena_floor` is the bound no packing can beat.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from sparsec.codegen.cost import operations_at_peak
from sparsec.codegen.intern import Interned
from sparsec.codegen.program import Buffer, Program, Step
from sparsec.target import Target

ALIGNMENT = 64
"""Bytes; a cache line. The runtime aligns the arena, the work areas and the weights to the same."""

COST_PER_THREAD = 1 << 17
"""A step uses one more thread for every so many `operations_at_peak`, or bytes that it writes: a few microseconds of work, which is
what handing a range to a spinning worker and waiting for it costs several times over."""

MAX_THREADS = 256
"""Of a step; spc_runtime.h has the same limit for a session."""


@dataclass(frozen=True)
class StepPlan:
    """How one step runs: on at most `threads` threads, its work arguments at these offsets of the thread's work area."""

    threads: int
    work_offsets: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """Offsets in bytes of every arena and const buffer that a step names, and the sizes that follow."""

    arena: Mapping[Buffer, int]
    arena_bytes: int
    arena_floor: int
    weights: Mapping[Buffer, int]
    stored: Sequence[tuple[int, Buffer]]  # what the payload holds: (offset, buffer), equal constants once
    weights_bytes: int
    work_bytes: int
    steps: Sequence[StepPlan]


def align(size: int) -> int:
    """`size` rounded up to ALIGNMENT."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def make_plan(program: Program) -> Plan:
    """Place all buffers of `program` and choose threads for its steps."""
    lives = live_ranges(program)
    arena, arena_bytes = _pack(lives)
    weights, stored, weights_bytes = _place_constants(program)
    steps = tuple(_plan_step(step, program.target) for step in program.steps)
    work = max((_work_end(step, plan) for step, plan in zip(program.steps, steps, strict=True)), default=0)
    return Plan(arena, arena_bytes, _floor(lives), weights, stored, weights_bytes, work, steps)


def live_ranges(program: Program) -> dict[Buffer, tuple[int, int]]:
    """Arena buffer -> first and last step that name it, in order of first use."""
    lives: dict[Buffer, tuple[int, int]] = {}
    for index, step in enumerate(program.steps):
        for ref in step.refs:
            if ref.buffer.kind == "arena":
                lives[ref.buffer] = (lives.get(ref.buffer, (index, index))[0], index)
    if program.status is not None:
        lives[program.status] = (0, len(program.steps) - 1)
    return lives


def check_plan(program: Program, plan: Plan) -> None:
    """Assert what the plan promises: aligned, inside the arena, and no two live buffers on the same bytes."""
    lives = live_ranges(program)
    assert set(lives) == set(plan.arena), "the plan and the program name different arena buffers"
    placed = sorted(((plan.arena[b], b) for b in lives), key=lambda entry: entry[0])
    for at, (offset, buffer) in enumerate(placed):
        assert offset % ALIGNMENT == 0, f"{buffer.name} at {offset} is not aligned"
        assert offset + buffer.nbytes <= plan.arena_bytes, f"{buffer.name} ends outside the arena"
        for other_offset, other in placed[at + 1 :]:
            if other_offset >= offset + buffer.nbytes:
                break
            (a, b), (c, d) = lives[buffer], lives[other]
            assert other.nbytes == 0 or b < c or d < a, f"{buffer.name} and {other.name} are live on the same bytes"
    for step in program.steps:
        for ref, arg in zip(step.refs, (a for a in step.signature.args if a.role != "work"), strict=True):
            needed = Buffer(arg.name, arg.dtype, arg.size, "arena").nbytes
            assert 0 <= ref.byte_offset <= ref.buffer.nbytes - needed, (
                f"{step.node}: {arg.name} leaves {ref.buffer.name}"
            )


def _pack(lives: Mapping[Buffer, tuple[int, int]]) -> tuple[dict[Buffer, int], int]:
    order = list(lives)
    by_use = {buffer: index for index, buffer in enumerate(order)}
    keys: list[Callable[[Buffer], tuple[int, ...]]] = [
        lambda b: (-b.nbytes, by_use[b]),
        lambda b: (-b.nbytes * (lives[b][1] - lives[b][0] + 1), by_use[b]),
        lambda b: (lives[b][0] - lives[b][1], -b.nbytes, by_use[b]),
        lambda b: (by_use[b],),
    ]
    packings = [_pack_in_order(sorted(order, key=key), lives) for key in keys]
    return min(packings, key=lambda packing: packing[1])


def _pack_in_order(order: Iterable[Buffer], lives: Mapping[Buffer, tuple[int, int]]) -> tuple[dict[Buffer, int], int]:
    """Place each buffer in the tightest gap between the placed buffers it is live together with."""
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last; sorted by offset
    offsets: dict[Buffer, int] = {}
    total = 0
    for buffer in order:
        size, (first, last) = align(buffer.nbytes), lives[buffer]
        best, best_gap, cursor = -1, 0, 0
        for offset, end, other_first, other_last in placed:
            if other_last < first or last < other_first:
                continue
            gap = offset - cursor
            if gap >= size and (best < 0 or gap < best_gap):
                best, best_gap = cursor, gap
            cursor = max(cursor, end)
        at = cursor if best < 0 else best
        offsets[buffer] = at
        placed.append((at, at + size, first, last))
        placed.sort()
        total = max(total, at + size)
    return offsets, total


def _floor(lives: Mapping[Buffer, tuple[int, int]]) -> int:
    changes: dict[int, int] = {}
    for buffer, (first, last) in lives.items():
        changes[first] = changes.get(first, 0) + align(buffer.nbytes)
        changes[last + 1] = changes.get(last + 1, 0) - align(buffer.nbytes)
    most = now = 0
    for step in sorted(changes):
        now += changes[step]
        most = max(most, now)
    return most


def _place_constants(program: Program) -> tuple[dict[Buffer, int], list[tuple[int, Buffer]], int]:
    """Constants in order of first use, as the run streams through them; equal bytes are stored once."""
    offsets: dict[Buffer, int] = {}
    stored: list[tuple[int, Buffer]] = []
    known: Interned[int] = Interned()
    total = 0
    for step in program.steps:
        for ref in step.refs:
            buffer = ref.buffer
            if buffer.kind != "const" or buffer in offsets:
                continue
            assert buffer.data is not None, f"const buffer {buffer.name} has no data"
            assert buffer.data.nbytes == buffer.nbytes, f"const buffer {buffer.name} has data of another size"
            place = known.find(buffer.data)
            if place is None:
                place = total
                known.add(buffer.data, place)
                stored.append((total, buffer))
                total += align(buffer.nbytes)
            offsets[buffer] = place
    return offsets, stored, total


def _plan_step(step: Step, target: Target) -> StepPlan:
    signature, operations = step.signature, operations_at_peak(step, target)
    args = {role: [a for a in signature.args if a.role == role] for role in ("in", "out", "work")}
    moved = sum(Buffer(a.name, a.dtype, a.size, "arena").nbytes for a in args["out"])
    threads = max(1, min(int(max(operations, moved)) // COST_PER_THREAD, signature.units, MAX_THREADS))
    offsets, end = [], 0
    for arg in args["work"]:
        offsets.append(end)
        end += align(Buffer(arg.name, arg.dtype, arg.size, "arena").nbytes)
    return StepPlan(threads, tuple(offsets))


def _work_end(step: Step, plan: StepPlan) -> int:
    args = [a for a in step.signature.args if a.role == "work"]
    if not args:
        return 0
    last = args[-1]
    return plan.work_offsets[-1] + align(Buffer(last.name, last.dtype, last.size, "arena").nbytes)
