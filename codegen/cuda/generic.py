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
from sparsec.codegen.cuda.portable import Portable
from sparsec.codegen.cuda.source import KernelSource, device_function, device_text, stored_signature
from sparsec.codegen.cuda.units import device_signature, thread_count, unit_launch
from sparsec.codegen.program import KernelSpec, Signature, family_module
from sparsec.target import Target

Expr = Any

# TIR has no statement that ends a function without a value: this call is printed as one.
_LEAVE = "spc_leave"


class UnitBuilder(CudaBuilder):
    """The builder of one thread: `lo` and `hi` are its unit, scratch is the thread's column of an array."""

    def __init__(self, cuda: CudaBuilder, scratch: Sequence[str], status: Any) -> None:
        super().__init__(cuda.target, cuda._buffers, cuda.launch, cuda.block, cuda.thread)
        self.T = Portable(cuda.T)
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
