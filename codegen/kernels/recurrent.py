"""LSTM, GRU and RNN cells over a sequence: the inputs' part is one matrix product over all steps, the recurrence is here.

Gates follow ONNX: LSTM i, o, f, c; GRU z, r, h; RNN one. The recurrent product is a vector times R^T [H, gates * H], vectorised
over gates and hidden units, with 8 accumulators in registers.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.isa.vecmath import bind, fma, sigmoid, tanh
from sparsec.codegen.kernels.gemm import panel_width
from sparsec.codegen.program import Arg, Signature
from sparsec.codegen.strided import optional_input, put
from sparsec.target import Target

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_DEFAULT_ACTIVATIONS = {"LSTM": ["sigmoid", "tanh", "tanh"], "GRU": ["sigmoid", "tanh"], "RNN": ["tanh"]}
_ACCUMULATORS = 8


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """Units: (direction, batch) pairs; steps follow one another.

    projected [D, T, B, G * H] is X W^T without bias, recurrent [D, H, G * H] is R^T, bias [D, 2 * G * H] as in ONNX; states
    [D, B, H]; y [T, D, B, H].
    """
    d, t, b, h = p["directions"], p["steps"], p["batch"], p["hidden"]
    g = GATES[p["cell"]]
    args = [
        Arg("projected", "float32", d * t * b * g * h, "in"),
        Arg("recurrent", "float32", d * h * g * h, "in"),
        Arg("bias", "float32", d * 2 * g * h, "in"),
    ]
    args += [Arg(name, "float32", d * b * h, "in") for name in p["initial"]]
    sizes = {"y": t * d * b * h, "y_h": d * b * h, "y_c": d * b * h}
    args += [Arg(name, "float32", sizes[name], "out") for name in p["results"]]
    args += [Arg("work", "float32", g * h + 3 * h, "work")]
    return Signature(tuple(args), units=d * b, cost=2 * d * t * b * h * (g * h + 20 * g))


class _Cell:
    """Emits one unit. The work area holds the gates [G * H], then the hidden state, the cell state and r * h.

    Values pass from one formula to the next through the work area: TVM substitutes bound expressions where they are used, so
    that longer chains would grow exponentially.
    """

    def __init__(self, p: Mapping[str, Any], k: Any, direction: Any, batch: Any) -> None:
        self.p, self.k, self.T = p, k, k.T
        self.direction, self.batch = direction, batch
        self.h, self.gates = p["hidden"], GATES[p["cell"]]
        self.work = k.arg("work")
        self.state, self.cell, self.reset = (self.gates * self.h + i * self.h for i in range(3))

    def product(self, vector: int, first: int, last: int, step: Any) -> None:
        """work[first:last] = work[vector : vector + H] @ R^T[:, first:last] + biases, and the inputs' part of `step` if given."""
        T, lanes = self.T, self.k.lanes
        block = _ACCUMULATORS * lanes
        whole = (last - first) // block
        if whole:
            pieces = [(v * lanes, lanes) for v in range(_ACCUMULATORS)]
            with T.serial(0, whole) as b:
                self._columns(vector, first + b * block, pieces, step)
        rest, at = [], 0
        left = (last - first) % block
        while at < left:
            width = min(lanes, 1 << ((left - at).bit_length() - 1))
            rest.append((at, width))
            at += width
        if rest:
            self._columns(vector, first + whole * block, rest, step)

    def _columns(self, vector: int, column: Any, pieces: list[tuple[int, int]], step: Any) -> None:
        T, k = self.T, self.k
        total = self.gates * self.h
        sums = k.local(sum(width for _, width in pieces))
        for at, width in pieces:
            start = self.bias(column + at, width, recurrent=True)
            k.store(sums, at, start if step is None else start + self.input_part(column + at, width, step), width)
        with T.serial(0, self.h) as i:
            value = bind(k, k.load(self.work, vector + i))
            row = bind(k, (self.direction * self.h + i) * total + column)
            for at, width in pieces:
                factor, old = k.load(k.arg("recurrent"), row + at, width), k.load(sums, at, width)
                k.store(sums, at, fma(k, k.splat(value, width), factor, old, width), width)
        for at, width in pieces:
            k.store(self.work, column + at, k.load(sums, at, width), width)

    def bias(self, column: Any, lanes: int, *, recurrent: bool) -> Any:
        total = self.gates * self.h
        at = (self.direction * 2 + int(recurrent)) * total + column
        return self.k.load(self.k.arg("bias"), at, lanes)

    def input_part(self, column: Any, lanes: int, step: Any) -> Any:
        """x W^T + the inputs' bias, of one step."""
        p = self.p
        at = ((self.direction * p["steps"] + step) * p["batch"] + self.batch) * self.gates * self.h + column
        return self.k.load(self.k.arg("projected"), at, lanes) + self.bias(column, lanes, recurrent=False)

    def each(self, count: int, emit: Any) -> None:
        """emit(i, lanes) over [0, count): vectors, then single elements."""
        T, lanes = self.T, self.k.lanes
        whole = count // lanes
        if whole:
            with T.serial(0, whole) as v:
                emit(bind(self.k, v * lanes), lanes)
        if count % lanes:
            with T.serial(whole * lanes, count) as i:
                emit(i, 1)

    def get(self, place: int, i: Any, lanes: int) -> Any:
        return self.k.load(self.work, place + i, lanes)

    def put(self, place: int, i: Any, value: Any, lanes: int) -> None:
        self.k.store(self.work, place + i, value, lanes)

    def activate(self, function: Any, first: int, last: int) -> None:
        """Apply `function` in place to work[first:last]."""
        k = self.k
        self.each(last - first, lambda i, n: self.put(first, i, function(k, self.get(first, i, n), n), n))

    def step_lstm(self, step: Any) -> None:
        """c = f * c + i * tanh(g); h = o * tanh(c)."""
        h = self.h
        self.product(self.state, 0, 4 * h, step)
        self.activate(sigmoid, 0, 3 * h)
        self.activate(tanh, 3 * h, 4 * h)

        def emit(j: Any, lanes: int) -> None:
            i, o, f, new = (self.get(g * h, j, lanes) for g in range(4))
            self.put(self.cell, j, f * self.get(self.cell, j, lanes) + i * new, lanes)
            self.put(self.state, j, o * tanh(self.k, self.get(self.cell, j, lanes), lanes), lanes)

        self.each(h, emit)

    def step_gru(self, step: Any) -> None:
        """h = (1 - z) * n + z * h, the reset gate applied to h before the product or to the product after it."""
        h, after = self.h, self.p["linear_before_reset"]
        self.product(self.state, 0, 2 * h, step)
        self.activate(sigmoid, 0, 2 * h)
        if after:
            self.product(self.state, 2 * h, 3 * h, None)
        else:
            self.each(h, lambda j, n: self.put(self.reset, j, self.get(h, j, n) * self.get(self.state, j, n), n))
            self.product(self.reset, 2 * h, 3 * h, step)

        def emit(j: Any, lanes: int) -> None:
            part = self.get(2 * h, j, lanes)
            if after:
                part = self.get(h, j, lanes) * part + self.input_part(2 * h + j, lanes, step)
            self.put(2 * h, j, tanh(self.k, part, lanes), lanes)
            z, new, old = (self.get(place, j, lanes) for place in (0, 2 * h, self.state))
            self.put(self.state, j, (self.k.f32(1.0, lanes) - z) * new + z * old, lanes)

        self.each(h, emit)

    def step_rnn(self, step: Any) -> None:
        """h = tanh(x W + h R + b), or relu."""
        k = self.k
        self.product(self.state, 0, self.h, step)
        if self.p["activation"] == "relu":
            self.activate(lambda _, x, n: k.T.max(x, k.f32(0.0, n)), 0, self.h)
        else:
            self.activate(tanh, 0, self.h)
        self.move(self.work, 0, self.work, self.state)

    def move(self, source: Any, s: Any, dest: Any, d: Any) -> None:
        """H values from one place to another."""
        self.each(self.h, lambda j, lanes: self.k.store(dest, d + j, self.k.load(source, s + j, lanes), lanes))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Every unit: load the state, run all steps (backwards for the reverse direction), store what is asked for."""
    T = k.T
    steps, batch, h = p["steps"], p["batch"], p["hidden"]
    with T.serial(k.lo, k.hi) as unit:
        direction, row = bind(k, unit // batch), bind(k, unit % batch)
        cell = _Cell(p, k, direction, row)
        for name, place in (("initial_h", cell.state), ("initial_c", cell.cell)):
            if name in p["initial"]:
                cell.move(k.arg(name), unit * h, cell.work, place)
            else:
                cell.each(h, lambda j, n, at=place: k.store(cell.work, at + j, k.f32(0.0, n), n))
        counter = k.local(1, "int32")
        with T.serial(0, steps) as t:
            backwards = steps - 1 - t
            if p["direction"] == "bidirectional":
                # Through memory: TVM's simplifier takes very long on many indices that hold a select or a product.
                k.store(counter, 0, t + direction * (backwards - t))
                step = bind(k, k.load(counter, 0))
            else:
                step = bind(k, backwards) if p["direction"] == "reverse" else t
            {"LSTM": cell.step_lstm, "GRU": cell.step_gru, "RNN": cell.step_rnn}[p["cell"]](step)
            if "y" in p["results"]:
                at = bind(k, ((step * p["directions"] + direction) * batch + row) * h)
                cell.move(cell.work, cell.state, k.arg("y"), at)
        for name, place in (("y_h", cell.state), ("y_c", cell.cell)):
            if name in p["results"]:
                cell.move(cell.work, place, k.arg(name), unit * h)


def _refusal(node: ir.Node, low: Lowering, steps: int) -> Refusal | None:
    op, attributes = node.op_type, node.attributes
    if low.dtype(node.outputs[0] if node.outputs[0].name else node.outputs[1]) != "float32":
        return Refusal(f"{op} in another type than float32")
    if attributes.get_int("layout", 0):
        return Refusal(f"{op} with layout 1 (batch first)")
    if "clip" in attributes:
        return Refusal(f"{op} with a clipped cell")
    if attributes.get_int("input_forget", 0):
        return Refusal("LSTM with coupled input and forget gates")
    lengths = optional_input(node, 4)
    if lengths is not None:
        given = low.constant(lengths)
        if given is None or (given != steps).any():
            return Refusal(f"{op} with sequence lengths other than the whole sequence")
    peepholes = optional_input(node, 7)
    if peepholes is not None and ((given := low.constant(peepholes)) is None or given.any()):
        return Refusal("LSTM with peepholes")
    if "activation_alpha" in attributes or "activation_beta" in attributes:
        return Refusal(f"{op} with parameters of its activations")
    named = [a.lower() for a in attributes.get_strings("activations", ())]
    count = 2 if attributes.get_string("direction", "forward") == "bidirectional" else 1
    allowed = [_DEFAULT_ACTIVATIONS[op] * count, *([["relu"] * count] if op == "RNN" else [])]
    if named and named not in allowed:
        return Refusal(f"{op} with activations {named}; supported: {allowed}")
    return None


def _transposed(node: ir.Node, low: Lowering, value: ir.Value) -> Tensor:
    """R [D, G * H, H] as [D, H, G * H]: at compile time for a constant, else by one copy."""
    array = low.constant(value)
    d, rows, cols = low.shape(value)
    if array is not None:
        return low.const(array.transpose(0, 2, 1), f"{value.name}.transposed")
    source = low.get(value, "row")
    dest = low.temp("float32", (d, cols, rows), name=f"{value.name}.transposed")
    put(low, node, source, dest, (d, cols, rows), (rows * cols, 1, cols))
    return dest


def _project(node: ir.Node, low: Lowering, x: Tensor, weight: ir.Value) -> Tensor:
    """X W^T of every direction: [D, T * B, G * H]."""
    directions, n, k = low.shape(weight)
    m = prod(x.shape[:2])
    dest = low.temp("float32", (directions, m, n), name=f"{node.name}.projected")
    array = low.constant(weight)
    for d in range(directions):
        if array is None:
            whole = low.get(weight, "row")
            right = Tensor(whole.buffer, "float32", (n, k), "row", whole.offset + d * n * k * 4)
            b: dict[str, Any] = {"kind": "cols", "ldb": k, "batch_stride": 0, "size": n * k}
        else:
            nr = panel_width(n, m, low.target)
            rows = np.zeros((-(-n // nr) * nr, k), np.float32)
            rows[:n] = array[d]
            right = low.const(rows.reshape(-1, nr, k).transpose(0, 2, 1), f"{weight.name}.panels")
            b = {"kind": "packed"}
        params = {
            "m": m, "n": n, "k": k, "batch": 1, "batch_b": 1,
            "a": {"kind": "rows", "lda": k, "batch_stride": 0, "size": m * k}, "b": b,
            "c": {"ldc": n, "batch_stride": 0, "size": m * n},
            "bias": False, "residual": False, "act": "", "act_params": [],
        }  # fmt: skip
        part = Tensor(dest.buffer, "float32", (m, n), "row", d * m * n * 4)
        note = f"inputs [{m}, {k}] x [{k}, {n}]"
        low.call("gemm", params, [x, right], [part], node=node.name or "", op=node.op_type, note=note)
    return dest


def lower_recurrent(node: ir.Node, low: Lowering) -> Refusal | None:
    """LSTM, GRU and RNN, all directions, with initial states."""
    op = node.op_type
    x, w, r = node.inputs[:3]
    assert x is not None
    assert w is not None
    assert r is not None
    steps, batch, _ = low.shape(x)
    if (refusal := _refusal(node, low, steps)) is not None:
        return refusal
    directions, _, hidden = low.shape(r)
    if 0 in (steps, batch, hidden):
        return Refusal(f"{op} with an empty sequence, batch or state")
    bias = optional_input(node, 3)
    size = 2 * GATES[op] * hidden
    given = {"initial_h": optional_input(node, 5), "initial_c": optional_input(node, 6) if op == "LSTM" else None}
    initial = {name: value for name, value in given.items() if value is not None}
    wanted = {name: value for name, value in zip(("y", "y_h", "y_c"), node.outputs, strict=False) if value.name}
    params = {
        "cell": op,
        "direction": node.attributes.get_string("direction", "forward"),
        "directions": directions,
        "steps": steps,
        "batch": batch,
        "hidden": hidden,
        "linear_before_reset": bool(node.attributes.get_int("linear_before_reset", 0)),
        "activation": [a.lower() for a in node.attributes.get_strings("activations", ("tanh",))][-1],
        "initial": sorted(initial, reverse=True),
        "results": list(wanted),
    }
    ins = [
        _project(node, low, low.get(x, "row"), w),
        _transposed(node, low, r),
        low.const(np.zeros((directions, size), np.float32), "zero_bias") if bias is None else low.get(bias, "row"),
        *(low.get(initial[name], "row") for name in sorted(initial, reverse=True)),
    ]
    note = f"{params['direction']}, {steps} steps, hidden {hidden}"
    low.call("recurrent", params, ins, [low.new(v) for v in wanted.values()], node=node.name or "", op=op, note=note)
    return None
