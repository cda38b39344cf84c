"""One ONNX node through TVM's Relax: imported, legalised to PrimFuncs, and compiled into one object with our kernel ABI; or, for a
GPU, given threads by dlight and cut into kernels.

Like tvm_adapter.py only imported in worker processes. The code is correct but not tuned: kernels/relax.py and
cuda/kernels/relax.py take only what no kernel of ours does.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import onnx
import tvm
import tvm_ffi
from tvm import relax, s_tir, tirx
from tvm.s_tir.dlight import gpu as dlight
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparsec.codegen import tvm_adapter
from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target

_ALIGNMENT = 64
_GPU_THREADS = 128  # of a block
# The calling convention of a function that runs on the device (cuda/source.py).
_DEVICE_KERNEL = 2


class _Workspace:
    """Offsets of the temporaries; nothing is reused: the long tail is small."""

    def __init__(self) -> None:
        self.size = 0

    def place(self, shape: Sequence[Any], dtype: str) -> int:
        """Byte offset of a new tensor."""
        at = self.size
        nbytes = prod(int(n) for n in shape) * ITEMSIZE[dtype]
        self.size += -(-nbytes // _ALIGNMENT) * _ALIGNMENT
        return at


def legalised(model: bytes, *, fused: bool = False) -> Any:
    """The node as an IRModule: `main` allocates tensors and calls PrimFuncs, `fused` into as few as Relax can make of them."""
    from tvm.relax.frontend.onnx import from_onnx

    t = relax.transform
    passes = [
        t.DecomposeOpsForInference(),
        t.LegalizeOps(),
        t.FoldConstant(),
        *([t.AnnotateTIROpPattern(), t.FuseOps(), t.FuseTIR()] if fused else []),
        t.DeadCodeElimination(),
        t.ToNonDataflow(),
        t.RemovePurityChecking(),
        t.CallTIRRewrite(),
    ]
    with tvm.target.Target({"kind": "llvm"}):
        return tvm.ir.transform.Sequential(passes)(from_onnx(onnx.load_from_string(model)))


def compile_node(
    model: bytes, ins: Sequence[Arg], outs: Sequence[Arg], target: Target, symbol: str, object_path: str
) -> int:
    """Compile a model of one node to `symbol(ins..., outs..., work, lo, hi)`; returns the bytes of work it needs.

    Raises ValueError when Relax makes something of the node that is no sequence of PrimFunc calls.
    """
    module = legalised(model)
    calls, tensors = _calls(module, [a.name for a in ins], [a.name for a in outs])
    work = _Workspace()
    places = {
        name: work.place(shape, dtype) for name, (shape, dtype) in tensors.items() if name.startswith("temporary")
    }
    functions: dict[str, Any] = {}
    bodies: list[tuple[str, list[str], list[int]]] = []  # symbol, operands, offsets of its own temporaries
    for index, (function, operands) in enumerate(calls):
        name = f"{symbol}_{index}"
        functions[name], inner = _with_pointers(function, name)
        bodies.append((name, operands, [work.place(b.shape, str(b.dtype)) for b in inner]))

    signature = Signature((*ins, *outs, Arg("work", "uint8", max(1, work.size), "work")), units=1)

    def emit(k: tvm_adapter.KernelBuilder) -> None:
        def pointer(operand: str) -> Any:
            if operand in places:
                return T.address_of(k.arg("work")[places[operand]])
            return T.address_of(k.arg(operand)[0])

        with T.If(k.lo < k.hi), T.Then():
            for name, operands, inner in bodies:
                extra = [T.address_of(k.arg("work")[at]) for at in inner]
                T.evaluate(T.call_extern("int32", name, *(pointer(o) for o in operands), *extra))

    functions[symbol] = tvm_adapter.build_prim_func(symbol, signature, target, emit)
    tvm_adapter.compile_functions(functions, target, object_path)
    return work.size


def _calls(
    module: Any, ins: Sequence[str], outs: Sequence[str]
) -> tuple[list[tuple[Any, list[str]]], dict[str, tuple[Any, str]]]:
    """(PrimFunc, operand names) in order, and (shape, dtype) of every allocated tensor; results are named like `outs`."""
    main = module["main"]
    if len(main.params) != len(ins):
        raise ValueError(f"Relax made {len(main.params)} inputs of {len(ins)}")
    values: dict[Any, Any] = dict(zip(main.params, ins, strict=True))
    tensors: dict[str, tuple[Any, str]] = {}
    calls: list[tuple[Any, list[str]]] = []

    def value_of(expr: Any) -> Any:
        if isinstance(expr, relax.Var):
            return values[expr]
        if isinstance(expr, relax.Tuple):
            return [value_of(e) for e in expr.fields]
        if isinstance(expr, relax.TupleGetItem):
            return value_of(expr.tuple_value)[expr.index]
        raise ValueError(f"Relax made a {type(expr).__name__} of the node: {str(expr)[:200]}")

    for block in main.body.blocks:
        for binding in block.bindings:
            expr = binding.value
            if not isinstance(expr, relax.Call):
                values[binding.var] = value_of(expr)
            elif isinstance(expr.op, tvm.ir.GlobalVar):
                calls.append((module[expr.op], [value_of(a) for a in expr.args]))
            elif expr.op.name == "relax.builtin.alloc_tensor":
                name = f"temporary{len(tensors)}"
                tensors[name] = (binding.var.ty.shape, str(binding.var.ty.dtype))
                values[binding.var] = name
            else:
                raise ValueError(f"Relax has no kernel for the node: it calls {expr.op.name}")
    result = value_of(main.body.body)
    results = result if isinstance(result, list) else [result]
    renamed = dict(zip(results, outs, strict=True))
    if len(renamed) != len(outs) or not set(results) <= set(tensors):
        raise ValueError("Relax returns one of the inputs, or a tensor twice")
    for old, new in renamed.items():
        tensors[new] = tensors.pop(old)
    return [(f, [renamed.get(o, o) for o in operands]) for f, operands in calls], tensors


def _with_pointers(function: Any, name: str) -> tuple[Any, list[Any]]:
    """The PrimFunc with plain pointer parameters, and the buffers of its own that became parameters too (they may be
    large, and what stays inside lies on the stack)."""
    root = function.body.block
    inner = list(root.alloc_buffers)
    body = s_tir.SBlockRealize(
        function.body.iter_values,
        function.body.predicate,
        s_tir.SBlock(root.iter_vars, root.reads, root.writes, root.name_hint, root.body, root.init, []),
    )
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(name)
        T.func_attr({"global_symbol": name, "tirx.noalias": True})
        buffers = [*function.params, *inner]
        handles = [T.arg(f"p{i}", T.handle(str(b.dtype))) for i, b in enumerate(buffers)]
        T.func_ret(tvm.ir.PrimType("int32"))
        for buffer, handle in zip(buffers, handles, strict=True):
            T.add_to_parent(tirx.DeclBuffer(buffer, data=handle))
        T.add_to_parent(body)
        T.Return(T.int32(0))
    return ib.get(), inner


@dataclass(frozen=True)
class GpuKernel:
    """A loop nest with threads of its own. operands: (tensor, buffer) of what it only reads, then of what it writes."""

    nest: Any
    reads: tuple[tuple[str, Any], ...]
    writes: tuple[tuple[str, Any], ...]
    extents: dict[str, int]
    """"blockIdx.x" and "threadIdx.x" -> how many."""


def gpu_kernels(model: bytes) -> tuple[list[GpuKernel], dict[str, tuple[str, int]]]:
    """A model of one node as kernels in order, and (dtype, elements) of the tensors between them and of the outputs.

    Raises ValueError when Relax makes something of the node that is no sequence of PrimFunc calls, or dlight gives it no threads.
    """
    graph = onnx.load_from_string(model).graph
    calls, tensors = _calls(legalised(model, fused=True), [i.name for i in graph.input], [o.name for o in graph.output])
    found = {name: (str(dtype), prod(int(n) for n in shape)) for name, (shape, dtype) in tensors.items()}
    kernels: list[GpuKernel] = []
    for function, operands in calls:
        scheduled = _with_threads(function)
        root = scheduled.body.block
        names = dict(zip(scheduled.params, operands, strict=True))
        for buffer in root.alloc_buffers:
            names[buffer] = f"temporary{len(found)}"
            found[names[buffer]] = (str(buffer.dtype), prod(int(n) for n in buffer.shape))
        nests = root.body.seq if isinstance(root.body, tirx.SeqStmt) else [root.body]
        kernels += [_kernel(nest, names) for nest in nests]
    used = {name for k in kernels for name, _ in (*k.reads, *k.writes)}
    return kernels, {name: tensor for name, tensor in found.items() if name in used}


def _with_threads(function: Any) -> Any:
    """The PrimFunc with every loop nest bound to blocks and threads: dlight's rule that takes everything, one element a thread.

    Its rules for products and sums need passes that cuda/source.py leaves out, or crash (tensor cores).
    """
    target = tvm.target.Target({"kind": "cuda", "max_num_threads": _GPU_THREADS})
    with target:
        schedule = dlight.Fallback().apply(function, target, False)
    if schedule is None:
        raise ValueError(f"dlight cannot schedule {str(function)[:200]}")
    (scheduled,) = schedule.mod.functions.values()
    return scheduled


def _kernel(nest: Any, names: dict[Any, str]) -> GpuKernel:
    extents: dict[str, int] = {}
    read: set[Any] = set()
    written: set[Any] = set()

    def visit_for(loop: Any) -> None:
        if loop.kind == tirx.ForKind.THREAD_BINDING:
            extents[str(loop.thread_binding.thread_tag)] = int(loop.extent)

    visits = [
        (tirx.For, visit_for),
        (tvm.ir.TensorLoad, lambda load: read.add(load.source)),
        (tirx.BufferStore, lambda store: written.add(store.buffer)),
    ]
    tvm_ffi.structural_walk(nest, visits, order="post")
    if set(extents) != {"blockIdx.x", "threadIdx.x"}:
        raise ValueError(f"dlight gave a loop no threads: {str(nest)[:200]}")
    operands = [(name, buffer) for buffer, name in names.items() if buffer in read | written]
    return GpuKernel(
        nest,
        tuple(o for o in operands if o[1] not in written),
        tuple(o for o in operands if o[1] in written),
        extents,
    )


def gpu_function(model: bytes, index: int, symbol: str) -> Any:
    """Kernel `index` of the node as `void symbol(what it reads..., what it writes...)`, a function of the device."""
    kernel = gpu_kernels(model)[0][index]
    buffers = [buffer for _, buffer in (*kernel.reads, *kernel.writes)]
    body = s_tir.SBlockRealize([], True, s_tir.SBlock([], [], [], "root", kernel.nest))
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True, "calling_conv": _DEVICE_KERNEL})
        handles = [T.arg(f"p{i}", T.handle(str(b.dtype))) for i, b in enumerate(buffers)]
        for buffer, handle in zip(buffers, handles, strict=True):
            T.add_to_parent(tirx.DeclBuffer(buffer, data=handle))
        T.add_to_parent(body)
    return ib.get()
