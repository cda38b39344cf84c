"""Reductions over any axes: sum, mean, max, min, product, norms, log-sum, and ArgMax / ArgMin along one axis."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor, row_strides
from sparsec.codegen.isa.scalar_ops import constant
from sparsec.codegen.isa.vecmath import bind, log, sqrt
from sparsec.codegen.kernels.rows import for_run, reduce_run
from sparsec.codegen.layouts import Choice
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_KINDS = ("Sum", "Mean", "Max", "Min", "Prod", "SumSquare", "L1", "L2", "LogSum")
REDUCTIONS = tuple(f"Reduce{kind}" for kind in _KINDS)
_LIMITS = {"float32": 3.4028234663852886e38, "int32": 2**31 - 1, "int64": 2**63 - 1}


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x with dims [size, reduced?] in memory order; out: the kept dims. Units: kept dims, less the innermost when it is kept."""
    dims = p["dims"]
    kept = prod(n for n, reduced in dims if not reduced)
    units = kept if dims[-1][1] else kept // dims[-1][0]
    out = "int64" if p["kind"].startswith("Arg") else p["dtype"]
    args = (Arg("x", p["dtype"], prod(n for n, _ in dims), "in"), Arg("out", out, kept, "out"))
    return Signature(args, units=units, cost=4 * prod(n for n, _ in dims))


def _start(p: Mapping[str, Any], k: Any, lanes: int) -> Any:
    dtype, kind = p["dtype"], p["kind"]
    limit = _LIMITS[dtype]
    # minus infinity is the neutral element of a float maximum: an all -inf row must stay -inf
    value = {
        "Max": -float("inf") if dtype == "float32" else -limit - 1,
        "Min": float("inf") if dtype == "float32" else limit,
    }
    if kind in value and dtype == "float32":
        bits = -8388608 if kind == "Max" else 0x7F800000
        return k.splat(k.T.reinterpret("float32", k.T.int32(bits)), lanes)
    return constant(k, dtype, value.get(kind, 1 if kind == "Prod" else 0), lanes)


def _combine(p: Mapping[str, Any], k: Any, a: Any, b: Any) -> Any:
    kind = p["kind"]
    return k.T.max(a, b) if kind == "Max" else k.T.min(a, b) if kind == "Min" else a * b if kind == "Prod" else a + b


def _before(p: Mapping[str, Any], k: Any, value: Any, lanes: int) -> Any:
    if p["kind"] in ("SumSquare", "L2"):
        value = bind(k, value)
        return value * value
    if p["kind"] == "L1":
        value = bind(k, value)
        return k.T.max(value, constant(k, p["dtype"], 0, lanes) - value)
    return value


def _after(p: Mapping[str, Any], k: Any, value: Any, lanes: int) -> Any:
    kind = p["kind"]
    if kind == "Mean":
        return value * k.f32(1.0 / prod(n for n, reduced in p["dims"] if reduced), lanes)
    if kind == "L2":
        return sqrt(k, bind(k, value), lanes)
    if kind == "LogSum":
        return log(k, bind(k, value), lanes)
    return value


def build(p: Mapping[str, Any], k: Any) -> None:
    """The innermost dimension is vectorised, whether it is kept or reduced."""
    T, dims = k.T, p["dims"]
    strides = row_strides([n for n, _ in dims])
    inner, inner_reduced = dims[-1]
    kept = [(n, s) for (n, r), s in zip(dims[:-1], strides[:-1], strict=True) if not r]
    reduced = [(n, s) for (n, r), s in zip(dims[:-1], strides[:-1], strict=True) if r]
    x, out = k.arg("x"), k.arg("out")
    with T.serial(k.lo, k.hi) as unit:
        at: Any = T.int32(0)
        left = unit
        for n, s in reversed(kept):
            at = at + T.truncmod(left, n) * s
            left = T.truncdiv(left, n)
        base = bind(k, at)
        if p["kind"].startswith("Arg"):
            _arg(p, k, base, unit)
        elif inner_reduced:
            total = k.local(1, p["dtype"])
            k.store(total, 0, _start(p, k, 1))

            def run(offset: Any, total: Any = total) -> None:
                part = reduce_run(
                    k,
                    inner,
                    lambda lanes: _start(p, k, lanes),
                    lambda i, lanes: _before(p, k, k.load(x, offset + i, lanes), lanes),
                    lambda a, b, lanes: _combine(p, k, a, b),
                    p["dtype"],
                )
                k.store(total, 0, _combine(p, k, k.load(total, 0), k.load(part, 0)))

            _nest(k, reduced, base, run)
            k.store(out, unit, _after(p, k, k.load(total, 0), 1))
        else:

            def column(i: Any, lanes: int, base: Any = base, unit: Any = unit) -> None:
                acc = k.local(lanes, p["dtype"])
                k.store(acc, 0, _start(p, k, lanes), lanes)

                def step(offset: Any, acc: Any = acc) -> None:
                    value = _before(p, k, k.load(x, offset, lanes), lanes)
                    k.store(acc, 0, _combine(p, k, k.load(acc, 0, lanes), value), lanes)

                _nest(k, reduced, base + i, step)
                k.store(out, unit * inner + i, _after(p, k, k.load(acc, 0, lanes), lanes), lanes)

            for_run(k, inner, column)


