"""Measure steps of a program where they will run: alone, through the runtime, on this machine. Results are cached.

The key is the kernels (specs and the sources of their families), the sizes of their arguments, the machine and the number of
threads; weights and inputs matter only through them. Repeated runs find weights in the cache if they fit it, as a small model's layers do.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sparsec.cache import digest, load, store
from sparsec.codegen.build import kernel_key
from sparsec.codegen.bundle import build_loadable
from sparsec.codegen.machine import machine_key
from sparsec.codegen.program import Buffer, IoInfo, Program, Ref, Step
from sparsec.errors import TargetError
from sparsec.runtime import Session
from sparsec.target import Target, host_target

__all__ = ["alone", "check_tunable", "measured_seconds"]

_SECONDS = 0.2
_LEAST_ROUNDS = 5


def check_tunable(target: Target) -> None:
    """Raise TargetError unless kernels for `target` can be timed on this machine."""
    if target.gpu:
        raise TargetError(
            f"tuning measures kernels of the processor; for target '{target.name}' the first kernel that takes a node is used: "
            "compile without --tune"
        )
    host = host_target()
    if target.arch != host.arch or not set(target.features) <= set(host.features):
        raise TargetError(
            f"tuning measures kernels, and this machine ({host.arch}, {'+'.join(host.features)}) cannot run those of target "
            f"'{target.name}' ({target.arch}, {'+'.join(target.features)}); tune on that machine, or without --tune"
        )


def measured_seconds(steps: Sequence[Step], target: Target, threads: int = 1) -> float:
    """Least seconds of a run of `steps`, each after the one before it, on `threads` threads.

    Raises TargetError when this machine cannot run `target`, ToolchainError.
    """
    check_tunable(target)
    key = digest(machine_key(), str(threads), *(f"{kernel_key(s.spec, target)} {s.signature}" for s in steps))
    found = load("times", key)
    if found is not None and isinstance(found[0].get("seconds"), float):
        return float(found[0]["seconds"])
    seconds = _measure(alone(steps, target), threads)
    store("times", key, {"seconds": seconds}, {})
    return seconds


def alone(steps: Sequence[Step], target: Target) -> Program:
    """A program of these steps only: what they read and do not write becomes its inputs, what they write its outputs."""
    program = Program("tuned", target)
    mapped: dict[Buffer, Buffer] = {}
    for step in steps:
        roles = [arg.role for arg in step.signature.args if arg.role != "work"]
        for ref, role in zip(step.refs, roles, strict=True):
            if ref.buffer in mapped:
                continue
            old, infos = ref.buffer, program.inputs if role == "in" else program.outputs
            name = f"b{len(mapped)}"
            if old.kind == "const":
                mapped[old] = Buffer(name, old.dtype, old.size, "const", data=old.data)
            else:
                kind = "input" if role == "in" else "output"
                mapped[old] = Buffer(name, old.dtype, old.size, kind, len(infos))  # type: ignore[arg-type]
                infos.append(IoInfo(name, old.dtype, (old.size,)))
            program.buffers.append(mapped[old])
    for step in steps:
        refs = tuple(Ref(mapped[ref.buffer], ref.byte_offset) for ref in step.refs)
        program.steps.append(replace(step, refs=refs))
    return program


def _measure(program: Program, threads: int) -> float:
    loadable = build_loadable(program)
    rng = np.random.default_rng(0)
    feed = {}
    for info in program.inputs:
        dtype = np.dtype(info.dtype)
        # Integers may be indices: zeros are valid for any table.
        floats = rng.standard_normal(info.shape) if dtype.kind == "f" else np.zeros(info.shape)
        feed[info.name] = floats.astype(dtype)
    with Session(loadable.library, loadable.weights, threads=threads) as session:
        session.run(feed)
        best, rounds, start = float("inf"), 0, time.perf_counter()
        while rounds < _LEAST_ROUNDS or time.perf_counter() - start < _SECONDS:
            best = min(best, sum(step.ns for step in session.profile(feed, repeat=1)))
            rounds += 1
    return best * 1e-9
