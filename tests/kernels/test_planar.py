"""Convolution of images of few channels, planes in and planes out, against its definition in float64."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.codegen.kernels import planar
from sparsec.codegen.kernels.frames import Frame, frame
from sparsec.codegen.kernels.window import Window
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]
TARGETS = [NAMED[name] for name in ("x86-avx2", "x86-avx512", "arm")]


def window(
    size: tuple[int, int],
    kernel: tuple[int, int],
    stride: int = 1,
    dilation: int = 1,
    pads: tuple[int, int, int, int] = (0, 0, 0, 0),
) -> Window:
    """pads: top, left, bottom, right."""
    out = [(size[a] + pads[a] + pads[a + 2] - (kernel[a] - 1) * dilation - 1) // stride + 1 for a in range(2)]
    return Window(size, (out[0], out[1]), kernel, (stride,) * 2, (dilation,) * 2, pads[:2], pads[2:])


def convolved(x: Array, weight: Array, w: Window) -> Array:
    """The definition, float64; x [B, C, H, W], weight [N, C, kh, kw]."""
    (top, left), (bottom, right), (out_h, out_w) = w.pads, w.pads_end, w.out
    wide = np.pad(x.astype(np.float64), ((0, 0), (0, 0), (top, bottom), (left, right)))
    total = np.zeros((len(x), len(weight), out_h, out_w))
    for i in range(w.kernel[0]):
        for j in range(w.kernel[1]):
            y0, x0 = i * w.dilations[0], j * w.dilations[1]
            part = wide[:, :, y0 :: w.strides[0], x0 :: w.strides[1]][:, :, :out_h, :out_w]
            total += np.einsum("bcyx,nc->bnyx", part, weight[:, :, i, j].astype(np.float64))
    return total


def check(
    batch: int, channels: int, filters: int, w: Window, target: Target, *, bias: bool = True, act: str = "", splits: int = 3,
    framed: Frame | None = None,
) -> None:  # fmt: skip
    assert planar.applies(w, channels, target)
    rng = np.random.default_rng()
    p = {
        **w.params(), "batch": batch, "channels": channels, "filters": filters, "bias": bias, "residual": False, "act": act,
        "act_params": [],
    }  # fmt: skip
    x = rng.normal(size=(batch, channels, *w.size)).astype(np.float32)
    weight = rng.normal(size=(filters, channels, *w.kernel)).astype(np.float32)
    want, ins = convolved(x, weight, w), [x, planar.pack(weight.reshape(filters, -1), p, target)]
    if bias:
        ins.append(rng.normal(size=filters).astype(np.float32))
        want = want + ins[-1][:, None, None]
    # of one sum that cancels the error is not in proportion to its value
    size = max(np.abs(want).max(), np.sqrt(convolved(np.square(x), np.square(weight), w)).max())
    want = np.maximum(want, 0) if act == "relu" else want
    if framed is not None:
        p["frame"] = framed.params()
    (got,) = run_kernel("planar", p, ins, target=target, splits=splits)
    if framed is not None:
        planes = got[: batch * filters * framed.plane].reshape(batch, filters, framed.lines, framed.pitch)
        inside = np.zeros_like(planes, bool)
        inside[:, :, framed.top : framed.top + framed.height, framed.left :] = True
        assert not planes[~inside].any()
        assert not got[batch * filters * framed.plane :].any()
        got = planes[inside]
    assert np.abs(got.reshape(want.shape) - want).max() <= 3e-6 * size


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_windows(target: Target) -> None:
    check(1, 3, 32, window((40, 40), (3, 3), 2, pads=(1, 1, 1, 1)), target, act="relu")
    check(2, 1, 7, window((17, 37), (5, 3), 1, pads=(2, 0, 1, 2)), target)
    check(1, 4, 5, window((33, 47), (7, 7), 2, pads=(3, 3, 3, 3)), target, bias=False)
    check(1, 2, 1, window((9, 64), (1, 1)), target)
    check(1, 3, 9, window((20, 50), (3, 3), 2, 2, (0, 2, 0, 2)), target)
    check(3, 2, 4, window((1, 70), (1, 9), 1, pads=(0, 4, 0, 4)), target)  # one-dimensional
    check(1, 3, 6, window((2, 16), (3, 3), 1, pads=(2, 1, 2, 1)), target)  # results of rows of padding only


@settings(max_examples=10, deadline=None)
@given(
    st.integers(1, 2), st.integers(1, planar.MOST_CHANNELS), st.integers(1, 20), st.tuples(st.integers(1, 40), st.integers(16, 60)),
    st.tuples(st.integers(1, 5), st.integers(1, 5)), st.integers(1, 2), st.integers(0, 2), st.integers(1, 5),
)  # fmt: skip
def test_any_size_split_anywhere(
    batch: int, channels: int, filters: int, size: tuple[int, int], kernel: tuple[int, int], stride: int, pad: int, splits: int
) -> None:  # fmt: skip
    w = window(size, kernel, stride, pads=(pad, pad, pad, pad))
    target = NAMED["x86-avx2"] if host_target().arch == "x86_64" else host_target()
    if min(w.out) > 0 and planar.applies(w, channels, target):
        check(batch, channels, filters, w, target, splits=splits)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize(("filters", "kernel", "stride"), [(6, 3, 1), (5, 5, 2), (8, 1, 1)])
def test_results_in_a_frame(filters: int, kernel: int, stride: int, target: Target) -> None:
    """All zeros are written, by whichever unit, and nothing else is."""
    w = window((24, 64), (3, 3), 2, pads=(1, 1, 1, 1))
    pad = kernel // 2
    reads = window(w.out, (kernel, kernel), stride, pads=(pad, pad, pad, pad))
    framed = frame(reads, target)
    assert framed is not None
    assert framed.strips == 1
    check(2, 3, filters, w, target, framed=framed, splits=4)


def test_where_it_applies() -> None:
    w, target = window((32, 32), (3, 3)), NAMED["x86-avx2"]
    assert planar.applies(w, 3, target)
    assert not planar.applies(w, planar.MOST_CHANNELS + 1, target)
    assert not planar.applies(replace(w, strides=(3, 3)), 3, target)
    assert not planar.applies(replace(w, pads=(-1, 0)), 3, target)
    assert not planar.applies(window((32, 9), (3, 3)), 3, target)  # rows of fewer results than a vector has lanes


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("width", [16, 17, 56, 112, 299])
@pytest.mark.parametrize("filters", [1, 3, 16, 32, 64])
def test_tiles_fit_the_registers(width: int, filters: int, target: Target) -> None:
    w = window((64, width), (3, 3), pads=(1, 1, 1, 1))
    t = planar.blocking({**w.params(), "batch": 1, "channels": 3, "filters": filters}, target)
    assert t.filters * t.vectors + min(t.filters, t.vectors) < target.vector_registers
    assert 1 <= t.filters <= filters
    assert t.vectors * target.lanes <= width
    assert (t.parts - 1) * t.rows < 64 <= t.parts * t.rows
