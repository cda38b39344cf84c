"""A kernel family of the processor as a GPU kernel: scalar code for one unit, run by one thread (units.py says which).

The family's `build` is taken as it is. Where it asks for an instruction of LLVM, it gets the device function of the same meaning;
short vectors, which only move bytes here, are moved element by element, since vectors of a GPU must be aligned.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from typing import Any

from sparsec.codegen.cuda.builder import CudaBuilder
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.source import KernelSource, device_function, device_text, stored_signature
from sparsec.codegen.cuda.units import device_signature, thread_count, unit_launch
from sparsec.codegen.program import KernelSpec, Signature, family_module
from sparsec.target import Target

Expr = Any

# TIR has no statement that ends a function without a value: this call is printed as one.
_LEAVE = "spc_leave"
# LLVM's name -> the device function; None: of a scalar, the identity.
_DEVICE = {
    "llvm.ceil": "spc_ceil",
    "llvm.floor": "spc_floor",
    "llvm.fma": "spc_fma",
    "llvm.maximum": "spc_maximum",
    "llvm.minimum": "spc_minimum",
    "llvm.rint": "spc_rint",
    "llvm.vector.reduce.add": None,
    "llvm.vector.reduce.fmax": None,
}


class _Portable:
    """TVM's IR builder without what only LLVM knows. Its comparisons keep NaN as LLVM's do: a > b ? a : b."""

    def __init__(self, builder: Any) -> None:
        self._builder = builder

    def __getattr__(self, name: str) -> Any:
        return getattr(self._builder, name)

    def call_llvm_pure_intrin(self, dtype: str, name: str, *arguments: Expr) -> Expr:
        """A device function for an intrinsic of LLVM on scalars."""
        if name not in _DEVICE:
            raise ValueError(f"{name} has no counterpart on a GPU")
        function = _DEVICE[name]
        return arguments[0] if function is None else self.call_extern(dtype, function, *arguments)

    def reinterpret(self, dtype: str, value: Expr) -> Expr:
        """The bits of a float32 as an int32, or the other way round (TVM takes the address of the value, which a number has not)."""
        cast = {("int32", "float32"): "__float_as_int", ("float32", "int32"): "__int_as_float"}.get(
            (dtype, _dtype(value))
        )
        return self._builder.reinterpret(dtype, value) if cast is None else self.call_extern(dtype, cast, value)

    def max(self, a: Expr, b: Expr) -> Expr:
        """The larger one; b if one of two floats is NaN."""
        return self.call_extern(_dtype(a, b), "spc_larger", a, b) if _float(a, b) else self._builder.max(a, b)

    def min(self, a: Expr, b: Expr) -> Expr:
        """The smaller one; b if one of two floats is NaN."""
        return self.call_extern(_dtype(a, b), "spc_smaller", a, b) if _float(a, b) else self._builder.min(a, b)


def _dtype(*values: Expr) -> str:
    return next((str(v.ty.dtype) for v in values if hasattr(v, "ty")), "int32")


def _float(*values: Expr) -> bool:
    return _dtype(*values).startswith("float")


class UnitBuilder(CudaBuilder):
    """The builder of one thread: `lo` and `hi` are its unit, scratch is the thread's column of an array."""

    def __init__(self, cuda: CudaBuilder, scratch: Sequence[str], status: Any) -> None:
        super().__init__(cuda.target, cuda._buffers, cuda.launch, cuda.block, cuda.thread)
        self.T = _Portable(cuda.T)
        self._scratch = [self.arg(name) for name in scratch]
        self._status = status
        self._threads = thread_count(cuda.launch)
        self._index = self.let(cuda.block[0] * cuda.launch.block[0] + cuda.thread[0])

    def each(self, units: int, body: Callable[[UnitBuilder], None]) -> None:
        """Run `body` for all units of this thread."""
        T = self.T
        with T.serial(0, -(-units // self._threads)) as turn:
            unit = self.let(self._index + turn * self._threads)
            with T.If(unit < units), T.Then():
                self.lo, self.hi = unit, unit + 1
                body(self)

    def _place(self, buffer: Any, index: Expr) -> Expr:
        """Where element `index` lies: of scratch, in this thread's column."""
        return index * self._threads + self._index if any(buffer is own for own in self._scratch) else index

    def load(self, buffer: Any, index: Expr, lanes: int = 1) -> Any:
        """One element; of more, a list."""
        if lanes == 1:
            return super().load(buffer, self._place(buffer, index))
        return [self.load(buffer, index + i) for i in range(lanes)]

    def store(self, buffer: Any, index: Expr, value: Any, lanes: int = 1) -> None:
        """Store one element, or those of a list."""
        if lanes == 1:
            super().store(buffer, self._place(buffer, index), value)
            return
        for i, element in enumerate(value):
            self.store(buffer, index + i, element)

    def splat(self, value: Expr, lanes: int) -> Any:
        """The value, or a list of it."""
        return value if lanes == 1 else [value] * lanes

    def fail(self, code: int) -> None:
        """Note a non-zero `code` for the host and end the thread."""
        self.do("spc_fail", self.at(self._status, 0), self.T.int32(code))
        self.do(_LEAVE)


def generic_source(spec: KernelSpec, target: Target, symbol: str) -> KernelSource:
    """CUDA C of a kernel of a processor family."""
    module = importlib.import_module(family_module(spec.family))
    plain: Signature = module.signature(spec.params, target)
    launch: Launch = unit_launch(plain)
    signature = device_signature(stored_signature(plain, spec.storage))
    scratch = [a.name for a in plain.args if a.role == "work"]

    def emit(k: CudaBuilder) -> None:
        status = k.arg("status") if plain.may_fail else None
        UnitBuilder(k, scratch, status).each(plain.units, lambda unit: module.build(spec.params, unit))

    function = device_function(symbol, signature, launch, target, emit)
    text = device_text(function, target).replace(f"{_LEAVE}();", "return;")
    return KernelSource(symbol, text, launch, signature)
