"""Rows of a channels-last image in scratch with zeros around them: what a window may read, whatever its padding."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sparsec.codegen.isa.vecmath import bind
from sparsec.codegen.kernels.strips import copy_run, fill_run
from sparsec.codegen.kernels.window import Window


def copy_padded(k: Any, p: Mapping[str, Any], image: Any, top: Any, lines: Any, *, pixel: int, line: int) -> None:
    """Copy input rows `top` .. `top + lines` of an image to `scratch`, zeros where they or their columns are outside of it.

    p: a window, `channels`, and the layout of `x` ("cl", or "row": few planes that are interleaved). pixel, line: distances in scratch;
    a line begins as far left as the window's padding.
    """
    T, w, c = k.T, Window.of(p), p["channels"]
    height, width = w.size
    x, scratch, columns = k.arg("x"), k.arg("scratch"), line // pixel
    lead = w.pads[1]
    count = max(0, min(width, columns - lead))
    with T.serial(0, lines) as i:
        y, to = bind(k, top + i), bind(k, i * line)
        with T.If(T.And(T.And(y >= 0, y < height), count > 0)):
            with T.Then():
                if lead:
                    fill_run(k, scratch, to, lead * pixel, 0.0)
                if count + lead < columns:
                    fill_run(k, scratch, to + (lead + count) * pixel, (columns - lead - count) * pixel, 0.0)
                if p["x"] == "row":
                    plane = height * width
                    _interleave(k, c, bind(k, image * (c * plane) + y * width), plane, to + lead * c, count)
                elif pixel == c:
                    copy_run(k, x, bind(k, (image * height + y) * (width * c)), scratch, to + lead * c, count * c)
                else:
                    source = bind(k, (image * height + y) * (width * c))
                    with T.serial(0, count) as j:
                        copy_run(k, x, source + j * c, scratch, to + (lead + j) * pixel, c)
            with T.Else():
                fill_run(k, scratch, to, line, 0.0)


def _interleave(k: Any, c: int, source: Any, plane: int, to: Any, count: int) -> None:
    """`count` pixels of C planes to [pixel][C]."""
    T, lanes = k.T, k.lanes
    x, scratch = k.arg("x"), k.arg("scratch")
    while lanes > count:
        lanes //= 2

    def vectors(i: Any) -> None:
        loaded = [bind(k, k.load(x, source + (j * plane + i), lanes)) for j in range(c)]
        for v in range(c):
            picks = [v * lanes + lane for lane in range(lanes)]
            value = T.Shuffle(loaded, [e % c * lanes + e // c for e in picks]) if lanes > 1 else loaded[v]
            k.store(scratch, to + i * c + v * lanes, value, lanes)

    with T.serial(0, count // lanes) as i:
        vectors(bind(k, i * lanes))
    if count % lanes:
        vectors(count - lanes)
