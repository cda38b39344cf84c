"""Convolution with constant weights of any scheme as matrix multiplication on channels-last images.

Plain float32 weights go to direct.py (3x3 windows on large images to winograd.py, 1x1 on small ones to dense.py, images of few channels
where row order is wanted to planar.py), all others, groups and images of a few pixels to gemm.py.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Layout, Lowering, Refusal
from sparsec.codegen.kernels import dense, direct, planar, winograd
from sparsec.codegen.kernels.gemm import panel_width
from sparsec.codegen.kernels.weights import epilogue, pack_bias, pack_weight, refused_epilogue
from sparsec.codegen.kernels.window import Window, read_window
from sparsec.codegen.layouts import Choice, multiply_time
from sparsec.op_view import SparsecNode, view

# Output rows shorter than this make tiles of too few pixels; rows of 1x1 convolutions shorter than _WIDE are joined, if the
# image has at most so many pixels: rows are what threads share.
_NARROWEST, _WIDE, _MOST_FLAT = 4, 14, 64


def conv_choice(node: ir.Node, low: Lowering) -> Choice:
    """Channels last; images of few channels, which are read as they lie, also in row order."""
    op = view(node)
    assert op.x is not None
    if prod(low.shape(op.x)[2:]) * prod(low.shape(op.output)[2:]) == 1:  # the same in both layouts (pixel.py)
        return Choice({"row": 0.0}, free=True)
    few = _is_direct(op, low) and low.shape(op.x)[1] <= direct.MOST_PLANES
    macs = prod(low.shape(op.output)) * op.cols
    cost: dict[Layout, float] = {"cl": multiply_time(low, macs, 0.7)}
    if _planar_window(op, low) is not None:
        cost["row"] = cost["cl"]
    return Choice(cost, free=few and op.residual is None)


def _planar_window(op: SparsecNode, low: Lowering) -> Window | None:
    """The window of a convolution that planar.py can do."""
    assert op.x is not None
    if op.residual is not None or low.dtype(op.x) != "float32" or not _is_direct(op, low) or 0 in low.shape(op.output):
        return None
    window = read_window(op.node, low, op.kernel_shape)
    if isinstance(window, Refusal) or not planar.applies(window, low.shape(op.x)[1], low.target):
        return None
    return window


def lower_planar(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv with plain float32 weights of an image of few channels, in row order."""
    op = view(node)
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    window = _planar_window(op, low)
    if window is None:
        return Refusal("not a plain convolution of few channels without a residual")
    if low.planned(node, ("cl", "row")) != "row":
        return Refusal("channels last is planned")
    assert op.x is not None
    shape, out_shape, weight = low.shape(op.x), low.shape(op.output), op.weight()
    assert isinstance(weight, np.ndarray)
    finish, added = epilogue(op, low)
    params = {**window.params(), "batch": shape[0], "channels": shape[1], "filters": op.rows, **finish}
    ins = [low.get(op.x), low.const(planar.pack(weight, params, low.target), f"{node.name}.weight"), *added]
    size = "x".join(str(v) for v in op.kernel_shape)
    note = f"{size} s{window.strides[1]} {list(shape)} -> {list(out_shape)} {op.scheme} {op.activation}".strip()
    low.call("planar", params, ins, [low.new(op.output)], node=node.name or "", op="Conv", note=note)
    return None


def _is_direct(op: SparsecNode, low: Lowering) -> bool:
    """Whether direct.py takes this convolution: plain weights, one group, more than a few pixels a row."""
    if not op.scheme.is_plain or op.group != 1 or min(op.pads, default=0) < 0:
        return False
    shape = low.shape(op.output)
    return (prod(shape[2:]) if _is_pointwise(op) else shape[-1]) >= _NARROWEST


def _is_pointwise(op: SparsecNode) -> bool:
    return prod(op.kernel_shape) == 1 and set(op.strides) <= {1} and not any(op.pads)


def _flatten(window: Window) -> Window:
    """The window of a 1x1 convolution on a small image as one row of pixels: its tiles fill the registers better."""
    if window.out[1] >= _WIDE or prod(window.out) > _MOST_FLAT:
        return window
    flat = (1, prod(window.out))
    return replace(window, size=flat, out=flat)


