"""One ONNX node through TVM's Relax: imported, legalised to PrimFuncs, compiled into one object with our kernel ABI.

Beside tvm_adapter.py the only file that imports tvm, and like it only imported in worker processes. The code is correct but not
tuned: kernels/relax.py takes only what no kernel of ours does.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import onnx
import tvm
from tvm import relax, s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparsec.codegen import tvm_adapter
from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target

_ALIGNMENT = 64


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


def legalised(model: bytes) -> Any:
    """The node as an IRModule: `main` allocates tensors and calls PrimFuncs."""
    from tvm.relax.frontend.onnx import from_onnx

    t = relax.transform
    passes = [
        t.DecomposeOpsForInference(),
        t.LegalizeOps(),
        t.FoldConstant(),
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
