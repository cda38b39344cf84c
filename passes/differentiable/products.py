"""Products, convolutions, pooling, norms, softmax and reductions of ONNX in torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F

from sparsec.passes.differentiable.node import Builder, NodeView, Refused, Run

__all__ = ["PRODUCTS"]

Tensor = torch.Tensor
_CONV: tuple[Callable[..., Tensor], ...] = (F.conv1d, F.conv2d, F.conv3d)
_CONV_TRANSPOSE: tuple[Callable[..., Tensor], ...] = (F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
_MAX: tuple[Callable[..., Any], ...] = (F.max_pool1d, F.max_pool2d, F.max_pool3d)
_MEAN: tuple[Callable[..., Any], ...] = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def _gemm(view: NodeView) -> Run:
    alpha, beta = view.number("alpha", 1.0), view.number("beta", 1.0)
    flip_a, flip_b = view.integer("transA", 0), view.integer("transB", 0)

    def run(a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
        product = torch.matmul(a.T if flip_a else a, b.T if flip_b else b)
        product = product if alpha == 1 else alpha * product
        return product if c is None else product + (c if beta == 1 else beta * c)

    return run


def _spatial(view: NodeView, kernel: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Strides, dilations, pads before and after."""
    view.refuse_auto_pad()
    rank = len(kernel)
    if not 1 <= rank <= 3:
        raise Refused(f"{rank} spatial dimensions")
    pads = view.ints("pads", (0,) * 2 * rank)
    return view.ints("strides", (1,) * rank), view.ints("dilations", (1,) * rank), pads[:rank], pads[rank:]


def _padded(x: Tensor, low: tuple[int, ...], high: tuple[int, ...], value: float = 0.0) -> Tensor:
    flat = [width for pair in reversed(list(zip(low, high, strict=True))) for width in pair]
    return F.pad(x, flat, value=value) if any(flat) else x


def _conv(view: NodeView) -> Run:
    kernel = view.shape(1)[2:]
    strides, dilations, low, high = _spatial(view, kernel)
    groups, convolve = view.integer("group", 1), _CONV[len(kernel) - 1]

    def run(x: Tensor, w: Tensor, b: Tensor | None = None) -> Tensor:
        if low == high:
            return convolve(x, w, b, strides, low, dilations, groups)
        return convolve(_padded(x, low, high), w, b, strides, 0, dilations, groups)

    return run


def _conv_transpose(view: NodeView) -> Run:
    kernel = view.shape(1)[2:]
    strides, dilations, low, high = _spatial(view, kernel)
    if low != high or view.ints("output_shape"):
        raise Refused("pads that differ at the two ends, or an output_shape")
    groups, convolve = view.integer("group", 1), _CONV_TRANSPOSE[len(kernel) - 1]
    extra = view.ints("output_padding", (0,) * len(kernel))
    return lambda x, w, b=None: convolve(x, w, b, strides, low, extra, groups, dilations)


def _window(view: NodeView) -> tuple[tuple[int, ...], ...]:
    """Kernel, strides, dilations, pads before, after, and those at the end that rounding up needs."""
    kernel = view.ints("kernel_shape")
    strides, dilations, low, high = _spatial(view, kernel)
    extra = []
    for axis, size in enumerate(view.shape(0)[2:]):
        reach = (kernel[axis] - 1) * dilations[axis] + 1
        needed = (view.result()[2 + axis] - 1) * strides[axis] + reach
        extra.append(max(0, needed - size - low[axis] - high[axis]))
    return kernel, strides, dilations, low, high, tuple(extra)


def _max_pool(view: NodeView) -> Run:
    if len(view.node.outputs) > 1:
        raise Refused("its indices are read")
    kernel, strides, dilations, low, high, extra = _window(view)
    pool, after = _MAX[len(kernel) - 1], tuple(a + b for a, b in zip(high, extra, strict=True))
    return lambda x: pool(_padded(x, low, after, float("-inf")), kernel, strides, 0, dilations)


