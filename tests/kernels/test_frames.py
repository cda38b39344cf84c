"""Images with zeros around them: every tap of every result is where the window looks for it, strip by strip."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.kernels.frames import Frame, frame
from sparsec.codegen.kernels.window import Window
from sparsec.target import NAMED
from tests.kernels.test_planar import window

Array = np.ndarray[Any, Any]
TARGET = NAMED["x86-avx2"]


class Numbers:
    """What `span` writes with, on Python's numbers."""

    Select = staticmethod(lambda test, a, b: a if test else b)
    int32, min, max = int, min, max


def rows_of(f: Frame, strip: int) -> range:
    """Rows of the image that are new in a strip."""
    return range(*f.span(Numbers, strip))


def walk(f: Frame, w: Window, image: Array) -> Array:
    """Lines of memory that are read for each row of results, as the kernels write, clear and move them; NaN: never written."""
    memory, found = np.full((f.lines, image.shape[1]), np.nan), []
    for strip in range(f.strips):
        first = strip * f.advance - f.top  # row of the image in line 0
        for line in range(f.lines):
            if not 0 <= first + line < f.height:
                memory[line] = 0
        for row in rows_of(f, strip):
            memory[row - first] = image[row]
        for row in range(f.rows):
            taps = [row * w.strides[0] + i * w.dilations[0] for i in range(w.kernel[0])]
            found.append(memory[taps])
        if f.strips > 1:
            memory[: f.lines - f.advance] = memory[f.advance :].copy()
    return np.array(found)


@pytest.mark.parametrize("tile_rows", [1, 2])
@pytest.mark.parametrize("most", [1, 4, 7, 12, None])
def test_strips_hold_what_results_need(tile_rows: int, most: int | None) -> None:
    tried = 0
    for kernel, stride, dilation, top, bottom in product((1, 2, 3, 5), (1, 2), (1, 2), (0, 1, 2), (0, 1, 3)):
        w = window((24, 16), (kernel, 3), stride, dilation, (top, 1, bottom, 1))
        if w.out[0] < 1 or w.strides[1] > 2:
            continue
        f = frame(w, TARGET, tile_rows, most)
        assert f is not None
        if f.strips > 1:
            assert most is not None
            assert f.lines <= most or frame(w, TARGET, tile_rows, 0) == f  # the least there is
            assert all(rows_of(f, s).start % tile_rows == 0 for s in range(f.strips))
        image = np.arange(1.0, 24 * 16 + 1).reshape(24, 16)
        wide = np.pad(image, ((top, bottom + 100), (0, 0)))
        want = [[wide[y * stride + i * dilation] for i in range(kernel)] for y in range(w.out[0])]
        np.testing.assert_array_equal(walk(f, w, image), want)
        tried += f.strips > 1
    assert tried > 0 or most in (1, None) or tile_rows > 1


def test_margins_are_as_wide_as_the_padding() -> None:
    f = frame(window((16, 16), (3, 21), 1, pads=(1, 10, 1, 10)), TARGET)
    assert f is not None
    assert (f.left, f.pitch) == (16, 32)
    assert f.origin == f.top * f.pitch + f.left == 48
    assert f.size(3) >= 3 * f.plane + f.left


@pytest.mark.parametrize(
    "w",
    [
        window((16, 15), (3, 3)),  # rows are not whole vectors
        window((16, 16), (9, 9)),  # more taps than are written out
        window((30, 32), (3, 3), 3),
        Window((16, 16), (13, 14), (3, 3), (1, 1), (1, 1), (-1, 0), (0, 0)),
    ],
    ids=["width", "taps", "stride", "cropped"],
)
def test_other_windows_are_refused(w: Window) -> None:
    assert frame(w, TARGET) is None