def _nest(k: Any, dims: list[tuple[int, int]], offset: Any, body: Any) -> None:
    """body(offset) for every index of `dims` (size, stride)."""
    if not dims:
        body(offset)
        return
    n, stride = dims[0]
    with k.T.serial(0, n) as i:
        _nest(k, dims[1:], offset + i * stride, body)


def _arg(p: Mapping[str, Any], k: Any, base: Any, unit: Any) -> None:
    """Index of the first (or last) extreme value along the one reduced dimension of [outer, n, inner]."""
    T, dims = k.T, p["dims"]
    x, out = k.arg("x"), k.arg("out")
    position = next(d for d, (_, reduced) in enumerate(dims) if reduced)
    n, stride = dims[position][0], row_strides([size for size, _ in dims])[position]
    inner = 1 if dims[-1][1] else dims[-1][0]
    best, where = k.local(1, p["dtype"]), k.local(1, "int64")
    with T.serial(0, inner) as j:
        k.store(best, 0, k.load(x, base + j))
        k.store(where, 0, T.int64(0))
        with T.serial(1, n) as i:
            value = bind(k, k.load(x, base + j + i * stride))
            old = k.load(best, 0)
            better = (value > old) if p["kind"] == "ArgMax" else (value < old)
            if p["last"]:
                better = T.Or(better, T.EQ(value, old))
            with T.If(better), T.Then():
                k.store(best, 0, value)
                k.store(where, 0, T.Cast("int64", i))
        k.store(out, unit * inner + j, k.load(where, 0))


def _axes(node: ir.Node, low: Lowering, rank: int) -> list[int] | Refusal:
    attr = {a.name: a.value for a in node.attributes.values()}
    axes = attr.get("axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        array = low.constant(node.inputs[1])
        if array is None:
            return Refusal("the axes are not a constant")
        axes = array.reshape(-1).tolist()
    if not axes:
        axes = [] if attr.get("noop_with_empty_axes") else list(range(rank))
    return sorted({int(a) % rank for a in axes}) if rank else []


def _merge(sizes: list[int], flags: list[bool]) -> list[list[Any]]:
    dims: list[list[Any]] = []
    for n, reduced in zip(sizes, flags, strict=True):
        if n == 1:
            continue
        if dims and dims[-1][1] == reduced:
            dims[-1][0] *= n
        else:
            dims.append([n, reduced])
    return dims or [[1, False]]


def _lower(node: ir.Node, low: Lowering, axes: list[int], extra: dict[str, Any]) -> None:
    x = node.inputs[0]
    assert x is not None
    shape, rank = low.shape(x), len(low.shape(x))
    # Channels last is taken as it is when the kept axes come out in the same order: all spatial axes are reduced.
    whole = low.layout(x) == "cl" and set(range(2, rank)) <= set(axes)
    source = low.get(x, "cl" if whole else "row")
    order = [0, *range(2, rank), 1] if whole else list(range(rank))
    dims = _merge([shape[a] for a in order], [a in axes for a in order])
    out = low.new(node.outputs[0])
    params = {"dtype": source.dtype, "dims": dims, **extra}
    note = f"{list(shape)} over {axes}"
    low.call("reduce", params, [source], [out], node=node.name or "", op=node.op_type, note=note)


def reduce_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Over all spatial axes it takes what is there; the result is in row order."""
    x = node.inputs[0]
    assert x is not None
    rank, axes = len(low.shape(x)), _axes(node, low, len(low.shape(x)))
    whole = rank > 2 and not isinstance(axes, Refusal) and set(range(2, rank)) <= set(axes)
    return Choice({"row": 0.0}, free=True) if whole else None


def lower_reduce(node: ir.Node, low: Lowering) -> Refusal | None:
    """Reduce* over constant axes."""
    x = node.inputs[0]
    assert x is not None
    kind, dtype = node.op_type.removeprefix("Reduce"), low.dtype(x)
    if dtype not in _LIMITS or (dtype != "float32" and kind in ("Mean", "L2", "LogSum")):
        return Refusal(f"{node.op_type} of {dtype} is not supported")
    axes = _axes(node, low, len(low.shape(x)))
    if isinstance(axes, Refusal):
        return axes
    if 0 in low.shape(x):
        return Refusal("an axis is empty")
    _lower(node, low, axes, {"kind": kind})
    return None


def lower_arg(node: ir.Node, low: Lowering) -> Refusal | None:
    """ArgMax and ArgMin."""
    x = node.inputs[0]
    assert x is not None
    if low.dtype(x) not in _LIMITS:
        return Refusal(f"{node.op_type} of {low.dtype(x)} is not supported")
    attr = {a.name: a.value for a in node.attributes.values()}
    axis = attr.get("axis", 0) % len(low.shape(x))
    if low.shape(x)[axis] == 1:
        shape = low.shape(node.outputs[0])
        low.bind(node.outputs[0], low.const(np.zeros(shape, np.int64), node.outputs[0].name or "zeros"))
        return None
    _lower(node, low, [axis], {"kind": node.op_type, "last": bool(attr.get("select_last_index", 0))})
    return None


__all__ = ["REDUCTIONS", "Tensor", "build", "lower_arg", "lower_reduce", "signature"]
