"""The arena planner: nothing live overlaps, little is wasted, constants are stored once, small steps stay on one thread."""

from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest

from sparsec.codegen.plan import ALIGNMENT, COST_PER_THREAD, align, check_plan, live_ranges, make_plan
from sparsec.codegen.program import Arg, Buffer, KernelSpec, Program, Ref, Signature, Step
from sparsec.target import NAMED
from tests.codegen.programs import concat_program, transpose_program

TARGET = NAMED["arm"]


def _step(refs: list[Ref], *, units: int = 1, cost: int = 0, work: tuple[int, ...] = ()) -> Step:
    args = [Arg(f"a{i}", r.buffer.dtype, r.buffer.size, "in") for i, r in enumerate(refs)]
    args += [Arg(f"w{i}", "uint8", size, "work") for i, size in enumerate(work)]
    return Step(KernelSpec("copy", {}), Signature(tuple(args), units, cost), tuple(refs), "n", "Op")


def _random_program(seed: int, steps: int = 60) -> Program:
    """Random sizes and lives: each step writes one new buffer and reads up to three earlier ones."""
    rng = np.random.default_rng(seed)
    program = Program("random", TARGET)
    for index in range(steps):
        buffer = Buffer(f"b{index}", "float32", int(rng.integers(0, 5000)), "arena")
        count = min(len(program.buffers), int(rng.integers(0, 4)))
        recent = program.buffers[-int(rng.integers(1, 20)) :]
        reads = [recent[i] for i in rng.integers(0, len(recent), count)] if recent else []
        program.buffers.append(buffer)
        program.steps.append(_step([Ref(b) for b in [*reads, buffer]]))
    return program


@pytest.mark.parametrize("seed", range(12))
def test_live_buffers_never_overlap(seed: int) -> None:
    program = _random_program(seed)
    plan = make_plan(program)
    check_plan(program, plan)
    assert plan.arena_floor <= plan.arena_bytes <= 1.25 * plan.arena_floor
    # by brute force, byte by byte of cache lines
    lives = live_ranges(program)
    for step in range(len(program.steps)):
        lines = np.zeros(plan.arena_bytes // ALIGNMENT, int)
        for buffer, (first, last) in lives.items():
            if first <= step <= last:
                start = plan.arena[buffer] // ALIGNMENT
                lines[start : start + align(buffer.nbytes) // ALIGNMENT] += 1
        assert lines.max(initial=0) <= 1


def test_chain_needs_two_buffers() -> None:
    buffers = [Buffer(f"b{i}", "float32", 1000, "arena") for i in range(20)]
    program = Program("chain", TARGET, buffers=buffers)
    program.steps = [_step([Ref(a), Ref(b)]) for a, b in itertools.pairwise(buffers)]
    assert make_plan(program).arena_bytes == 2 * align(4000)


@pytest.mark.parametrize("shift", [0, ALIGNMENT])
def test_check_finds_an_overlap(shift: int) -> None:
    a, b = Buffer("a", "float32", 100, "arena"), Buffer("b", "float32", 100, "arena")
    program = Program("two", TARGET, buffers=[a, b], steps=[_step([Ref(a), Ref(b)])])
    plan = make_plan(program)
    with pytest.raises(AssertionError, match="live on the same bytes"):
        check_plan(program, dataclasses.replace(plan, arena={a: 0, b: shift}))
    with pytest.raises(AssertionError, match="outside the arena"):
        check_plan(program, dataclasses.replace(plan, arena={a: 0, b: plan.arena_bytes}))
    with pytest.raises(AssertionError, match="not aligned"):
        check_plan(program, dataclasses.replace(plan, arena={a: 1, b: 512}))


def test_check_finds_an_argument_that_leaves_its_buffer() -> None:
    a = Buffer("a", "float32", 100, "arena")
    program = Program("one", TARGET, buffers=[a], steps=[_step([Ref(a)])])
    plan = make_plan(program)
    check_plan(program, plan)
    program.steps[0].refs = (Ref(a, 4),)
    with pytest.raises(AssertionError, match="leaves a"):
        check_plan(program, plan)


def test_views_keep_their_buffer_alive() -> None:
    big, other, late = (Buffer(n, "float32", 64, "arena") for n in ("big", "other", "late"))
    program = Program("views", TARGET, buffers=[big, other, late])
    view = Step(
        KernelSpec("copy", {}), Signature((Arg("v", "float32", 32, "in"),), 1), (Ref(big, 128),), "view", "Slice"
    )
    program.steps = [_step([Ref(big)]), _step([Ref(other)]), view, _step([Ref(late)])]
    plan = make_plan(program)
    check_plan(program, plan)
    assert plan.arena[big] != plan.arena[other]
    assert plan.arena_bytes == 2 * 256


def test_equal_constants_are_stored_once_and_unused_ones_not() -> None:
    program, constant = concat_program()
    program.buffers.append(Buffer("unused", "float32", 9, "const", data=np.zeros(9, np.float32)))
    plan = make_plan(program)
    assert len(plan.stored) == 1
    assert len(plan.weights) == 2
    assert set(plan.weights.values()) == {0}
    assert plan.weights_bytes == align(constant.nbytes)


@pytest.mark.parametrize(
    ("cost", "units", "threads"),
    [
        (0, 100, 1),
        (COST_PER_THREAD, 100, 1),
        (2 * COST_PER_THREAD - 1, 100, 1),
        (2 * COST_PER_THREAD, 100, 2),
        (100 * COST_PER_THREAD, 7, 7),
        (10**12, 10**6, 256),
    ],
)
def test_threads_of_a_step(cost: int, units: int, threads: int) -> None:
    program = Program("p", TARGET, steps=[_step([], cost=cost, units=units)])
    assert make_plan(program).steps[0].threads == threads


def test_work_areas() -> None:
    program = Program("p", TARGET, steps=[_step([], work=(1, 100)), _step([], work=(70,)), _step([])])
    plan = make_plan(program)
    assert [s.work_offsets for s in plan.steps] == [(0, 64), (0,), ()]
    assert plan.work_bytes == 64 + 128


def test_empty_program() -> None:
    plan = make_plan(Program("empty", TARGET))
    assert (plan.arena_bytes, plan.weights_bytes, plan.work_bytes) == (0, 0, 0)


def test_deterministic() -> None:
    plans = [make_plan(_random_program(3)) for _ in range(2)]
    assert list(plans[0].arena.values()) == list(plans[1].arena.values())
    assert make_plan(transpose_program()).arena_bytes == 1024
