"""Convolution with constant weights of any scheme as matrix multiplication on channels-last images (implicit GEMM)."""

from __future__ import annotations

from math import prod

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal
from sparsec.codegen.kernels.gemm import panel_width
from sparsec.codegen.kernels.weights import pack_bias, pack_weight
from sparsec.op_view import view


def lower_conv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv, 1-D and 2-D, any stride, padding, dilation and group."""
    op = view(node)
    assert op.x is not None
    shape, out_shape = low.shape(op.x), low.shape(op.output)
    if len(shape) not in (3, 4):
        return Refusal(f"{len(shape) - 2}-D convolution is not supported (1-D and 2-D are)")
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    if op.bias is not None and low.constant(op.bias) is None:
        return Refusal("the bias is not a constant")
    if op.residual is not None and low.shape(op.residual) != low.shape(op.output):
        return Refusal("the residual has not the shape of the result")
    if 0 in (*shape, *out_shape):
        return Refusal("the image is empty")
    rank = len(shape) - 2
    wide = rank == 1  # one row of pixels
    kernel = (1, *op.kernel_shape) if wide else op.kernel_shape
    strides = (1, *(op.strides or (1,))) if wide else (op.strides or (1, 1))
    dilations = (1, *(op.dilations or (1,))) if wide else (op.dilations or (1, 1))
    pads = op.pads or (0,) * (2 * rank)
    top, left = (0, pads[0]) if wide else (pads[0], pads[1])
    height, width = (1, shape[2]) if wide else shape[2:]
    out_h, out_w = (1, out_shape[2]) if wide else out_shape[2:]
    images, channels, groups = shape[0], shape[1], op.group
    c, n, taps = channels // groups, op.rows // groups, prod(kernel)
    m = images * out_h * out_w
    pointwise = taps == 1 and strides == (1, 1) and not any(pads)
    nr = panel_width(n, m, low.target)
    b, weights = pack_weight(op, low, nr, groups=groups, taps=taps)
    bias = pack_bias(op, low, nr, groups=groups)
    residual = [] if op.residual is None else [low.get(op.residual, "cl")]
    a = {"kind": "rows", "lda": channels, "batch_stride": c, "size": prod(shape)}
    if not pointwise:
        a = {
            "kind": "conv", "size": prod(shape), "batch_stride": c, "pixel_stride": channels, "c": c,
            "ih": height, "iw": width, "oh": out_h, "ow": out_w, "kh": kernel[0], "kw": kernel[1],
            "sh": strides[0], "sw": strides[1], "dh": dilations[0], "dw": dilations[1], "pt": top, "pl": left,
        }  # fmt: skip
    params = {
        "m": m, "n": n, "k": op.cols, "batch": groups, "batch_b": groups, "a": a, "b": b,
        "c": {"ldc": op.rows, "batch_stride": n, "size": prod(out_shape)},
        "bias": bool(bias), "residual": bool(residual), "act": op.activation, "act_params": list(op.act_params),
    }  # fmt: skip
    x = low.get(op.x, "cl")
    size = "x".join(str(v) for v in op.kernel_shape)
    note = f"{size} s{strides[-1]} {list(shape)} -> {list(out_shape)} {op.scheme} {op.activation}".strip()
    out = low.new(op.output, "cl")
    low.call("gemm", params, [x, *weights, *bias, *residual], [out], node=node.name or "", op="Conv", note=note)
    return None
