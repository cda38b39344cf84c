"""Dense float32 convolution of images of few channels in row order, as the first layers of networks are: planes in, planes out.

A tile of some filters x `vectors` vectors of neighbouring results of one row accumulates in registers; every tap is a vector of inputs,
multiplied by the weight of each filter, which is spread over the lanes. The input rows of some rows of results lie in scratch, with
their padding and sorted by the phase of the stride (strips.py), while all filters pass over them. Units are (image, these rows).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np

from sparsec.codegen.isa.epilogue import activation_cost, apply_activation
from sparsec.codegen.isa.vecmath import bind, hold
from sparsec.codegen.kernels import strips
from sparsec.codegen.kernels.frames import Frame
from sparsec.codegen.kernels.window import Window
from sparsec.codegen.program import Arg, Signature
from sparsec.target import Target

Array = np.ndarray[Any, Any]

# Bytes of scratch, most of a level-1 cache of 32 KB, and the units that are worth having for threads to share.
_SCRATCH_BYTES, _WANTED_UNITS = 16 * 1024, 16
# Sums that are added to at a time, so that none waits for the one before.
_CHAINS = 8
# Images with at most so many channels, windows of at most so many columns, which are written out.
MOST_CHANNELS, _MOST_COLUMNS = 4, 16


@dataclass(frozen=True)
class Blocking:
    """Filters and vectors of a tile; result rows of a unit, how many an image has; lines of scratch and elements of a phase of one."""

    filters: int
    vectors: int
    rows: int
    parts: int
    lines: int
    pitch: int


def applies(w: Window, channels: int, target: Target) -> bool:
    """Whether the kernel is for such images: rows of whole vectors, few channels, strides whose phases vectors are sorted into."""
    small = channels <= MOST_CHANNELS and w.kernel[1] <= _MOST_COLUMNS and w.strides[1] <= 2
    return small and not w.crops and w.out[1] >= target.lanes and min(w.size) > 0


def blocking(p: Mapping[str, Any], target: Target) -> Blocking:
    """Block sizes of a convolution (a pure function of the parameters)."""
    w = Window.of(p)
    whole, found = ceil(w.out[1] / target.lanes), []
    for filters in range(1, min(8, p["filters"]) + 1):
        for vectors in range(1, w.out[1] // target.lanes + 1):
            if filters * vectors + min(filters, vectors) + 1 > target.vector_registers:
                break
            # multiplications that are wasted; what sums that wait for one another, and loads, take beside them
            waste = ceil(p["filters"] / filters) * filters / p["filters"]
            short = [vectors] * (whole // vectors) + ([whole % vectors] if whole % vectors else [])
            time = sum(max(n * filters, _CHAINS) * (1 + (n + filters) / (4 * n * filters)) for n in short)
            found.append((waste * time / (whole * filters), filters, vectors))
    _, filters, vectors = min(found)
    pitch = strips.pitch(w, w.out[1])

    def scratch(rows: int) -> int:
        return int(4 * p["channels"] * strips.lines(w, rows) * w.strides[1] * pitch)

    parts = min(w.out[0], ceil(_WANTED_UNITS / p["batch"]))
    while parts < w.out[0] and scratch(ceil(w.out[0] / parts)) > _SCRATCH_BYTES:
        parts += 1
    rows = ceil(w.out[0] / parts)
    return Blocking(filters, vectors, rows, ceil(w.out[0] / rows), strips.lines(w, rows), pitch)


def pack(weight: Array, p: Mapping[str, Any], target: Target) -> Array:
    """W[N, C * taps] in ONNX order (channel, tap) -> [block of filters][C][taps][filters of a tile], padded with zeros."""
    size = blocking(p, target).filters
    blocks = ceil(p["filters"] / size)
    physical = np.zeros((blocks * size, weight.shape[1]), np.float32)
    physical[: p["filters"]] = weight
    return physical.reshape(blocks, size, -1).transpose(0, 2, 1)


def signature(p: Mapping[str, Any], target: Target) -> Signature:
    """in: x [batch, C, H, W], weight (see pack), bias? [N]; out: out [batch, N, OH, OW], in a `frame` if there is one; work: rows of the
    image."""
    t, w = blocking(p, target), Window.of(p)
    taps = p["channels"] * prod(w.kernel)
    results = p["batch"] * p["filters"] * prod(w.out)
    args = [Arg("x", "float32", p["batch"] * p["channels"] * prod(w.size), "in")]
    args.append(Arg("weight", "float32", ceil(p["filters"] / t.filters) * t.filters * taps, "in"))
    if p["bias"]:
        args.append(Arg("bias", "float32", p["filters"], "in"))
    framed = Frame.of(p)
    size = results if framed is None else framed.size(p["batch"] * p["filters"])
    args.append(Arg("out", "float32", size, "out"))
    args.append(Arg("scratch", "float32", p["channels"] * t.lines * w.strides[1] * t.pitch, "work"))
    return Signature(tuple(args), p["batch"] * t.parts, results * (2 * taps + 2 + activation_cost(p["act"])))


def build(p: Mapping[str, Any], k: Any) -> None:
    """Write the loop nest (see the module's docstring)."""
    _Planar(p, k).write()


class _Planar:
    def __init__(self, p: Mapping[str, Any], k: Any) -> None:
        self.p, self.k, self.T, self.lanes = p, k, k.T, k.lanes
        self.t, self.w = blocking(p, k.target), Window.of(p)
        self.filler = strips.Filler(k, self.w, pitch=self.t.pitch, lines=self.t.lines, whole=False, pad=0.0)
        self.channel = self.t.lines * self.filler.line  # elements of a channel of scratch
        self.frame = Frame.of(p)
        # elements from plane to plane and from row to row of the results, and where in a plane they begin
        self.plane, self.pitch, self.origin = prod(self.w.out), self.w.out[1], 0
        if self.frame is not None:
            self.plane, self.pitch, self.origin = self.frame.plane, self.frame.pitch, self.frame.origin

    def write(self) -> None:
        """Part by part: its input rows, then the filters, then rows and tiles of results."""
        T, k, p, t, w = self.T, self.k, self.p, self.t, self.w
        strips.fill_run(k, k.arg("scratch"), 0, p["channels"] * self.channel, 0.0)
        with T.serial(k.lo, k.hi) as unit:
            image = bind(k, T.truncdiv(unit, t.parts))
            first = bind(k, (unit - image * t.parts) * t.rows)
            rows = bind(k, T.min(t.rows, w.out[0] - first))
            with T.serial(0, p["channels"]) as c:
                source = bind(k, (image * p["channels"] + c) * prod(w.size))
                self.filler.fill(source, first, bind(k, c * self.channel))
            if self.frame is not None:
                self._zeros(self.frame, image, first, rows)
            with T.serial(0, ceil(p["filters"] / t.filters)) as block, T.serial(0, rows) as row:
                plane = (image * p["filters"] + block * t.filters) * self.plane
                to = bind(k, plane + (first + row) * self.pitch + self.origin)
                at, wide = bind(k, row * (w.strides[0] * self.filler.line)), t.vectors * self.lanes
                with T.serial(0, w.out[1] // wide) as i:
                    self._tile(block, bind(k, at + i * wide), bind(k, to + i * wide), t.vectors)
                if w.out[1] % wide:  # the last tile ends with the row
                    vectors = ceil(w.out[1] % wide / self.lanes)
                    x = w.out[1] - vectors * self.lanes
                    self._tile(block, bind(k, at + x), bind(k, to + x), vectors)

    def _zeros(self, framed: Frame, image: Any, first: Any, rows: Any) -> None:
        """Those on the left of the rows [first, first + rows) of all filters; the lines above and below go with the rows next to them."""
        T, k, p, out = self.T, self.k, self.p, self.k.arg("out")
        below = framed.lines - framed.top - framed.height
        with T.serial(0, p["filters"]) as f:
            base = bind(k, (image * p["filters"] + f) * self.plane)
            with T.serial(first, first + rows) as row:
                strips.fill_run(k, out, bind(k, base + (framed.top + row) * self.pitch), framed.left, 0.0)
            if framed.top:
                with T.If(first == 0), T.Then():
                    strips.fill_run(k, out, base, framed.top * self.pitch, 0.0)
            if below:
                with T.If(first + rows == framed.height), T.Then():
                    at = bind(k, base + (framed.top + framed.height) * self.pitch)
                    strips.fill_run(k, out, at, below * self.pitch, 0.0)
        last = T.And(image == p["batch"] - 1, first + rows == framed.height)
        with T.If(last), T.Then():
            planes = p["batch"] * p["filters"]
            strips.fill_run(k, out, planes * self.plane, framed.size(planes) - planes * self.plane, 0.0)

    def _tile(self, block: Any, origin: Any, to: Any, vectors: int) -> None:
        """Results of the filters of a block from `to` on; the first tap of channel 0 lies at `origin` in scratch."""
        T, k, p, t, w, lanes = self.T, self.k, self.p, self.t, self.w, self.lanes
        acc = k.local(t.filters * vectors * lanes)
        last = p["filters"] - 1
        for f in range(t.filters):
            start = k.load(k.arg("bias"), T.min(block * t.filters + f, last)) if p["bias"] else T.float32(0)
            start = bind(k, k.splat(start, lanes))
            for v in range(vectors):
                k.store(acc, (f * vectors + v) * lanes, start, lanes)
        taps = prod(w.kernel)
        with T.serial(0, p["channels"]) as c, T.serial(0, w.kernel[0]) as kh:
            weights = hold(k, ((block * p["channels"] + c) * taps + kh * w.kernel[1]) * t.filters)
            at = hold(k, origin + c * self.channel + kh * (w.dilations[0] * self.filler.line))
            for kw in range(w.kernel[1]):
                column = kw * w.dilations[1]
                place = column % w.strides[1] * t.pitch + column // w.strides[1]

                def factor(f: int, kw: int = kw, weights: Any = weights) -> Any:
                    return bind(k, k.splat(k.load(k.arg("weight"), weights + (kw * t.filters + f)), lanes))

                def value(v: int, place: int = place, at: Any = at) -> Any:
                    return bind(k, k.load(k.arg("scratch"), at + (place + v * lanes), lanes))

                # the fewer stay in registers
                outer, inner = (value, factor) if vectors < t.filters else (factor, value)
                kept = [outer(i) for i in range(min(vectors, t.filters))]
                for j in range(max(vectors, t.filters)):
                    other = inner(j)
                    for i, one in enumerate(kept):
                        f, v = (j, i) if vectors < t.filters else (i, j)
                        slot = (f * vectors + v) * lanes
                        k.store(acc, slot, k.load(acc, slot, lanes) + one * other, lanes)
        for f in range(t.filters):
            if f and p["filters"] % t.filters:
                with T.If(block * t.filters + f < p["filters"]), T.Then():
                    self._store(acc, f, to, vectors)
            else:
                self._store(acc, f, to, vectors)

    def _store(self, acc: Any, f: int, to: Any, vectors: int) -> None:
        """The results of filter `f` of the block."""
        k, p, lanes = self.k, self.p, self.lanes
        at = hold(k, to + f * self.plane)
        for v in range(vectors):
            value = k.load(acc, (f * vectors + v) * lanes, lanes)
            k.store(k.arg("out"), at + v * lanes, apply_activation(k, p["act"], p["act_params"], value, lanes), lanes)
