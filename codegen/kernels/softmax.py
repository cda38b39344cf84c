"""Softmax and LogSoftmax along one axis, with the maximum subtracted first; a row stays in cache between its passes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from math import prod
from typing import Any

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.isa.vecmath import bind, exp_negative, log
from sparsec.codegen.kernels.rows import for_run, reduce_run
from sparsec.codegen.layouts import FOLLOWS, Choice
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

_LOWEST = -3.4028234663852886e38


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """x and y [outer, n, inner], softmax over n. Units: outer."""
    count = p["outer"] * p["n"] * p["inner"]
    return Signature(
        (Arg("x", "float32", count, "in"), Arg("y", "float32", count, "out")), units=p["outer"], cost=24 * count
    )


def build(p: Mapping[str, Any], k: Any) -> None:
    """Rows are vectorised along n when it is innermost, else along the inner dimension."""
    T, n, inner = k.T, p["n"], p["inner"]
    with T.serial(k.lo, k.hi) as unit:
        base = bind(k, unit * (n * inner))
        if inner == 1:
            _row(p, k, base)
        else:
            for_run(k, inner, partial(_shifted_column, p, k, base))


def _row(p: Mapping[str, Any], k: Any, base: Any) -> None:
    T, n = k.T, p["n"]
    x, y = k.arg("x"), k.arg("y")
    top = reduce_run(
        k,
        n,
        lambda lanes: k.f32(_LOWEST, lanes),
        lambda i, lanes: k.load(x, base + i, lanes),
        lambda a, b, lanes: T.max(a, b),
    )
    peak = bind(k, k.load(top, 0))

    def weight(i: Any, lanes: int) -> Any:
        value = bind(k, exp_negative(k, k.load(x, base + i, lanes) - k.splat(peak, lanes), lanes))
        if not p["log"]:
            k.store(y, base + i, value, lanes)
        return value

    total = reduce_run(k, n, lambda lanes: k.f32(0.0, lanes), weight, lambda a, b, lanes: a + b)
    if p["log"]:
        shift = bind(k, log(k, bind(k, k.load(total, 0)), 1))
        for_run(
            k,
            n,
            lambda i, lanes: k.store(
                y, base + i, k.load(x, base + i, lanes) - k.splat(peak, lanes) - k.splat(shift, lanes), lanes
            ),
        )
    else:
        factor = bind(k, T.float32(1.0) / k.load(total, 0))
        for_run(k, n, lambda i, lanes: k.store(y, base + i, k.load(y, base + i, lanes) * k.splat(factor, lanes), lanes))


def _shifted_column(p: Mapping[str, Any], k: Any, base: Any, i: Any, lanes: int) -> None:
    _column(p, k, base + i, lanes)


def _column(p: Mapping[str, Any], k: Any, base: Any, lanes: int) -> None:
    T, n, inner = k.T, p["n"], p["inner"]
    x, y = k.arg("x"), k.arg("y")
    state = k.local(2 * lanes)
    k.store(state, 0, k.f32(_LOWEST, lanes), lanes)
    k.store(state, lanes, k.f32(0.0, lanes), lanes)
    with T.serial(0, n) as i:
        k.store(state, 0, T.max(k.load(state, 0, lanes), k.load(x, base + i * inner, lanes)), lanes)
    with T.serial(0, n) as i:
        value = bind(k, exp_negative(k, k.load(x, base + i * inner, lanes) - k.load(state, 0, lanes), lanes))
        if not p["log"]:
            k.store(y, base + i * inner, value, lanes)
        k.store(state, lanes, k.load(state, lanes, lanes) + value, lanes)
    if p["log"]:
        shift = bind(k, log(k, bind(k, k.load(state, lanes, lanes)), lanes))
        with T.serial(0, n) as i:
            centred = k.load(x, base + i * inner, lanes) - k.load(state, 0, lanes)
            k.store(y, base + i * inner, centred - shift, lanes)
    else:
        factor = bind(k, k.f32(1.0, lanes) / k.load(state, lanes, lanes))
        with T.serial(0, n) as i:
            k.store(y, base + i * inner, k.load(y, base + i * inner, lanes) * factor, lanes)


def softmax_choice(node: ir.Node, low: Lowering) -> Choice | None:
    """Over channels it takes what is there."""
    rank = len(low.shape(node.outputs[0]))
    return FOLLOWS if rank > 2 and node.attributes.get_int("axis", -1) % rank == 1 else None


def lower_softmax(node: ir.Node, low: Lowering) -> Refusal | None:
    """Softmax and LogSoftmax of opset 13 and later."""
    x = node.inputs[0]
    assert x is not None
    if low.dtype(x) != "float32":
        return Refusal(f"element type {low.dtype(x)} is not float32")
    shape = low.shape(x)
    axis = (node.attributes["axis"].value if "axis" in node.attributes else -1) % len(shape)
    layout = "cl" if low.layout(x) == "cl" and axis == 1 else "row"
    source = low.get(x, layout)  # type: ignore[arg-type]
    if layout == "cl":
        outer, n, inner = source.size // shape[1], shape[1], 1
    else:
        outer, n, inner = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    out = low.new(node.outputs[0], layout)  # type: ignore[arg-type]
    params = {"outer": outer, "n": n, "inner": inner, "log": node.op_type == "LogSoftmax"}
    low.call("softmax", params, [source], [out], node=node.name or "", op=node.op_type, note=f"[{outer}, {n}, {inner}]")
    return None
