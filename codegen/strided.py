"""Strided views of tensors: what Transpose, Slice, Reshape ... do to memory.

A view costs nothing; what is no view is one copy.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from sparsec.codegen.context import Layout, Lowering, Tensor, row_strides, same_memory
from sparsec.codegen.program import ITEMSIZE


def layout_strides(shape: Sequence[int], layout: Layout) -> list[int]:
    """Stride in elements of every logical axis of a dense tensor in `layout`."""
    if layout == "row":
        return row_strides(shape)
    n, *spatial, c = row_strides([shape[0], *shape[2:], shape[1]])
    return [n, c, *spatial]


def strides_of(tensor: Tensor) -> list[int]:
    """Stride in elements of every logical axis of `tensor`."""
    return layout_strides(tensor.shape, tensor.layout)


def native(low: Lowering, value: ir.Value) -> Tensor:
    """The value in the layout it was produced in: reading it costs no conversion."""
    return low.get(value, low.layout(value))


def keep_layout(tensor: Tensor, shape: Sequence[int]) -> Layout:
    """Channels last for a result of `shape` made from a channels-last tensor of the same rank, else row."""
    keeps = tensor.layout == "cl" and len(shape) == len(tensor.shape) and not same_memory(tensor.shape)
    return "cl" if keeps else "row"


def is_dense(shape: Sequence[int], strides: Sequence[int], layout: Layout) -> bool:
    """Whether a view with these strides is a dense tensor in `layout`."""
    if layout == "cl" and len(shape) < 3:
        return False
    wanted = layout_strides(shape, layout)
    return all(n == 1 or s == w for n, s, w in zip(shape, strides, wanted, strict=True))


def bind_view(
    low: Lowering,
    node: ir.Node,
    out: ir.Value,
    source: Tensor,
    strides: Sequence[int],
    offset: int = 0,
    prefer: Layout = "row",
    note: str = "",
) -> None:
    """Make `out` the elements source[offset + sum(i_d * strides[d])]; strides and offset count elements.

    It is a view where they lie dense in row or channels-last order, else a copy in layout `prefer`.
    """
    shape = low.shape(out)
    for layout in (prefer, "cl" if prefer == "row" else "row"):
        if is_dense(shape, strides, layout):
            at = source.offset + offset * ITEMSIZE[source.dtype]
            low.bind(out, Tensor(source.buffer, source.dtype, shape, layout, at))
            return
    put(low, node, source, low.new(out, prefer), shape, strides, offset, note=note)


def put(
    low: Lowering,
    node: ir.Node,
    source: Tensor,
    dest: Tensor,
    shape: Sequence[int],
    src_strides: Sequence[int],
    src_offset: int = 0,
    dst_strides: Sequence[int] | None = None,
    dst_offset: int = 0,
    note: str = "",
) -> None:
    """Copy a region of `source` to a region of `dest` (default: all of it). Empty regions take no step."""
    if 0 in shape:
        return
    low.copy(
        source,
        dest,
        shape=shape,
        src_strides=src_strides,
        src_offset=src_offset,
        dst_strides=strides_of(dest) if dst_strides is None else dst_strides,
        dst_offset=dst_offset,
        node=node.name or "",
        op=node.op_type,
        note=note or f"{list(shape)}",
    )


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """Optional input `index` of a node: None when left out."""
    return node.inputs[index] if index < len(node.inputs) else None
