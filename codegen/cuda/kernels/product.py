"""Products without tensor cores, any operands: C[M, N] = act(A[M, K] . B[K, N] + bias + residual). One thread a result.

Takes the parameters of kernels/gemm.py: A `rows` or `conv` (receptive fields of a channels-last image, K in the order kernel row,
kernel column, channel), B `rows`, `cols` ([N][K]) or `packed`. A constant weight is `cols`, in halves; any scheme is decoded when the
model is compiled.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Tensor
from sparsec.codegen.cuda import epilogue
from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.isa.epilogue import activation_cost
from sparsec.codegen.kernels.gemm import panel_width
from sparsec.codegen.kernels.weights import epilogue as fused_end
from sparsec.codegen.kernels.weights import refused_epilogue
from sparsec.codegen.kernels.window import read_window
from sparsec.codegen.program import Arg, Decision, Signature
from sparsec.formats.encoded import EncodedWeight, decode, unpack
from sparsec.int8 import rounded_values
from sparsec.op_view import SparsecNode, view
from sparsec.target import Target

_BLOCK = 128


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: a, b (its dtype in the parameters, else float32), bias?, residual?; out: c."""
    b = p["b"]
    size = p["batch_b"] * p["k"] * _padded(p, target) if b["kind"] == "packed" else b["size"]
    args = [Arg("a", "float32", p["a"]["size"], "in"), Arg("b", b.get("dtype", "float32"), size, "in")]
    args += epilogue.arguments(p, p["batch_b"] * p["n"], p["c"]["size"])
    args.append(Arg("c", "float32", p["c"]["size"], "out"))
    results = p["batch"] * p["m"] * p["n"]
    return Signature(tuple(args), units=results, cost=results * (2 * p["k"] + 2 + activation_cost(p["act"])))


