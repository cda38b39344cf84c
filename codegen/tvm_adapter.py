"""Beside relax_adapter.py the only file that imports tvm: building, lowering and compiling one kernel.

Kernels are written with TVM's IR builder (`k.T`) through `KernelBuilder`, lowered by a pass list of our own that leaves out
TVM's packed calling convention, and compiled by LLVM to an object with plain C functions.
TVM can end the process with a segmentation fault, so this file is only imported in worker processes (see worker.py).
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import tvm
from tvm import s_tir, tirx
from tvm.script.ir_builder import IRBuilder
from tvm.tirx.script import builder as T

from sparsec.codegen.program import FROM_DATA, Arg, Signature
from sparsec.target import Target

TVM_VERSION = "0.27.0.post1"
if tvm.__version__ not in (TVM_VERSION, TVM_VERSION.removesuffix(".post1")):
    raise ImportError(f"sparsec needs apache-tvm {TVM_VERSION}, found {tvm.__version__}: its API changes every release")

# LLVM code generation only returns 0: a kernel that may fail stores its code here, and a wrapper returns it.
_STATUS, _BODY = "status", "_body"
# Extent of a buffer whose size is data; indices are int32.
_ANY_SIZE = 2**31 - 1

Expr = Any  # tvm.tirx expression; TVM ships no type stubs


class KernelBuilder:
    """What a kernel's `build` function writes with.

    `T` is TVM's IR builder namespace (T.serial, T.If, T.float32, ...), `target` the machine, `lo` and `hi` the range of
    units to compute, `arg(name)` the flat buffer of a parameter: index it with a scalar or `vec`.
    """

    def __init__(self, target: Target, buffers: dict[str, Any], lo: Expr, hi: Expr) -> None:
        self.T = T
        self.target = target
        self.lanes = target.lanes
        self.lo = lo
        self.hi = hi
        self._buffers = buffers

    def fail(self, code: int) -> None:
        """Leave the kernel with a non-zero `code`; its signature must say `may_fail`."""
        T.buffer_store(self._buffers[_STATUS], T.int32(code), [0])
        T.Return(T.int32(0))

    def arg(self, name: str) -> Any:
        """The flat (1-D) buffer of parameter `name`."""
        return self._buffers[name]

    def first(self, name: str) -> Expr:
        """Index of the first element that the buffer of `name` holds: not 0 where a kernel is part of one that gives it a piece."""
        return T.int32(0)

    def local(self, size: int, dtype: str = "float32") -> Any:
        """A register-sized temporary of `size` elements on the stack; LLVM keeps it in registers when all indices unroll."""
        return T.alloc_buffer((size,), dtype, scope="local")

    def load(self, buffer: Any, index: Expr, lanes: int = 1) -> Expr:
        """`lanes` consecutive elements of `buffer` from `index` on."""
        return buffer[index] if lanes == 1 else buffer[T.ramp(index, 1, lanes)]

    def store(self, buffer: Any, index: Expr, value: Expr, lanes: int = 1) -> None:
        """Store `value` (a vector of `lanes`) to `lanes` consecutive elements."""
        T.buffer_store(buffer, value, [index if lanes == 1 else T.ramp(index, 1, lanes)])

    def splat(self, value: Expr, lanes: int) -> Expr:
        """A scalar in every lane (the scalar itself for one lane)."""
        return value if lanes == 1 else T.broadcast(value, lanes)

    def shuffle(self, left: Expr, right: Expr, lanes: Sequence[int]) -> Expr:
        """Vector of chosen lanes of two vectors of equal width; those of `right` count on from the width of `left`."""
        return tirx.Shuffle([left, right], [tirx.IntImm("int32", lane) for lane in lanes])

    def f32(self, value: float, lanes: int = 1) -> Expr:
        """A float32 constant in every lane."""
        return self.splat(T.float32(value), lanes)

    def i32(self, value: int, lanes: int = 1) -> Expr:
        """An int32 constant in every lane."""
        return self.splat(T.int32(value), lanes)


def build_prim_func(symbol: str, signature: Signature, target: Target, emit: Callable[[KernelBuilder], None]) -> Any:
    """A PrimFunc `int32_t symbol(pointers..., lo, hi)` whose body `emit` writes.

    With `signature.may_fail` it is `symbol_body(pointers..., int32_t *status, lo, hi)`, to be wrapped by `compile_functions`.
    """
    if signature.may_fail:
        symbol += _BODY
        signature = replace(signature, args=(*signature.args, Arg(_STATUS, "int32", 1, "out")))
    with IRBuilder() as ib, T.prim_func(s_tir=True):
        T.func_name(symbol)
        T.func_attr({"global_symbol": symbol, "tirx.noalias": True})
        # A bool is one byte of 0 or 1; TVM would pack vectors of its own bool type into bits.
        stored = {a.name: "uint8" if a.dtype == "bool" else a.dtype for a in signature.args}
        handles = [(a, T.arg(a.name + "_p", T.handle(stored[a.name]))) for a in signature.args]
        lo, hi = T.arg("lo", T.int32()), T.arg("hi", T.int32())
        T.func_ret(tvm.ir.PrimType("int32"))
        buffers = {
            # An empty tensor still has a pointer; TVM wants at least one element.
            a.name: T.decl_buffer((_ANY_SIZE if a.size == FROM_DATA else max(1, a.size),), stored[a.name], data=h)
            for a, h in handles
        }
        emit(KernelBuilder(target, buffers, lo, hi))
        T.Return(T.int32(0))
    return ib.get()


def _passes(target: Any) -> Sequence[Any]:
    # tirx's and s_tir's default pipelines without AnnotateEntryFunc, SplitHostDevice, MakePackedAPI and LowerTVMBuiltin,
    # which would wrap every function in TVM's packed calling convention, and without CompactBufferAllocation: kernels allocate
    # what they use, and looking for less takes up to 80 % of the compile time of a large one.
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
        t.BF16ComputeLegalize(),
        t.NarrowDataType(32),
        s.LoopPartition(),
        t.VectorizeLoop(),
        t.StorageRewrite(),
        s.HoistIfThenElse(),
        t.UnrollLoop(),
        s.RenormalizeSplitPattern(),
        t.StmtSimplify(),
        t.RemoveNoOp(),
        s.RewriteUnsafeSelect(),
        t.CommonSubexprElim(),
        t.VerifyMemory(),
        t.BF16StorageLegalize(),
        t.LowerIntrin(),
    ]


def _wrapper(function: Any) -> str:
    """LLVM IR of `symbol(pointers..., lo, hi)`, which runs `symbol_body` with a status of 0 and returns the status."""
    body = str(function.attrs["global_symbol"])
    pointers = [f"ptr %p{i}" for i in range(len(function.params) - 3)]
    return f"""