def _average_pool(view: NodeView) -> Run:
    kernel, strides, dilations, low, high, extra = _window(view)
    if any(step > 1 for step in dilations):
        raise Refused("dilations")
    pool, after = _MEAN[len(kernel) - 1], tuple(a + b for a, b in zip(high, extra, strict=True))
    # The share of each window that counts.
    ones = torch.ones((1, 1, *view.shape(0)[2:]))
    ones = _padded(ones, low, high, float(view.integer("count_include_pad", 0)))
    share = pool(_padded(ones, (0,) * len(kernel), extra), kernel, strides)
    whole = bool((share == 1).all())

    def run(x: Tensor) -> Tensor:
        mean: Tensor = pool(_padded(x, low, after), kernel, strides)
        return mean if whole else mean / share

    return run


def _global_average(x: Tensor) -> Tensor:
    return x.mean(tuple(range(2, x.dim())), keepdim=True)


def _global_max(x: Tensor) -> Tensor:
    return x.amax(tuple(range(2, x.dim())), keepdim=True)


def _layer_norm(view: NodeView) -> Run:
    if len(view.node.outputs) > 1:
        raise Refused("its mean or deviation is read")
    shape, epsilon = view.shape(0)[view.axis(-1) :], view.number("epsilon", 1e-5)

    def run(x: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
        found = F.layer_norm(x, shape, None, None, epsilon) * scale
        return found if bias is None else found + bias

    return run


def _rms_norm(view: NodeView) -> Run:
    axes = tuple(range(view.axis(-1), len(view.shape(0))))
    epsilon = view.number("epsilon", 1e-5)
    return lambda x, scale: x * torch.rsqrt(x.square().mean(axes, keepdim=True) + epsilon) * scale


def _instance_norm(view: NodeView) -> Run:
    axes = tuple(range(2, len(view.shape(0))))
    epsilon, shape = view.number("epsilon", 1e-5), (-1, *(1,) * len(axes))

    def run(x: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        off = x - x.mean(axes, keepdim=True)
        found = off * torch.rsqrt(off.square().mean(axes, keepdim=True) + epsilon)
        return found * scale.reshape(shape) + bias.reshape(shape)

    return run


def _batch_norm(view: NodeView) -> Run:
    if view.integer("training_mode", 0):
        raise Refused("training_mode")
    epsilon, shape = view.number("epsilon", 1e-5), (-1, *(1,) * (len(view.shape(0)) - 2))

    def run(x: Tensor, scale: Tensor, bias: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
        factor = scale * torch.rsqrt(variance + epsilon)
        return x * factor.reshape(shape) + (bias - mean * factor).reshape(shape)

    return run


def _softmax(view: NodeView) -> Run:
    axis = view.axis(-1)
    return lambda x: torch.softmax(x, axis)


def _log_softmax(view: NodeView) -> Run:
    axis = view.axis(-1)
    return lambda x: torch.log_softmax(x, axis)


def _reduction(function: Callable[[Tensor, tuple[int, ...], bool], Tensor]) -> Builder:
    def build(view: NodeView) -> Run:
        keep, rank = bool(view.integer("keepdims", 1)), len(view.shape(0))
        axes = tuple(axis % rank for axis in view.integers(1, "axes"))
        if not axes and view.integer("noop_with_empty_axes", 0):
            return lambda x, *_: x
        over = axes or tuple(range(rank))
        return lambda x, *_: function(x, over, keep)

    return build


PRODUCTS: dict[str, Builder] = {
    "AveragePool": _average_pool,
    "BatchNormalization": _batch_norm,
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "GlobalAveragePool": lambda view: _global_average,
    "GlobalMaxPool": lambda view: _global_max,
    "InstanceNormalization": _instance_norm,
    "LayerNormalization": _layer_norm,
    "LogSoftmax": _log_softmax,
    "MatMul": lambda view: torch.matmul,
    "MaxPool": _max_pool,
    "RMSNormalization": _rms_norm,
    "ReduceL1": _reduction(lambda x, axes, keep: x.abs().sum(axes, keep)),
    "ReduceL2": _reduction(lambda x, axes, keep: torch.linalg.vector_norm(x, 2, axes, keep)),
    "ReduceLogSumExp": _reduction(torch.logsumexp),
    "ReduceMax": _reduction(torch.amax),
    "ReduceMean": _reduction(torch.mean),
    "ReduceMin": _reduction(torch.amin),
    "ReduceSum": _reduction(torch.sum),
    "ReduceSumSquare": _reduction(lambda x, axes, keep: x.square().sum(axes, keep)),
    "Softmax": _softmax,
}
"""By operator."""
