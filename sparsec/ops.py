"""The `sparsec` ONNX domain: nodes whose weights are encoded, their function bodies, and the view code generators read.

Decode(weight...) -> W in its ONNX shape            attributes: scheme rows cols shape trans
MatMul(x, weight..., bias?, residual?)              = act(x @ W^T + bias + residual)    x [..., K] -> [..., N]
                                                      attribute activations: x in int8 (see int8.py), or products
                                                      in 16 bits, also of Conv (see fixed.py)
Conv(x, weight..., bias?, residual?)                = act(conv(x, W) + bias + residual)  and ONNX Conv's attributes
Gather(weight..., indices)                          = W[indices]
Quantise(x)                                         = x in whole numbers of a fixed scale (see int8.py, static activations)
Attention(q, k, v, mask?)                           = softmax(scale q k^T + mask) v, no weight (see `attention`)

`weight...` are the arrays of `Scheme.roles` in that order; scheme fp32 has one, W[N, K] itself. Every node calls a
model-local function of standard operators, so the file runs in any onnxruntime. The function's overload names
everything its body was specialised for; nodes with equal overloads share one function. Overloads need IR version 10,
which `Built.register` sets.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec import fixed, int8
from sparsec.activations import activation as find_activation
from sparsec.built_op import Built
from sparsec.decode_body import decode_body
from sparsec.errors import ModelError, WeightError
from sparsec.formats import EncodedWeight, Scheme
from sparsec.formats import decode as decode_weight
from sparsec.onnx_body import Body, reference
from sparsec.op_view import DOMAIN, Kind, SparsecNode, WeightInputs, is_sparsec, read_weight, view, weight_inputs_of
from sparsec.weightless_ops import attention, quantise

__all__ = [
    "DOMAIN",
    "Built",
    "Kind",
    "SparsecNode",
    "WeightInputs",
    "attention",
    "conv",
    "decode",
    "gather",
    "is_sparsec",
    "matmul",
    "quantise",
    "read_weight",
    "view",
    "weight_inputs",
    "weight_inputs_of",
]

_PLAIN = Scheme.parse("fp32")


def weight_inputs(weight: EncodedWeight | np.ndarray, name: str) -> WeightInputs:
    """New initializers for a weight: "<name>.codes", "<name>.scales" ... if encoded, "<name>" for plain W[N, K].

    Raises WeightError for a plain weight that is not a float32 matrix.
    """
    if isinstance(weight, EncodedWeight) and weight.scheme.is_plain:
        weight = decode_weight(weight)
    if isinstance(weight, np.ndarray):
        if weight.ndim != 2 or weight.dtype != np.float32:
            raise WeightError(
                f"weight '{name}' is {weight.dtype}{list(weight.shape)}; needs a float32 matrix [outputs, inputs]"
            )
        return WeightInputs(_PLAIN, weight.shape[0], weight.shape[1], (_initializer(name, weight),))
    values = tuple(_initializer(f"{name}.{role}", array) for role, array in weight.arrays().items())
    return WeightInputs(weight.scheme, weight.rows, weight.cols, values)


def _initializer(name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.ascontiguousarray(array), name=name)
    return ir.Value(name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)


def decode(weight: WeightInputs, shape: Sequence[int], *, trans: bool = False, name: str = "") -> Built:
    """sparsec::Decode: W (transposed if `trans`) in ONNX shape `shape`."""
    if math.prod(shape) != weight.rows * weight.cols:
        raise ModelError(f"Decode '{name}': shape {list(shape)} does not hold {weight.rows} x {weight.cols} values")

    def fill(body: Body, values: dict[str, ir.Value]) -> ir.Value:
        result = decode_body(body, values, weight.scheme, weight.rows, weight.cols)
        if trans:
            result = body.op("Transpose", result, perm=[1, 0])
        shape_of = reference("shape", ir.AttributeType.INTS, "value_ints")
        target = body.op("Constant", references={"value_ints": shape_of})
        return body.op("Reshape", result, target)

    return _build(
        "Decode",
        weight,
        fill,
        {"shape": list(shape), "trans": int(trans)},
        ["trans"] if trans else [],
        (),
        (),
        name,
        shape,
    )


def matmul(
    x: ir.Value,
    weight: WeightInputs,
    *,
    bias: ir.Value | None = None,
    residual: ir.Value | None = None,
    activation: str = "",
    act_params: Sequence[float] = (),
    activations: str = "",
    name: str = "",
) -> Built:
    """sparsec::MatMul: act(x @ W^T + bias + residual); bias [N], residual broadcasts to the result.

    activations: "" for float32, "int8" or "int8-g<group>" for dynamically quantised x (see int8.py), "int16" for products that may
    be rounded to 16 bits (see fixed.py). Raises ModelError for another value, or where the scheme has no bytes to multiply.
    """
    group = 0
    rounds = activations not in ("", fixed.NAME)
    if rounds:
        group = int8.activation_group(activations, weight.cols)
        if why := int8.refusal(weight.scheme):
            raise ModelError(f"MatMul '{name}': int8 activations do not go with scheme {weight.scheme}: {why}")

    def fill(body: Body, values: dict[str, ir.Value]) -> ir.Value:
        x = values["x"]
        if rounds:
            x = int8.quantised_body(body, x, group, weight.cols)
            values = int8.rounded_weight(body, values, weight.scheme)
        matrix = decode_body(body, values, weight.scheme, weight.rows, weight.cols)
        result = body.op("MatMul", x, body.op("Transpose", matrix, perm=[1, 0]))
        if bias is not None:
            result = body.op("Add", result, values["bias"])
        return _epilogue(body, result, values, activation, act_params)

    shape = None if x.shape is None else [*x.shape[:-1], weight.rows]
    attributes, marks = _fused_attributes(activation, act_params)
    if activations:
        attributes["activations"] = activations
        marks.insert(0, f"x:{activations}")
    return _build(
        "MatMul", weight, fill, attributes, marks, (("x", x),), (("bias", bias), ("residual", residual)), name, shape
    )


def conv(
    x: ir.Value,
    weight: WeightInputs,
    *,
    kernel_shape: Sequence[int],
    strides: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    dilations: Sequence[int] | None = None,
    group: int = 1,
    bias: ir.Value | None = None,
    residual: ir.Value | None = None,
    activation: str = "",
    act_params: Sequence[float] = (),
    activations: str = "",
    name: str = "",
) -> Built:
    """sparsec::Conv over any number of spatial dimensions; W is [O, I/group * prod(kernel_shape)]; pads as in ONNX.

    activations: "" or "int16", as of `matmul`; ModelError for another value.
    """
    if activations not in ("", fixed.NAME):
        raise ModelError(f"Conv '{name}': activations '{activations}' are not known; allowed: {fixed.NAME}")
    dims = len(kernel_shape)
    geometry: dict[str, Any] = {
        "kernel_shape": list(kernel_shape),
        "strides": list(strides or [1] * dims),
        "pads": list(pads or [0] * 2 * dims),
        "dilations": list(dilations or [1] * dims),
    }
    taps = math.prod(kernel_shape)
    if weight.cols % taps or group < 1 or weight.rows % group:
        raise ModelError(
            f"Conv '{name}': kernel {list(kernel_shape)} and group {group} do not fit "
            f"a weight of {weight.rows} x {weight.cols}"
        )

    def fill(body: Body, values: dict[str, ir.Value]) -> ir.Value:
        matrix = decode_body(body, values, weight.scheme, weight.rows, weight.cols)
        shape = body.ints_const([weight.rows, weight.cols // taps, *kernel_shape])
        attributes = {key: reference(key, ir.AttributeType.INTS) for key in geometry}
        attributes["group"] = reference("group", ir.AttributeType.INT)
        kernel = body.op("Reshape", matrix, shape)
        result = body.op("Conv", values["x"], kernel, values.get("bias"), references=attributes)
        return _epilogue(body, result, values, activation, act_params)

    attributes, marks = _fused_attributes(activation, act_params)
    attributes |= geometry | {"group": group}
    if activations:
        attributes["activations"] = activations
    marks = ["k" + "x".join(map(str, kernel_shape)), f"{weight.rows}x{weight.cols}", *marks]
    if activations:
        marks.insert(0, f"x:{activations}")
    return _build(
        "Conv",
        weight,
        fill,
        attributes,
        marks,
        (("x", x),),
        (("bias", bias), ("residual", residual)),
        name,
        _conv_shape(x, weight.rows, geometry),
    )


def gather(weight: WeightInputs, indices: ir.Value, *, name: str = "") -> Built:
    """sparsec::Gather: the rows of W at `indices` (any shape, int32 or int64, negative ones count from the end)."""

    def fill(body: Body, values: dict[str, ir.Value]) -> ir.Value:
        ids = body.cast(values["indices"], "INT64")
        flat = body.op("Reshape", ids, body.ints_const([-1]))
        from_end = body.op("Add", flat, body.int_const(weight.rows))
        flat = body.op("Where", body.op("Less", flat, body.int_const(0)), from_end, flat)
        table = decode_body(body, values, weight.scheme, weight.rows, weight.cols, flat)
        shape = body.op("Concat", body.op("Shape", ids), body.ints_const([weight.cols]), axis=0)
        return body.op("Reshape", table, shape)

    shape = None if indices.shape is None else [*indices.shape, weight.cols]
    return _build("Gather", weight, fill, {}, [], (), (("indices", indices),), name, shape)


def _epilogue(
    body: Body, result: ir.Value, values: dict[str, ir.Value], activation: str, act_params: Sequence[float]
) -> ir.Value:
    if "residual" in values:
        result = body.op("Add", result, values["residual"])
    return find_activation(activation, act_params).body(body, result, *act_params)


def _fused_attributes(activation: str, act_params: Sequence[float]) -> tuple[dict[str, Any], list[str]]:
    find_activation(activation, act_params)
    params = [float(np.float32(value)) for value in act_params]
    attributes: dict[str, Any] = {"activation": activation, "act_params": ir.AttrFloat32s("act_params", params)}
    listed = f"({','.join(f'{value:.9g}' for value in params)})" if params else ""
    return attributes, [activation + listed] if activation else []


def _conv_shape(x: ir.Value, outputs: int, geometry: dict[str, list[int]]) -> list[Any] | None:
    if x.shape is None or not all(isinstance(size, int) for size in x.shape[2:]):
        return None
    dims = len(geometry["kernel_shape"])
    if len(x.shape) != dims + 2:
        raise ModelError(f"Conv: x has shape {x.shape}, kernel {geometry['kernel_shape']} needs {dims + 2} dimensions")
    pads = geometry["pads"]
    spatial = [
        (int(x.shape[2 + i]) + pads[i] + pads[dims + i] - d * (k - 1) - 1) // s + 1  # type: ignore[arg-type]
        for i, (k, s, d) in enumerate(
            zip(geometry["kernel_shape"], geometry["strides"], geometry["dilations"], strict=True)
        )
    ]
    return [x.shape[0], outputs, *spatial]


def _build(
    kind: Kind,
    weight: WeightInputs,
    fill: Callable[[Body, dict[str, ir.Value]], ir.Value],
    attributes: dict[str, Any],
    marks: Sequence[str],
    before: Sequence[tuple[str, ir.Value]],
    after: Sequence[tuple[str, ir.Value | None]],
    name: str,
    shape: Sequence[Any] | None,
) -> Built:
    scheme = weight.scheme
    inputs = [*before, *zip(scheme.roles, weight.values, strict=True), *after]
    # Trailing absent inputs are left out, absent ones in the middle are empty.
    while inputs and inputs[-1][1] is None:
        inputs.pop()
    presence = [role for role, value in after if value is not None and role != "indices"]
    size = [] if scheme.is_plain and kind != "Gather" else [f"{weight.rows}x{weight.cols}"]
    overload = "/".join(dict.fromkeys([str(scheme), *size, *marks, *presence]))
    all_attributes = {"scheme": str(scheme), "rows": weight.rows, "cols": weight.cols, **attributes}
    node = ir.node(
        kind,
        [value for _, value in inputs],
        all_attributes,
        domain=DOMAIN,
        overload=overload,
        name=name or None,
    )
    node.outputs[0].dtype = ir.DataType.FLOAT
    if shape is not None:
        node.outputs[0].shape = ir.Shape(shape)

    def make(opset: int) -> ir.Function:
        formal = [ir.Value(name=role) for role, _ in inputs]
        given = {role: value for (role, actual), value in zip(inputs, formal, strict=True) if actual is not None}
        body = Body()
        result = fill(body, given)
        kinds = [(key, attribute.type) for key, attribute in node.attributes.items()]
        return body.function(DOMAIN, kind, overload, formal, result, kinds, opset)

    return Built(node, weight.values, overload, make)