def lower_direct(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv with plain float32 weights and one group."""
    op = view(node)
    assert op.x is not None
    if len(low.shape(op.x)) not in (3, 4) or low.dtype(op.x) != "float32" or 0 in low.shape(op.output):
        return Refusal("not a float32 image of one or two dimensions")
    if not _is_direct(op, low):
        return Refusal("only plain weights, one group and more than a few pixels a row")
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
    window = read_window(node, low, op.kernel_shape)
    if isinstance(window, Refusal):
        return window
    window = _flatten(window) if _is_pointwise(op) else window
    shape, out_shape, weight = low.shape(op.x), low.shape(op.output), op.weight()
    assert isinstance(weight, np.ndarray)
    out, pitch = (low.new(op.output, "cl"), op.rows) if op.residual is not None else low.strided(op.output, "cl")
    planes = shape[1] <= direct.MOST_PLANES and low.layout(op.x) == "row"
    finish, added = epilogue(op, low, layout="cl")
    params = {
        **window.params(), "x": "row" if planes else "cl", "batch": shape[0], "channels": shape[1], "filters": op.rows,
        "pitch": pitch, **finish,
    }  # fmt: skip
    family, pack = "direct", direct.pack
    if _is_pointwise(op) and window.out[0] == 1 and pitch == op.rows and not planes:  # a matrix of pixels
        family, pack = "dense", dense.pack
        params = {"m": shape[0] * window.out[1], "n": op.rows, "k": op.cols, **finish}
    elif winograd.applies(window, shape[1], op.rows):
        family, pack = "winograd", winograd.pack
    x = low.get(op.x, "row" if planes else "cl")
    ins = [x, low.const(pack(weight, params, low.target), f"{node.name}.weight"), *added]
    size = "x".join(str(v) for v in op.kernel_shape)
    note = f"{size} s{window.strides[1]} {list(shape)} -> {list(out_shape)} {op.scheme} {op.activation}".strip()
    low.call(family, params, ins, [out], node=node.name or "", op="Conv", note=note)
    return None


def lower_conv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv, 1-D and 2-D, any stride, padding, dilation and group."""
    op = view(node)
    assert op.x is not None
    shape, out_shape = low.shape(op.x), low.shape(op.output)
    if len(shape) not in (3, 4):
        return Refusal(f"{len(shape) - 2}-D convolution is not supported (1-D and 2-D are)")
    if low.dtype(op.x) != "float32":
        return Refusal(f"element type {low.dtype(op.x)} is not float32")
    if (refusal := refused_epilogue(op, low)) is not None:
        return refusal
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
    # A residual lies like the result, so that it keeps a result from being produced with gaps.
    out, pitch = (low.new(op.output, "cl"), op.rows) if residual else low.strided(op.output, "cl")
    a = {"kind": "rows", "lda": channels, "batch_stride": c, "size": prod(shape)}
    if not pointwise:
        a = {
            "kind": "conv", "size": prod(shape), "batch_stride": c, "pixel_stride": channels, "c": c,
            "ih": height, "iw": width, "oh": out_h, "ow": out_w, "kh": kernel[0], "kw": kernel[1],
            "sh": strides[0], "sw": strides[1], "dh": dilations[0], "dw": dilations[1], "pt": top, "pl": left,
        }  # fmt: skip
    params = {
        "m": m, "n": n, "k": op.cols, "batch": groups, "batch_b": groups, "a": a, "b": b,
        "c": {"ldc": pitch, "batch_stride": n, "size": (m - 1) * pitch + op.rows},
        "bias": bool(bias), "residual": bool(residual), "act": op.activation, "act_params": list(op.act_params),
    }  # fmt: skip
    x = low.get(op.x, "cl")
    size = "x".join(str(v) for v in op.kernel_shape)
    note = f"{size} s{strides[-1]} {list(shape)} -> {list(out_shape)} {op.scheme} {op.activation}".strip()
    low.call("gemm", params, [x, *weights, *bias, *residual], [out], node=node.name or "", op="Conv", note=note)
    return None
