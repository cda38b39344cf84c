"""Chains of elementwise operators with numpy broadcasting, computed in registers in one pass over memory.

A kernel evaluates an expression DAG: `inputs` with a stride per output dimension (0: broadcast), `ops` in order (each reads earlier
values), one output in C order of `shape`. lower() leaves an elementwise node for its consumer when that is its only reader and has
the same shape (see fusion.py), so the rule here collects the whole chain behind a node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Layout, Lowering, Refusal, Tensor, row_strides, same_memory
from sparsec.codegen.isa.scalar_ops import BOOL_RESULT, EMIT, FLOAT_ONLY, constant
from sparsec.codegen.isa.vecmath import bind, typed
from sparsec.codegen.layouts import Choice
from sparsec.codegen.program import ITEMSIZE, Arg, Signature
from sparsec.target import Target

OPS = frozenset(EMIT) | {"Cast", "Sum", "Mean", "BatchNormalization"}
_DTYPES = frozenset(["float32", "float64", "float16", "int64", "int32", "bool", "uint8", "int8"])
_WHOLE_POWERS = (1.0, 2.0, 3.0)
_POWERS = (*_WHOLE_POWERS, 0.5, -0.5)
# Operators beyond arithmetic that one LLVM intrinsic computes in float64 as well.
_FLOAT64 = frozenset(["Ceil", "Floor", "Round", "Sqrt"])
# Elements one unit covers: enough to repay the loop set-up, few enough to share among threads.
_BLOCK = 4096


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: one array an input; out: `out`. Units: blocks of the innermost merged dimension, for every outer index."""
    args = [Arg(f"x{i}", x["dtype"], x["size"], "in") for i, x in enumerate(p["inputs"])]
    count = prod(p["shape"])
    args.append(Arg("out", p["dtype"], count, "out"))
    dims, _ = _merged(p)
    per = sum(ITEMSIZE[x["dtype"]] for x in p["inputs"]) + 4 * len(p["ops"])
    return Signature(tuple(args), units=prod(dims[:-1]) * _blocks(dims[-1]), cost=count * max(4, per))


