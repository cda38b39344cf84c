"""The rules for sparsec::Conv on a GPU: pointwise as a product of pixels, others by kernels/conv.py, narrow groups by kernels/grouped.py.

K runs over taps, channels inside of them, wherever the weight can be stored in that order: then 8 channels of a tap are copied at once.
Where codes, groups of scales or the pattern of 2:4 run along (channel, tap), as ONNX stores weights, K keeps that order, and each input
is fetched from its own tap, which a table of the window's places finds.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Rule
from sparsec.codegen.cuda import blocking, fragments, many_rows
from sparsec.codegen.cuda.filters import Weight, by_tap
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.kernels import conv, gemv
from sparsec.codegen.cuda.packing import FORMS, Form, Use, choose, decoded, dense_weight, note_halves
from sparsec.codegen.cuda.products import multiply, refused, too_large, vector_width, weights
from sparsec.codegen.kernels.weights import epilogue
from sparsec.codegen.kernels.window import Window, read_window
from sparsec.op_view import SparsecNode, view

_FEWEST = 8
"""Filters of a group from which it is a product on tensor cores: they multiply 16 at a time."""
_FARTHEST = 32767  # pixels from a window's first to its last: what the table of places holds


def lower_conv(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv, 1-D and 2-D, whose groups have 8 filters or more; the weight as it is stored."""
    op = view(node)
    if (refusal := refused(op, low)) is not None:
        return refusal
    if op.group > 1 and op.rows // op.group < _FEWEST:
        return Refusal(f"groups of {op.rows // op.group} filters")
    window = read_window(node, low, op.kernel_shape)
    if isinstance(window, Refusal):
        return window
    if 0 in low.shape(op.output):
        return Refusal("the result is empty")
    assert op.x is not None
    m, taps = low.shape(op.x)[0] * prod(window.out), prod(op.kernel_shape)
    pixels = taps == 1 and op.group == 1 and set(window.strides) == {1} and not any(window.pads + window.pads_end)
    use = Use(m, pixels and m <= gemv.MOST_ROWS, low.target, op.group)

    def form(pack: Form, weight: Weight) -> Refusal | None:
        turned = by_tap(weight, taps, conv.CHUNK) if taps > 1 else weight
        found = pack(weight if turned is None else turned, use)
        if isinstance(found, Refusal):
            return found
        if pixels:
            return multiply(op, low, found, use, "cl", _note(op, low))
        return _windows(op, low, found, window, "channel" if turned is None else "tap", m)

    return choose(op, low, [partial(form, pack) for pack in FORMS])


def lower_grouped(node: ir.Node, low: Lowering) -> Refusal | None:
    """sparsec::Conv, 1-D and 2-D, in groups of few filters; the weight in halves."""
    op = view(node)
    if (refusal := refused(op, low)) is not None:
        return refusal
    window = read_window(node, low, op.kernel_shape)
    if isinstance(window, Refusal):
        return window
    if 0 in low.shape(op.output):
        return Refusal("the result is empty")
    assert op.x is not None
    shape, taps, storage = low.shape(op.x), prod(op.kernel_shape), low.target.storage
    matrix = dense_weight(op)
    if reason := fragments.refused(matrix, 1, storage):
        return Refusal(reason)
    # filter, channel, tap -> tap, channel, filter
    weight = matrix.reshape(op.rows, -1, taps).transpose(2, 1, 0).astype(fragments.half_type(storage))
    x = low.get(op.x, "cl")
    finish, added = epilogue(op, low, layout="cl")
    params = {
        **window.params(), "batch": shape[0], "channels": shape[1], "groups": op.group, "filters": op.rows, "dtype": storage, **finish,
    }  # fmt: skip
    ins = [x, low.const(weight, f"{op.node.name or 'weight'}.weight"), *added]
    out = low.new(op.output, "cl")
    low.call("cuda.grouped", params, ins, [out], node=op.node.name or "", op="Conv", note=_note(op, low))
    if op.scheme.is_plain:
        note_halves(op, low, matrix)
    else:
        decoded(
            op,
            low,
            f"groups of {op.rows // op.group} filters are too narrow for tensor cores, which decode {op.scheme}",
        )
    return None


CONVOLUTIONS: tuple[Rule, ...] = (lower_conv, lower_grouped)
"""All rules but that for depthwise convolutions, in order."""


def _note(op: SparsecNode, low: Lowering) -> str:
    assert op.x is not None
    size = "x".join(str(v) for v in op.kernel_shape)
    shapes = f"{list(low.shape(op.x))} -> {list(low.shape(op.output))}"
    return f"{size} s{(op.strides or (1,))[-1]} {shapes} {op.scheme} {op.activation}".strip()


def _windows(op: SparsecNode, low: Lowering, packed: Packed, window: Window, order: str, m: int) -> Refusal | None:
    """Receptive fields, of every group."""
    assert op.x is not None
    shape = low.shape(op.x)
    if (
        order == "channel"
        and max((n - 1) * d for n, d in zip(window.kernel, window.dilations, strict=True)) > _FARTHEST
    ):
        return Refusal(f"taps lie more than {_FARTHEST} pixels apart")
    params: dict[str, Any] = {
        "m": m, "weight": packed.params, **blocking.blocking(m, packed.params, low.target.gpu, op.group), **window.params(),
        "batch": shape[0], "channels": shape[1], "groups": op.group, "filters": op.rows, "order": order,
    }  # fmt: skip
    if (refusal := too_large(params, False, low)) is not None:
        return refusal
    x = low.get(op.x, "cl")
    finish, added = epilogue(op, low, layout="cl")
    params |= {"vector": min(vector_width(x, shape[1]), vector_width(x, shape[1] // op.group)), **finish}
    ins = [x, *weights(op, low, packed)]
    if order == "channel":
        ins.append(low.const(_places(window, shape[1], op.cols), f"{op.node.name or 'weight'}.places"))
    names = (op.node.name or "", "Conv", _note(op, low))
    many_rows.append(low, "cuda.conv", params, packed, ins, added, low.new(op.output, "cl"), names)
    return None


def _places(window: Window, channels: int, cols: int) -> np.ndarray[Any, Any]:
    """int32 [K, 2] of inputs (channel, tap): elements from the first one of the receptive field, and line * 2^16 + column."""
    channel, tap = np.divmod(np.arange(cols), prod(window.kernel))
    line, column = tap // window.kernel[1] * window.dilations[0], tap % window.kernel[1] * window.dilations[1]
    place = (line * window.size[1] + column) * channels + channel
    return np.stack([place, line << 16 | column], axis=1).astype(np.int32)
