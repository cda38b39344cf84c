"""The activations a layer reads, as the rows x of its product y = W x."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from sparsec.passes.weights import Use

__all__ = ["layer_rows", "output_rows"]

Floats = NDArray[np.floating[Any]]


def layer_rows(
    use: Use, x: Floats, limit: int, seed: int, mask: NDArray[Any] | None = None
) -> list[NDArray[np.float32]]:
    """Inputs of a layer for one sample, float32 [T, K]; as many arrays as a convolution has groups.

    x: what the node reads, [..., K] for MatMul and Gemm, [B, C, spatial...] for Conv. Of more than `limit` positions a random
    choice is taken, the same for the same seed. mask: positions where it is 0 are padding and left out, if it has an element for
    each position of a product.
    """
    if use.node.op_type == "Conv":
        return _patches(use.node, x, limit, seed)
    rows = _unpadded(x, mask)
    return [np.ascontiguousarray(rows[_chosen(len(rows), limit, seed)], np.float32)]


def output_rows(use: Use, y: Floats, limit: int, seed: int, mask: NDArray[Any] | None = None) -> NDArray[np.float32]:
    """What lies at the positions of `layer_rows` in a value with the shape of the layer's outputs, float32 [T, N]."""
    channels_last = np.moveaxis(y, 1, -1) if use.node.op_type == "Conv" else y
    rows = _unpadded(channels_last, None if use.node.op_type == "Conv" else mask)
    return np.ascontiguousarray(rows[_chosen(len(rows), limit, seed)], np.float32)


def _unpadded(x: Floats, mask: NDArray[Any] | None) -> Floats:
    """Rows [positions, K] of [..., K], without those of padding."""
    rows = x.reshape(-1, x.shape[-1])
    return rows[mask.reshape(-1) != 0] if mask is not None and mask.size == len(rows) else rows


def _chosen(count: int, limit: int, seed: int) -> NDArray[np.intp] | slice:
    if count <= limit:
        return slice(None)
    return np.sort(np.random.default_rng(seed).choice(count, limit, replace=False))


def _patches(node: ir.Node, x: Floats, limit: int, seed: int) -> list[NDArray[np.float32]]:
    weight = node.inputs[1]
    assert weight is not None
    assert weight.shape is not None
    kernel = tuple(int(size) for size in weight.shape.numpy()[2:])
    rank = len(kernel)
    strides = node.attributes.get_ints("strides", (1,) * rank)
    dilations = node.attributes.get_ints("dilations", (1,) * rank)
    pads = node.attributes.get_ints("pads", (0,) * 2 * rank)
    groups = node.attributes.get_int("group", 1)
    padded = np.pad(x, [(0, 0), (0, 0), *((pads[axis], pads[axis + rank]) for axis in range(rank))])
    reach = tuple((size - 1) * step + 1 for size, step in zip(kernel, dilations, strict=True))
    windows: NDArray[Any] = sliding_window_view(padded, reach, axis=tuple(range(2, 2 + rank)))
    every = (slice(None), slice(None))
    windows = windows[(*every, *(slice(None, None, step) for step in (*strides, *dilations)))]
    # [B, C, out..., k...] -> [positions, C, k...]
    places = (windows.shape[0], *windows.shape[2 : 2 + rank])
    moved = np.moveaxis(windows, 1, 1 + rank)
    chosen = _chosen(int(np.prod(places)), limit, seed)
    flat = np.arange(int(np.prod(places)))[chosen]
    rows = moved[np.unravel_index(flat, places)].astype(np.float32)
    return [np.ascontiguousarray(part) for part in rows.reshape(len(flat), groups, -1).transpose(1, 0, 2)]