def _blocks(inner: int) -> int:
    return -(-inner // _BLOCK)


def _merged(p: Mapping[str, Any]) -> tuple[list[int], list[list[int]]]:
    """Output dims and per-input strides with neighbouring dimensions joined where every input allows it."""
    dims: list[int] = []
    strides: list[list[int]] = [[] for _ in p["inputs"]]
    for d, size in enumerate(p["shape"]):
        if size == 1:
            continue
        step = [x["strides"][d] for x in p["inputs"]]
        if dims and all(s[-1] == t * size for s, t in zip(strides, step, strict=True)):
            dims[-1] *= size
            for s, t in zip(strides, step, strict=True):
                s[-1] = t
        else:
            dims.append(size)
            for s, t in zip(strides, step, strict=True):
                s.append(t)
    return (dims, strides) if dims else ([1], [[0] for _ in p["inputs"]])


def build(p: Mapping[str, Any], k: Any) -> None:
    """One loop over blocks; whole vectors first, then single elements."""
    T = k.T
    dims, strides = _merged(p)
    inner, blocks = dims[-1], _blocks(dims[-1])
    vector = all(s[-1] in (0, 1) for s in strides)
    lanes = min(k.lanes, 1 << (inner.bit_length() - 1)) if vector else 1

    with T.serial(k.lo, k.hi) as unit:
        row = bind(k, T.truncdiv(unit, blocks))
        start = bind(k, T.truncmod(unit, blocks) * _BLOCK)
        stop = bind(k, T.min(start + _BLOCK, inner))
        base = []
        for s in strides:
            at: Any = T.int32(0)
            left = row
            for d in range(len(dims) - 2, -1, -1):
                at = at + T.truncmod(left, dims[d]) * s[d]
                left = T.truncdiv(left, dims[d])
            base.append(bind(k, at))
        out = bind(k, row * inner)
        if lanes > 1:
            with T.serial(0, T.truncdiv(stop - start, lanes)) as v:
                _element(p, k, base, strides, out, bind(k, start + v * lanes), lanes)
            tail = bind(k, start + T.truncdiv(stop - start, lanes) * lanes)
            if inner % lanes:
                with T.serial(tail, stop) as i:
                    _element(p, k, base, strides, out, i, 1)
        else:
            with T.serial(start, stop) as i:
                _element(p, k, base, strides, out, i, 1)


def _element(
    p: Mapping[str, Any], k: Any, base: list[Any], strides: list[list[int]], out: Any, at: Any, lanes: int
) -> None:
    """Evaluate the chain for `lanes` neighbouring elements."""
    T = k.T
    values: list[Any] = []
    dtypes: list[str] = []
    for i, x in enumerate(p["inputs"]):
        step = strides[i][-1]
        buffer = k.arg(f"x{i}")
        value = (
            k.load(buffer, base[i] + at, lanes) if step == 1 else k.splat(k.load(buffer, base[i] + at * step), lanes)
        )
        if x["dtype"] == "bool":
            value = value > k.splat(T.uint8(0), lanes)
        if x["dtype"] == "float16":
            value = T.Cast(typed(k, "float32", lanes), value)
        values.append(bind(k, value))
        dtypes.append(_in_register(x["dtype"]))
    for op in p["ops"]:
        name, refs, dtype = op["op"], op["args"], op["dtype"]
        if name == "Const":
            result = constant(k, dtype, op["value"], lanes)
        elif name == "Cast":
            result = _cast(k, values[refs[0]], dtypes[refs[0]], dtype, lanes)
            if dtype == "float16":  # rounded as if it had been stored
                result, dtype = T.Cast(typed(k, "float32", lanes), result), "float32"
        else:
            operand = dtypes[refs[-1]]
            result = EMIT[name](k, lanes, operand, [values[r] for r in refs], op["attr"])
        values.append(bind(k, result) if name != "Const" else result)
        dtypes.append(dtype)
    result = values[-1]
    if p["dtype"] == "float16":
        result = T.Cast(typed(k, "float16", lanes), result)
    if p["dtype"] == "bool":
        result = T.Select(result, k.splat(T.uint8(1), lanes), k.splat(T.uint8(0), lanes))
    k.store(k.arg("out"), out + at, result, lanes)


def _in_register(dtype: str) -> str:
    """float16 is stored, but computed as float32."""
    return "float32" if dtype == "float16" else dtype


def _cast(k: Any, value: Any, source: str, dest: str, lanes: int) -> Any:
    if source == dest:
        return value
    if source == "bool":
        return k.T.Select(value, constant(k, dest, 1, lanes), constant(k, dest, 0, lanes))
    if dest == "bool":
        return k.T.NE(value, constant(k, source, 0, lanes))
    return k.T.Cast(typed(k, dest, lanes), value)


# --- lowering -----------------------------------------------------------------------------------------------------------


class _Chain:
    """The expression behind one value: leaves in memory, operators, constants."""

    def __init__(self, low: Lowering) -> None:
        self.low = low
        self.leaves: list[ir.Value] = []
        self.ops: list[dict[str, Any]] = []
        self._known: dict[ir.Value, tuple[str, int]] = {}

    def leaf(self, value: ir.Value) -> tuple[str, int]:
        """Reference to a value in memory."""
        if value not in self._known:
            self._known[value] = ("leaf", len(self.leaves))
            self.leaves.append(value)
        return self._known[value]

    def op(self, name: str, args: Sequence[tuple[str, int]], dtype: str, **attr: Any) -> tuple[str, int]:
        """Append an operator."""
        held = dtype if name == "Cast" else _in_register(dtype)
        self.ops.append({"op": name, "args": list(args), "dtype": held, "attr": attr})
        return ("op", len(self.ops) - 1)

    def const(self, value: float, dtype: str) -> tuple[str, int]:
        """Append a constant."""
        self.ops.append({"op": "Const", "args": [], "dtype": _in_register(dtype), "value": value})
        return ("op", len(self.ops) - 1)

    def value(self, value: ir.Value) -> tuple[str, int]:
        """Reference to a value: a constant, a deferred operator, or memory."""
        if value in self._known:
            return self._known[value]
        array = self.low.constant(value)
        if array is not None and array.size == 1:
            self._known[value] = self.const(array.reshape(-1)[0].item(), self.low.dtype(value))
            return self._known[value]
        producer = value.producer()
        if producer is not None and producer in self.low.deferred:
            self._known[value] = self.node(producer)
            return self._known[value]
        return self.leaf(value)

    def node(self, node: ir.Node) -> tuple[str, int]:
        """Append the operators of one ONNX node."""
        low, name = self.low, node.op_type
        dtype = low.dtype(node.outputs[0])
        attr = {a.name: a.value for a in node.attributes.values()}
        present = [v for v in node.inputs if v is not None]
        if name == "BatchNormalization":
            return self._batch_norm(node, attr)
        if name == "Cast":
            return self.op("Cast", [self.value(present[0])], dtype)
        if name in ("Sum", "Mean", "Max", "Min"):
            refs = [self.value(v) for v in present]
            total = refs[0]
            for ref in refs[1:]:
                total = self.op({"Sum": "Add", "Mean": "Add"}.get(name, name), [total, ref], dtype)
            if name == "Mean":
                total = self.op("Mul", [total, self.const(1.0 / len(refs), dtype)], dtype)
            return total if len(refs) > 1 or name == "Mean" else self.op("Cast", [total], dtype)
        if name == "Clip":
            return self._clip(node, attr, dtype)
        if name == "Quantise":
            return self._quantise(present[0], attr)
        if name == "Pow":
            base, exponent = present
            power = _constant_power(low, exponent)
            if power in _POWERS:
                return self.op("Pow", [self.value(base)], dtype, exponent=power)
            refs = [self.value(base), self.value(exponent)]
            if not low.dtype(exponent).startswith("float"):
                refs[1] = self.op("Cast", [refs[1]], "float32")
            return self.op("Pow", refs, dtype)
        return self.op(name, [self.value(v) for v in present], dtype, **attr)

    def _quantise(self, x: ir.Value, attr: Mapping[str, Any]) -> tuple[str, int]:
        """sparsec::Quantise, in the steps of `sparsec.int8.rounded_static`."""
        scale = np.float32(attr["scale"])
        result = self.op("Mul", [self.value(x), self.const(float(np.float32(1) / scale), "float32")], "float32")
        result = self.op("Round", [result], "float32")
        result = self.op("Clip", [result], "float32", lo=attr["low"], hi=attr["high"])
        return self.op("Mul", [result, self.const(float(scale), "float32")], "float32")

    def _clip(self, node: ir.Node, attr: Mapping[str, Any], dtype: str) -> tuple[str, int]:
        """min(max(x, lo), hi): constant bounds become immediates."""
        limits: dict[str, Any] = {}
        computed: dict[str, ir.Value] = {}
        for name, old, index in (("lo", "min", 1), ("hi", "max", 2)):
            value = node.inputs[index] if index < len(node.inputs) else None
            array = self.low.constant(value)
            if value is not None and array is None:
                computed[name] = value
            elif (limit := attr.get(old) if array is None else array.item()) is not None and np.isfinite(limit):
                limits[name] = limit
        assert node.inputs[0] is not None
        result = self.value(node.inputs[0])
        for name, op in (("lo", "Max"), ("hi", "Min")):  # one after the other: where the bounds cross, hi wins
            if name in computed:
                result = self.op(op, [result, self.value(computed[name])], dtype)
            elif name in limits:
                result = self.op("Clip", [result], dtype, **{name: limits[name]})
        return result if computed or limits else self.op("Cast", [result], dtype)

    def _batch_norm(self, node: ir.Node, attr: Mapping[str, Any]) -> tuple[str, int]:
        """x * scale / sqrt(var + eps) + (bias - mean * scale / sqrt(var + eps)), per channel."""
        low, x = self.low, node.inputs[0]
        scale, bias, mean, var = (np.asarray(low.constant(v), np.float64) for v in node.inputs[1:5])
        factor = scale / np.sqrt(var + attr.get("epsilon", 1e-5))
        assert x is not None
        tail = (1,) * (len(low.shape(x)) - 2)
        refs = []
        for suffix, array in (("factor", factor), ("offset", bias - mean * factor)):
            data = array.astype(np.float32).reshape(1, -1, *tail)
            tensor = ir.tensor(data, name=f"{node.name}.{suffix}")
            value = ir.Value(
                name=tensor.name, shape=ir.Shape(data.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
            )
            refs.append(self.leaf(value))
        product = self.op("Mul", [self.value(x), refs[0]], "float32")
        return self.op("Add", [product, refs[1]], "float32")


def check(node: ir.Node, low: Lowering) -> str | None:
    """Why this node cannot be part of a chain, or None."""
    name = node.op_type
    present = [v for v in node.inputs if v is not None]
    kinds = {low.dtype(v) for v in (*present, node.outputs[0])}
    if wrong := sorted(kinds - _DTYPES):
        return f"element type {wrong[0]} is not supported ({', '.join(sorted(_DTYPES))} are)"
    operand = low.dtype(present[-1])
    wide = operand == "float64" and name in _FLOAT64
    if name in FLOAT_ONLY and operand not in ("float32", "float16") and not wide:
        return f"{name} is computed on float32 and float16 only, found {operand}"
    if name == "Pow" and (reason := _refuse_power(low, present[0], present[1])):
        return reason
    if name == "Mod" and operand.startswith("float"):
        return "Mod is computed on integers only"
    if name == "BatchNormalization" and any(low.constant(v) is None for v in node.inputs[1:5]):
        return "the statistics of a BatchNormalization must be constants"
    return None


def _constant_power(low: Lowering, exponent: ir.Value) -> float | None:
    array = low.constant(exponent)
    return None if array is None or array.size != 1 else float(array.item())


def _refuse_power(low: Lowering, base: ir.Value, exponent: ir.Value) -> str | None:
    dtype, power = low.dtype(base), _constant_power(low, exponent)
    if dtype in ("float32", "float16") or power in _WHOLE_POWERS:
        return None
    return f"Pow of {dtype} is computed for the constant exponents 1, 2 and 3 only"


def lower_elementwise(node: ir.Node, low: Lowering) -> Refusal | None:
    """Any operator of OPS, with the deferred operators behind it."""
    if (reason := check(node, low)) is not None:
        return Refusal(reason)
    out = node.outputs[0]
    shape = low.shape(out)
    chain = _Chain(low)
    result = chain.node(node)
    assert result == ("op", len(chain.ops) - 1)
    if 0 in shape:
        low.new(out)
        return None
    layout = low.plan.get(node) or _choose_layout(chain.leaves, shape, low)
    inputs, tensors = [], []
    for value in chain.leaves:
        tensor = _leaf_tensor(value, layout, shape, low)
        strides = _strides(tensor, len(shape), layout)
        inputs.append({"dtype": tensor.dtype, "size": tensor.size, "strides": strides})
        tensors.append(tensor)
    ops = [{**op, "args": [i if kind == "leaf" else len(inputs) + i for kind, i in op["args"]]} for op in chain.ops]
    dest = low.new(out, layout)
    params = {"dtype": dest.dtype, "shape": list(dest.physical_shape), "inputs": inputs, "ops": ops}
    note = f"{list(shape)} " + " ".join(op["op"] for op in chain.ops if op["op"] != "Const")
    low.call("elementwise", params, tensors, [dest], node=node.name or "", op=node.op_type, note=note)
    return None


def elementwise_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Both layouts, except where a large operand is broadcast along leading axes: only row order lines those up."""
    shape = low.shape(node.outputs[0])
    if check(node, low) is not None or len(shape) < 3:
        return None
    return Choice({"row": 0.0, "cl": 0.0})


def _choose_layout(leaves: Sequence[ir.Value], shape: tuple[int, ...], low: Lowering) -> Layout:
    """The layout that most of the full-sized operands have already."""
    if len(shape) < 3:
        return "row"
    votes = {"row": 0, "cl": 0}
    for value in leaves:
        dims = low.shape(value)
        if low.constant(value) is None and len(dims) == len(shape) and not same_memory(dims):
            votes[low.layout(value)] += prod(dims)
    return "cl" if votes["cl"] > votes["row"] else "row"


def _leaf_tensor(value: ir.Value, layout: Layout, shape: tuple[int, ...], low: Lowering) -> Tensor:
    dims = low.shape(value)
    if value.const_value is not None and value.producer() is None and value.graph is None:
        array = low.constant(value)  # made by the chain itself
        assert array is not None
        return low.const(array, value.name or "const")
    return low.get(value, layout if len(dims) == len(shape) and len(dims) >= 3 else "row")


def _strides(tensor: Tensor, rank: int, layout: Layout) -> list[int]:
    """Element strides along the output's physical dimensions; 0 where the operand is broadcast."""
    physical = dict(zip(_order(len(tensor.shape), tensor.layout), row_strides(tensor.physical_shape), strict=True))
    lead = rank - len(tensor.shape)
    logical = [0] * lead + [0 if n == 1 else physical[axis] for axis, n in enumerate(tensor.shape)]
    return [logical[axis] for axis in _order(rank, layout)]


def _order(rank: int, layout: Layout) -> list[int]:
    """Logical axes in memory order."""
    return [0, *range(2, rank), 1] if layout == "cl" else list(range(rank))


__all__ = ["BOOL_RESULT", "OPS", "build", "check", "lower_elementwise", "signature"]
