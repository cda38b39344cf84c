"""TVM's IR builder for code that was written for LLVM: what LLVM alone knows becomes a device function of the same meaning."""

from __future__ import annotations

from typing import Any

Expr = Any

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


class Portable:
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


class Held:
    """A GPU kernel's builder for scalar code of the processor, with some arguments held in registers.

    `hold(name, registers)`: loads from and stores to that argument, at whatever index, mean `registers[lane]`.
    """

    def __init__(self, k: Any, lane: Expr) -> None:
        self._k, self._lane = k, lane
        self._held: list[tuple[Any, Any]] = []
        self.T = Portable(k.T)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._k, name)

    def hold(self, name: str, registers: Any) -> None:
        """Keep argument `name` in a local buffer of the type it is stored in."""
        self._held.append((self._k.arg(name), registers))

    def _place(self, buffer: Any, index: Expr) -> tuple[Any, Expr]:
        return next(((own, self._lane) for held, own in self._held if held is buffer), (buffer, index))

    def load(self, buffer: Any, index: Expr, lanes: int = 1) -> Expr:
        """One element."""
        return self._k.load(*self._place(buffer, index))

    def store(self, buffer: Any, index: Expr, value: Expr, lanes: int = 1) -> None:
        """Store one element."""
        self._k.store(*self._place(buffer, index), value)