def _padded(p: Mapping[str, Any], target: Target) -> int:
    """Columns of all panels of a packed operand."""
    width = panel_width(p["n"], p["m"], target)
    return -(-int(p["n"]) // width) * width


def launch(p: Mapping[str, Any], target: Target) -> Launch:
    """A thread a result; neighbours have neighbouring columns."""
    return lines(-(-p["batch"] * p["m"] * p["n"] // _BLOCK), _BLOCK)


def build(p: Mapping[str, Any], k: Any) -> None:
    """One result of one thread."""
    T, m, n = k.T, p["m"], p["n"]
    index = k.let(k.block[0] * _BLOCK + k.thread[0])
    with T.If(index < p["batch"] * m * n), T.Then():
        column = k.let(T.truncmod(index, n))
        row = k.let(T.truncmod(T.truncdiv(index, n), m))
        batch = k.let(T.truncdiv(index, m * n))
        total = k.local(1)
        k.store(total, 0, T.float32(0))
        b = p["b"]
        if b["kind"] == "packed":
            b_step = panel_width(n, m, k.target)
            inside = T.truncdiv(column, b_step) * (p["k"] * b_step) + T.truncmod(column, b_step)
            b_start = k.let((batch * (p["k"] * _padded(p, k.target)) if p["batch_b"] > 1 else 0) + inside)
        else:
            b_start = k.let(batch * b["batch_stride"] + column * (b["ldb"] if b["kind"] == "cols" else 1))
            b_step = 1 if b["kind"] == "cols" else b["ldb"]

        def add(a_index: Any, i: Any) -> None:
            value = k.load(k.arg("a"), a_index) * k.load(k.arg("b"), b_start + i * b_step)
            k.store(total, 0, k.load(total, 0) + value)

        a = p["a"]
        start = k.let(batch * a["batch_stride"])
        if a["kind"] == "rows":
            a_start = k.let(start + row * a["lda"])
            with T.serial(0, p["k"]) as i:
                add(a_start + i, i)
        else:
            _receptive_field(k, a, row, start, add)
        where = k.let(batch * p["c"]["batch_stride"] + row * p["c"]["ldc"] + column)
        place = k.let((batch * n if p["batch_b"] > 1 else 0) + column)
        k.store(k.arg("c"), where, epilogue.finish(k, p, k.load(total, 0), place, where))


def _receptive_field(k: Any, a: Mapping[str, Any], row: Any, start: Any, add: Any) -> None:
    """add(index into the image, index into K) for all that the pixel `row` sees of the image."""
    T = k.T
    x = k.let(T.truncmod(row, a["ow"]))
    y = k.let(T.truncmod(T.truncdiv(row, a["ow"]), a["oh"]))
    image = k.let(T.truncdiv(row, a["ow"] * a["oh"]))
    with T.serial(0, a["kh"]) as i:
        line = k.let(y * a["sh"] + i * a["dh"] - a["pt"])
        with T.If(T.And(line >= 0, line < a["ih"])), T.Then(), T.serial(0, a["kw"]) as j:
            column = k.let(x * a["sw"] + j * a["dw"] - a["pl"])
            with T.If(T.And(column >= 0, column < a["iw"])), T.Then():
                pixel = k.let(start + ((image * a["ih"] + line) * a["iw"] + column) * a["pixel_stride"])
                with T.serial(0, a["c"]) as c:
                    add(pixel + c, (i * a["kw"] + j) * a["c"] + c)


# --- lowering -----------------------------------------------------------------------------------------------------------


def halves(array: np.ndarray[Any, Any], low: Lowering, name: str) -> Tensor | Refusal:
    """The array as a constant of the target's storage type; refuses numbers that it cannot hold."""
    with np.errstate(over="ignore"):
        stored = array.astype(ml_dtypes.bfloat16 if low.target.storage == "bfloat16" else np.float16)
    if not np.isfinite(stored).all():
        return Refusal(f"a weight of {np.abs(array).max():.3g} is beyond {low.target.storage}")
    return low.const(stored, name)


def dense_weight(op: SparsecNode) -> np.ndarray[Any, Any]:
    """float32 W[N, K]; next to int8 activations with the tables that those are multiplied with (sparsec/int8.py)."""
    weight = op.weight()
    if not isinstance(weight, EncodedWeight):
        return weight
    book = unpack(weight).codebook
    return decode(replace(weight, codebook=rounded_values(book)) if op.activations and book is not None else weight)


def lower_conv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv, 1-D and 2-D, any stride, padding, dilation and group, weights decoded now."""
    op = view(node)
    assert op.x is not None
    shape, out_shape = low.shape(op.x), low.shape(op.output)
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    if 0 in (*shape, *out_shape):
        return Refusal("the image is empty")
    window = read_window(node, low, op.kernel_shape)
    if isinstance(window, Refusal):
        return window
    images, channels, groups = shape[0], shape[1], op.group
    c, n, taps = channels // groups, op.rows // groups, prod(op.kernel_shape)
    matrix = dense_weight(op).reshape(op.rows, c, taps).transpose(0, 2, 1)
    weight = halves(np.ascontiguousarray(matrix), low, f"{node.name}.weight")
    if isinstance(weight, Refusal):
        return weight
    if not op.scheme.is_plain:
        why = f"no GPU kernel of grouped convolutions takes {op.scheme}"
        low.program.decisions[node.name or ""] = Decision((), decoded=True, reason=why, stored=low.target.storage)
    (ih, iw), (oh, ow) = window.size, window.out
    finish, added = fused_end(op, low, layout="cl")
    # A residual lies like the result, so that it keeps a result from being produced with gaps.
    out, pitch = (low.new(op.output, "cl"), op.rows) if op.residual is not None else low.strided(op.output, "cl")
    m = images * oh * ow
    params = {
        "m": m, "n": n, "k": op.cols, "batch": groups, "batch_b": groups,
        "a": {
            "kind": "conv", "size": prod(shape), "batch_stride": c, "pixel_stride": channels, "c": c,
            "ih": ih, "iw": iw, "oh": oh, "ow": ow, "kh": window.kernel[0], "kw": window.kernel[1],
            "sh": window.strides[0], "sw": window.strides[1], "dh": window.dilations[0], "dw": window.dilations[1],
            "pt": window.pads[0], "pl": window.pads[1],
        },
        "b": {"kind": "cols", "ldb": op.cols, "batch_stride": n * op.cols, "size": op.rows * op.cols, "dtype": weight.dtype},
        "c": {"ldc": pitch, "batch_stride": n, "size": (m - 1) * pitch + op.rows}, **finish,
    }  # fmt: skip
    size = "x".join(str(v) for v in op.kernel_shape)
    note = f"{size} s{window.strides[1]} {list(shape)} -> {list(out_shape)} {op.scheme} {op.activation}".strip()
    x = low.get(op.x, "cl")
    low.call("cuda.product", params, [x, weight, *added], [out], node=node.name or "", op="Conv", note=note)
    return None
