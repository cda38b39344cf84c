"""Halves between the kernels of a GPU: float32 buffers of the arena become float16 or bfloat16, and scratch becomes buffers.

Inputs, outputs and constants keep their types (a product lays its weights out as its kernel wants them). Nothing is converted
by steps of its own: kernels compute in float32, or multiply halves and add in float32, and round where they store.

What halves cannot hold stays float32:

* what a kernel reads or writes as another type than float32;
* what a kernel from TVM's Relax reads or writes: its sums are made where they are stored;
* angles, and all they are computed from: sine and cosine of a number with 11 bits are noise;
* squares that are summed up, and the sums (float16 only: they may be larger than 65504);
* results of arithmetic with constants that are too large (float16 only: -1e9 in a mask), and copies of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from sparsec.codegen.cuda.units import COUNTERS, STATUS, counters_of, device_signature
from sparsec.codegen.program import ITEMSIZE, Buffer, Program, Ref, Step

_LARGEST = {"float16": 65504.0, "bfloat16": 3.3895e38}
# Families that move values and do not change them, by name without "cuda.".
_MOVES = frozenset(["copy", "gather", "pad", "elements", "onehot", "trilu", "topk"])
_SUMS = frozenset(["Sum", "SumSquare", "L1", "L2", "Prod"])


def store_halves(program: Program) -> None:
    """Give the arena buffers of a program for a GPU the types they are stored in, and its steps the signatures of GPU kernels."""
    kept = _kept(program)
    for step in program.steps:
        if step.spec.family == "cuda.matmul" and _needs_floats(step, kept):
            step.spec = replace(step.spec, family="cuda.product")
    stored = program.target.storage
    for buffer in program.buffers:
        if buffer.kind == "arena" and buffer.dtype == "float32" and buffer not in kept:
            buffer.dtype = stored
    for step in program.steps:
        _restore(step, program)


def _needs_floats(step: Step, kept: set[Buffer]) -> bool:
    """Whether a product reads or makes what halves cannot hold: tensor cores multiply halves."""
    return any(ref.buffer in kept for ref in _outputs(step)) or any(
        ref.buffer in kept and ref.buffer.kind == "arena" for ref in _inputs(step)
    )


def stored_halves(program: Program) -> int:
    """Steps that round their results to the storage type."""
    return sum(any(ref.buffer.dtype == program.target.storage for ref in _outputs(step)) for step in program.steps)


def _restore(step: Step, program: Program) -> None:
    """Offsets of views, storage types and scratch of one step."""
    tensors = [a for a in step.signature.args if a.role != "work"]
    refs, types = [], []
    for arg, ref in zip(tensors, step.refs, strict=True):
        halved = ref.buffer.dtype != arg.dtype and arg.dtype == "float32"
        types.append(ref.buffer.dtype if halved else arg.dtype)
        refs.append(Ref(ref.buffer, ref.byte_offset // 4 * ITEMSIZE[ref.buffer.dtype]) if halved else ref)
    args = iter(types)
    signature = step.signature
    if types != [a.dtype for a in tensors]:
        step.spec = replace(step.spec, storage=tuple(types))
        signature = replace(
            signature, args=tuple(a if a.role == "work" else replace(a, dtype=next(args)) for a in signature.args)
        )
    signature = device_signature(signature)
    for arg in signature.args[len(tensors) :]:  # scratch, then the error code and the counters
        if arg.name in (STATUS, COUNTERS):
            refs.append(_status(program, program.steps.index(step) if arg.name == STATUS else len(program.steps)))
            continue
        scratch = Buffer(f"{step.node}.{arg.name}", arg.dtype, arg.size, "arena")
        program.buffers.append(scratch)
        refs.append(Ref(scratch))
    step.signature, step.refs = signature, tuple(refs)


def _status(program: Program, index: int) -> Ref:
    """Where step `index` notes an error; behind the last step the counters, which all steps share, since one runs after the other."""
    if program.status is None:
        counters = max(counters_of(step.signature) for step in program.steps)
        program.status = Buffer("status", "int32", len(program.steps) + counters, "arena")
        program.buffers.append(program.status)
    return Ref(program.status, index * ITEMSIZE["int32"])


def _kept(program: Program) -> set[Buffer]:
    """The float32 buffers that stay float32."""
    kept = {ref.buffer for step in program.steps for arg, ref in _operands(step) if arg.dtype != ref.buffer.dtype}
    kept |= {ref.buffer for step in program.steps if step.spec.family == "cuda.relax" for ref in step.refs}
    angles = {ref.buffer for step in program.steps if _ops(step) & {"Sin", "Cos"} for ref in _inputs(step)}
    for step in reversed(program.steps):  # and what they come from
        if any(ref.buffer in angles for ref in _outputs(step)):
            angles |= {ref.buffer for ref in _inputs(step)}
    kept |= angles
    largest = _LARGEST[program.target.storage]
    if largest > 1e30:
        return kept
    made = {ref.buffer: step for step in program.steps for ref in _outputs(step)}
    for step in program.steps:
        family = step.spec.family.removeprefix("cuda.")
        if family == "reduce" and step.spec.params["kind"] in (*_SUMS, "Mean"):
            if step.spec.params["kind"] in _SUMS:
                kept |= {ref.buffer for ref in _outputs(step)}
            kept |= {ref.buffer for ref in _inputs(step) if _squares(made.get(ref.buffer))}
        if any(value > largest for value in _constants(step)):
            kept |= {ref.buffer for ref in _outputs(step)}
        if family in _MOVES and any(ref.buffer in kept for ref in _inputs(step)):
            kept |= {ref.buffer for ref in _outputs(step)}
    return kept


def _operands(step: Step) -> Iterable[tuple[Any, Ref]]:
    return zip((a for a in step.signature.args if a.role != "work"), step.refs, strict=True)


def _inputs(step: Step) -> list[Ref]:
    return [ref for arg, ref in _operands(step) if arg.role == "in"]


def _outputs(step: Step) -> list[Ref]:
    return [ref for arg, ref in _operands(step) if arg.role == "out"]


def _chain(step: Step) -> list[Mapping[str, Any]]:
    """The operators of an elementwise step; none of another."""
    return list(step.spec.params["ops"]) if step.spec.family.removeprefix("cuda.") == "elementwise" else []


def _ops(step: Step) -> set[str]:
    return {op["op"] for op in _chain(step)}


def _constants(step: Step) -> list[float]:
    """Magnitudes of the finite constants of an elementwise step, of an array the largest."""
    values = [op["value"] for op in _chain(step) if op["op"] == "Const" and op["dtype"].startswith("float")]
    found = [np.asarray(value, np.float64) for value in values]
    if _chain(step):
        found += [r.buffer.data for r in _inputs(step) if r.buffer.data is not None and r.buffer.dtype == "float32"]
    sizes = [np.abs(array[np.isfinite(array)]) for array in found]
    return [float(size.max()) for size in sizes if size.size]


def _squares(step: Step | None) -> bool:
    """Whether the last operator of an elementwise step is a power or a product of a value with itself."""
    if step is None or not (chain := _chain(step)):
        return False
    last = chain[-1]
    return last["op"] == "Pow" or (last["op"] == "Mul" and len(set(last["args"])) == 1)
