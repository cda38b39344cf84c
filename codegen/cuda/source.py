"""Kernel specs -> CUDA C. TVM prints the kernel; what it would put before it is replaced by device.cuh.

A family of codegen/cuda/kernels has `signature(params, target)`, `launch(params, target)` and `build(params, k)`; families of the CPU
go through generic.py.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparsec.codegen.cuda.builder import CudaBuilder
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.units import device_signature
from sparsec.codegen.program import FROM_DATA, KernelSpec, Signature, family_module
from sparsec.target import Target

_AXES = ("x", "y", "z")
_ANY_SIZE = 2**31 - 1
# The calling convention of a function that runs on the device: TVM then prints `extern "C" __global__`.
_DEVICE_KERNEL = 2


@dataclass(frozen=True)
class KernelSource:
    """CUDA C of one kernel (it includes device.cuh), how it is started, and the signature whose arguments it takes in order."""

    symbol: str
    text: str
    launch: Launch
    signature: Signature


def cuda_source(spec: KernelSpec, target: Target, symbol: str = "kernel") -> KernelSource:
    """The CUDA C of a kernel called `symbol`. Runs TVM: in a process of its own where that matters (worker.py)."""
    if not spec.family.startswith("cuda."):
        generic = importlib.import_module("sparsec.codegen.cuda.generic")
        made: KernelSource = generic.generic_source(spec, target, symbol)
        return made
    module = importlib.import_module(family_module(spec.family))
    signature: Signature = module.signature(spec.params, target)
    launch: Launch = module.launch(spec.params, target)
    stored = device_signature(stored_signature(signature, spec.storage))
    if hasattr(module, "build_function"):  # of families that do not write with a builder (the Relax long tail)
        function = module.build_function(spec.params, symbol)
    else:
        function = device_function(symbol, stored, launch, target, lambda k: module.build(spec.params, k))
    return KernelSource(symbol, device_text(function, target), launch, stored)


def stored_signature(signature: Signature, storage: Sequence[str]) -> Signature:
    """The signature with the dtypes arguments are stored in (`KernelSpec.storage`: of the in and out arguments)."""
    if not storage:
        return signature
    tensors = [a for a in signature.args if a.role != "work"]
    assert len(tensors) == len(storage), f"{len(storage)} storage types for {len(tensors)} arguments"
    args = [replace(a, dtype=dtype) for a, dtype in zip(tensors, storage, strict=True)]
    return replace(signature, args=(*args, *(a for a in signature.args if a.role == "work")))


def device_function(
    symbol: str, signature: Signature, launch: Launch, target: Target, emit: Callable[[CudaBuilder], None]
) -> Any:
    """A PrimFunc of one thread's program, parameters in the order of the signature."""
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True, "calling_conv": _DEVICE_KERNEL})
        # A bool is one byte of 0 or 1, as on the CPU.
        stored = {a.name: "uint8" if a.dtype == "bool" else a.dtype for a in signature.args}
        handles = [(a, T.arg(a.name + "_p", T.handle(stored[a.name]))) for a in signature.args]
        buffers = {
            a.name: T.decl_buffer((_ANY_SIZE if a.size == FROM_DATA else max(1, a.size),), stored[a.name], data=h)
            for a, h in handles
        }
        with ExitStack() as stack:
            block = [
                stack.enter_context(T.launch_thread(f"blockIdx.{x}", n))
                for x, n in zip(_AXES, launch.grid, strict=True)
            ]
            thread = [
                stack.enter_context(T.launch_thread(f"threadIdx.{x}", n))
                for x, n in zip(_AXES, launch.block, strict=True)
            ]
            emit(CudaBuilder(target, buffers, launch, tuple(block), tuple(thread)))
    return ib.get()


def _passes(target: Any) -> Sequence[Any]:
    # As tvm_adapter's, without host and device being split: that would sort the parameters anew.
    t, s = tirx.transform, s_tir.transform
    return [
        t.BindTarget(target),
        s.CanonicalizeLoop(),
        s.LowerInitBlock(),
        s.PlanAndUpdateBufferAllocationLocation(),
        s.ConvertBlocksToOpaque(),
        s.LowerMatchBuffer(),
        s.StmtSimplify(),
        s.LowerOpaqueBlock(),
        t.FlattenBuffer(),
        t.NarrowDataType(32),
        t.VectorizeLoop(),
        t.StorageRewrite(),
        t.UnrollLoop(),
        t.StmtSimplify(),
        t.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        t.CommonSubexprElim(),
        t.LowerIntrin(),
    ]


def device_text(function: Any, target: Target) -> str:
    """CUDA C of a device function."""
    bound = tvm.target.Target({"kind": "cuda", "arch": target.gpu})
    module = tvm.IRModule({str(function.attrs["global_symbol"]): function})
    module = tvm.ir.transform.Sequential(_passes(bound))(module)
    text = str(tvm.get_global_func("target.build.cuda")(module, bound).inspect_source("cuda"))
    start = text.index('extern "C" __global__')
    body = text[start:]
    first, _, rest = body.partition("\n")
    assert first.endswith(";"), "TVM declares the kernel before it defines it"
    # Without a least number of blocks the compiler would rather spill registers than keep one block on a multiprocessor.
    rest = re.sub(r"__launch_bounds__\((\d+)\)", r"__launch_bounds__(\1, 1)", rest, count=1)
    return '#include "device.cuh"\n\n' + rest.strip() + "\n"
