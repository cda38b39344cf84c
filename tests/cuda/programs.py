"""Runs GPU kernels and whole programs for a GPU in the simulator, kernel by kernel."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsec.cache import entry, used, writing
from sparsec.codegen.build import kernel_key
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.lower import lower
from sparsec.codegen.program import ITEMSIZE, KernelSpec, Program, family_module
from sparsec.target import Target, resolve_target
from tests.cuda.simulator import simulate

Array = np.ndarray[Any, Any]
ONE_ORDER = ("ascending",)
"""Threads in one order: for whole models, whose kernels are tested one by one with all."""


def source_of(spec: KernelSpec, target: Target) -> tuple[str, Launch]:
    """CUDA C of a kernel called `kernel`, and its launch; kept in the cache, since TVM takes a while."""
    path = entry("cuda-tests", kernel_key(spec, target)).with_suffix(".json")
    if not used(path):
        sys.modules.setdefault("torch", None)  # type: ignore[arg-type]  TVM would import it
        from sparsec.codegen.cuda.source import cuda_source

        if sys.modules["torch"] is None:
            del sys.modules["torch"]
        made = cuda_source(spec, target, "kernel")
        text = [made.text, made.launch.grid, made.launch.block, made.launch.shared_bytes]
        with writing(path) as file:
            file.write_text(json.dumps(text))
    source, grid, block, shared = json.loads(path.read_text())
    return source, Launch(tuple(grid), tuple(block), shared)


def numpy_type(dtype: str) -> np.dtype[Any]:
    """The element type of a buffer in numpy."""
    return np.dtype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype)


def run_kernel(spec: KernelSpec, ins: Sequence[Array], storage: Sequence[str], target: str = "cuda") -> list[Array]:
    """One kernel of a GPU family: its outputs, in the types they are stored in (`storage`: of all arguments); they start as zeros."""
    machine = resolve_target(target)
    signature = importlib.import_module(family_module(spec.family)).signature(spec.params, machine)
    arrays = list(ins) + [np.zeros(a.size, a.dtype) for a in signature.args if a.role == "out"]
    arrays = [a.reshape(-1).astype(numpy_type(dtype)) for a, dtype in zip(arrays, storage, strict=True)]
    text, launch = source_of(spec, machine)
    return simulate(text, "kernel", launch, arrays)[len(ins) :]


def run_gpu_program(
    program: Program, feed: Mapping[str, Array], *, orders: Sequence[str] | None = None
) -> dict[str, Array]:
    """Outputs by name. Arena and outputs start as garbage, but for the error codes, which must stay zero."""
    memory: dict[int, Array] = {}
    for buffer in program.buffers:
        raw = np.full(buffer.nbytes, 0xFF, np.uint8)
        if buffer.kind == "const":
            assert buffer.data is not None
            raw[:] = np.ascontiguousarray(buffer.data).reshape(-1).view(np.uint8)
        elif buffer.kind == "input":
            raw[:] = np.ascontiguousarray(feed[program.inputs[buffer.index].name]).reshape(-1).view(np.uint8)
        elif buffer is program.status:
            raw[:] = 0
        memory[id(buffer)] = raw
    for step in program.steps:
        spans = [
            memory[id(ref.buffer)][ref.byte_offset : ref.byte_offset + arg.size * ITEMSIZE[arg.dtype]]
            for arg, ref in zip(step.signature.args, step.refs, strict=True)
        ]
        text, launch = source_of(step.spec, program.target)
        views = [span.view(numpy_type(arg.dtype)) for arg, span in zip(step.signature.args, spans, strict=True)]
        after = simulate(text, "kernel", launch, views, **({} if orders is None else {"orders": orders}))
        for arg, span, result in zip(step.signature.args, spans, after, strict=True):
            if arg.role == "out":
                span[:] = result.view(np.uint8)
            else:
                assert result.tobytes() == span.tobytes(), f"{step.spec.family} wrote to its input {arg.name}"
    if program.status is not None:
        codes = memory[id(program.status)].view(np.int32)
        names = [step.node for step in program.steps] + ["counters"] * (codes.size - len(program.steps))
        assert not codes.any(), [(names[i], int(codes[i])) for i in np.flatnonzero(codes)]
    found: dict[str, Array] = {}
    for buffer in program.buffers:
        if buffer.kind == "output":
            info = program.outputs[buffer.index]
            found[info.name] = memory[id(buffer)].view(numpy_type(info.dtype)).reshape(info.shape)
    return {info.name: found[info.name] for info in program.outputs}


def lower_and_simulate(
    model: ir.Model, feed: Mapping[str, Array], target: str = "cuda", *, orders: Sequence[str] | None = None
) -> list[Array]:
    """A model lowered for a GPU and run in the simulator; outputs in order."""
    program = lower(model, resolve_target(target), "test")
    results = run_gpu_program(program, feed, orders=orders)
    return [results[info.name] for info in program.outputs]
