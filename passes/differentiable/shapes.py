"""Operators of ONNX that move elements, in torch. All shapes are static, those of results included."""

from __future__ import annotations

import numpy as np
import torch

from sparsec.passes.differentiable.node import Builder, NodeView, Refused, Run

__all__ = ["SHAPES"]

Tensor = torch.Tensor


def _reshape(view: NodeView) -> Run:
    shape = view.result()
    return lambda x, *_: x.reshape(shape)


def _expand(view: NodeView) -> Run:
    shape = view.result()
    return lambda x, *_: x.expand(shape)


def _transpose(view: NodeView) -> Run:
    perm = view.ints("perm", tuple(reversed(range(len(view.shape(0))))))
    return lambda x: x.permute(perm)


def _concat(view: NodeView) -> Run:
    axis = view.axis(0)
    return lambda *parts: torch.cat(parts, axis)


def _split(view: NodeView) -> Run:
    axis = view.axis(0)
    sizes = [view.result(i)[axis] for i in range(len(view.node.outputs))]
    return lambda x, *_: torch.split(x, sizes, axis)


def _slice(view: NodeView) -> Run:
    shape = view.shape(0)
    starts, ends = view.integers(1, "starts"), view.integers(2, "ends")
    axes = view.integers(3, "axes", range(len(starts)))
    steps = view.integers(4, "steps", (1,) * len(starts))
    cuts: list[tuple[int, range]] = []
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts.append((axis % len(shape), range(*slice(start, end, step).indices(shape[axis]))))

    def run(x: Tensor, *_: Tensor) -> Tensor:
        for axis, cut in cuts:
            if cut.step > 0:
                x = x[(*(slice(None),) * axis, slice(cut.start, max(cut.stop, cut.start), cut.step))]
            else:
                x = torch.index_select(x, axis, torch.tensor(list(cut), dtype=torch.int64))
        return x

    return run


def _pad(view: NodeView) -> Run:
    shape, mode = view.shape(0), view.string("mode", "constant")
    pads = view.integers(1, "pads")
    axes = view.integers(3, "axes", range(len(shape)))
    widths = {axis % len(shape): (pads[i], pads[i + len(axes)]) for i, axis in enumerate(axes)}
    value = view.constant(2)
    fill = 0.0 if value is None or not value.size else value.reshape(()).item()
    if mode == "constant":
        flat = [width for axis in reversed(range(len(shape))) for width in widths.get(axis, (0, 0))]
        return lambda x, *_: torch.nn.functional.pad(x, flat, value=fill)
    if mode not in ("reflect", "edge", "wrap") or min(pads, default=0) < 0:
        raise Refused(f"mode {mode} with pads {list(pads)}")
    # Every other mode repeats elements: which ones, numpy knows.
    chosen = {axis: torch.from_numpy(np.pad(np.arange(shape[axis]), width, mode)) for axis, width in widths.items()}  # type: ignore[call-overload]

    def run(x: Tensor, *_: Tensor) -> Tensor:
        for axis, index in chosen.items():
            x = torch.index_select(x, axis, index)
        return x

    return run


def _tile(view: NodeView) -> Run:
    repeats = view.integers(1, "repeats")
    return lambda x, *_: x.repeat(repeats)


def _gather(view: NodeView) -> Run:
    axis = view.axis(0)
    shape, size = view.result(), view.shape(0)[axis]

    def run(x: Tensor, index: Tensor) -> Tensor:
        return torch.index_select(x, axis, _counted(index, size).reshape(-1)).reshape(shape)

    return run


def _gather_elements(view: NodeView) -> Run:
    axis = view.axis(0)
    size = view.shape(0)[axis]
    return lambda x, index: torch.gather(x, axis, _counted(index, size))


def _gather_nd(view: NodeView) -> Run:
    if view.integer("batch_dims", 0):
        raise Refused("batch_dims")
    sizes = view.shape(0)

    def run(x: Tensor, index: Tensor) -> Tensor:
        parts = [_counted(part, size) for part, size in zip(index.unbind(-1), sizes, strict=False)]
        return x[tuple(parts)]

    return run


def _counted(index: Tensor, size: int) -> Tensor:
    """Indices from 0 on; ONNX also counts from the end."""
    wide = index.to(torch.int64)
    return torch.where(wide < 0, wide + size, wide)


def _trilu(view: NodeView) -> Run:
    offset = view.constant(1)
    k = 0 if offset is None else int(offset.reshape(()))
    cut = torch.triu if view.integer("upper", 1) else torch.tril
    return lambda x, *_: cut(x, k)


SHAPES: dict[str, Builder] = {
    "Concat": _concat,
    "Expand": _expand,
    "Flatten": _reshape,
    "Gather": _gather,
    "GatherElements": _gather_elements,
    "GatherND": _gather_nd,
    "Pad": _pad,
    "Reshape": _reshape,
    "Slice": _slice,
    "Split": _split,
    "Squeeze": _reshape,
    "Tile": _tile,
    "Transpose": _transpose,
    "Trilu": _trilu,
    "Unsqueeze": _reshape,
}
"""By operator."""