define i32 @{body.removesuffix(_BODY)}({", ".join([*pointers, "i32 %lo", "i32 %hi"])}) {{
  %status = alloca i32, align 4
  store i32 0, ptr %status, align 4
  %ignored = call i32 @{body}({", ".join([*pointers, "ptr %status", "i32 %lo", "i32 %hi"])})
  %result = load i32, ptr %status, align 4
  ret i32 %result
}}
"""


def tvm_target(target: Target) -> Any:
    """TVM's description of `target`."""
    config = {"kind": "llvm", "mtriple": target.llvm_triple, "mcpu": target.mcpu, "mattr": list(target.mattr)}
    return tvm.target.Target(config)


def compile_functions(
    functions: dict[str, Any], target: Target, object_path: str, assembly_path: str | None = None
) -> None:
    """Lower and compile PrimFuncs (symbol -> function) into one object file."""
    bound = tvm_target(target)
    module = tvm.IRModule(functions)
    module = tvm.ir.transform.Sequential(_passes(bound))(module)
    library = tvm.get_global_func("target.build.llvm")(module, bound)
    wrappers = [_wrapper(f) for f in functions.values() if str(f.attrs["global_symbol"]).endswith(_BODY)]
    if wrappers:
        with tempfile.NamedTemporaryFile("w", suffix=".ll") as text:
            text.write("\n".join([library.inspect_source("ll"), *wrappers]))
            text.flush()
            library = tvm.get_global_func("ffi.Module.load_from_file.ll")(text.name, "ll")
    library.write_to_file(object_path, "o")
    if assembly_path is not None:
        library.write_to_file(assembly_path, "asm")
