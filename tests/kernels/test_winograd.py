"""3x3 convolution by minimal filtering against its definition in float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sparsec.codegen.kernels import direct, winograd
from sparsec.codegen.kernels.window import Window
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]
Pads = tuple[int, int, int, int]
TARGETS = [NAMED[name] for name in ("x86-avx2", "x86-avx512", "arm")]
SAME: Pads = (1, 1, 1, 1)


def params(x: tuple[int, int, int, int], filters: int, pads: Pads = SAME, **extra: Any) -> dict[str, Any]:
    """x: batch, height, width, channels; pads: top, left, bottom, right."""
    batch, height, width, channels = x
    out = (height + pads[0] + pads[2] - 2, width + pads[1] + pads[3] - 2)
    window = Window((height, width), out, (3, 3), (1, 1), (1, 1), pads[:2], pads[2:])
    return {
        **window.params(), "x": "cl", "batch": batch, "channels": channels, "filters": filters, "pitch": filters,
        "bias": False, "residual": False, "act": "", "act_params": [], **extra,
    }  # fmt: skip


def convolved(x: Array, weight: Array, p: dict[str, Any]) -> Array:
    """The definition, float64; x [B, H, W, C], weight [N, C * 9]."""
    (top, left), (bottom, right), (out_h, out_w) = p["pads"], p["pads_end"], p["out"]
    wide = np.pad(x.astype(np.float64), ((0, 0), (top, bottom), (left, right), (0, 0)))
    taps = weight.astype(np.float64).reshape(len(weight), -1, 3, 3)
    return sum(wide[:, i : i + out_h, j : j + out_w] @ taps[:, :, i, j].T for i in range(3) for j in range(3))  # type: ignore[return-value]


def check(x: tuple[int, int, int, int], filters: int, target: Target, splits: int = 3, **extra: Any) -> None:
    rng = np.random.default_rng()
    p = params(x, filters, **extra)
    image, weight = rng.normal(size=x).astype(np.float32), rng.normal(size=(filters, 9 * x[3])).astype(np.float32)
    want, ins = convolved(image, weight, p), [image, winograd.pack(weight, p, target)]
    if p["bias"]:
        ins.append(rng.normal(size=filters).astype(np.float32))
        want = want + ins[-1]
    if p["residual"]:
        ins.append(rng.normal(size=want.shape).astype(np.float32))
        want = want + ins[-1]
    # of one sum that cancels the error is not in proportion to its value
    size = max(np.abs(want).max(), np.sqrt(convolved(np.square(image), np.square(weight), p)).max())
    if p["act"] == "relu":
        want = np.maximum(want, 0)
    if p["act"] == "sigmoid":
        want = 1 / (1 + np.exp(-want))
    (got,) = run_kernel("winograd", p, ins, target=target, splits=splits)
    assert np.abs(got.reshape(want.shape) - want).max() <= 3e-6 * size  # no activation here is steeper than 1


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
def test_every_shape(target: Target) -> None:
    check((1, 12, 12, 32), 48, target, bias=True, residual=True, act="relu")
    check((2, 13, 7, 37), 29, target, bias=True, act="sigmoid")  # odd sizes: the last tiles are cut
    check((1, 14, 14, 256), 40, target, residual=True)  # spaced pixels
    check((1, 9, 16, 5), 3, target, pads=(0, 2, 1, 0))
    check((1, 3, 3, 1), 1, target, pads=(0, 0, 0, 0))  # one output
    check((1, 40, 5, 16), 130, target, pads=(2, 2, 2, 2), act="relu")


@settings(max_examples=8, deadline=None)
@given(
    st.tuples(st.integers(1, 2), st.integers(3, 21), st.integers(3, 21), st.integers(1, 70)), st.integers(1, 100),
    st.tuples(*[st.integers(0, 2)] * 4), st.integers(1, 7),
)  # fmt: skip
def test_any_size_split_anywhere(x: tuple[int, int, int, int], filters: int, pads: Pads, splits: int) -> None:
    check(x, filters, host_target(), splits, pads=pads, bias=True)


def test_nothing_between_outputs_is_written() -> None:
    """Pixels of a result may lie apart: others write between them."""
    rng, target = np.random.default_rng(), host_target()
    p = params((1, 12, 11, 32), 33, pitch=50)
    image, weight = rng.normal(size=(1, 12, 11, 32)).astype(np.float32), rng.normal(size=(33, 288)).astype(np.float32)
    before = rng.normal(size=131 * 50 + 33).astype(np.float32)
    (got,) = run_kernel("winograd", p, [image, winograd.pack(weight, p, target)], target=target, outs=[before])
    rows, old = np.pad(got, (0, 17)).reshape(132, 50), np.pad(before, (0, 17)).reshape(132, 50)
    want = convolved(image, weight, p).reshape(132, 33)
    np.testing.assert_array_equal(rows[:, 33:], old[:, 33:])
    assert np.abs(rows[:, :33] - want).max() <= 3e-6 * np.abs(want).max()


def test_error_is_that_of_a_few_additions() -> None:
    """At most twice direct convolution's (RMS): why larger tiles, whose constants are fractions, are not used."""
    rng, target = np.random.default_rng(), host_target()
    p = params((1, 14, 14, 64), 64)
    image, weight = rng.normal(size=(1, 14, 14, 64)).astype(np.float32), rng.normal(size=(64, 576)).astype(np.float32)
    want = convolved(image, weight, p).reshape(-1)
    off = {}
    for name, module in (("direct", direct), ("winograd", winograd)):
        (got,) = run_kernel(name, p, [image, module.pack(weight, p, target)], target=target)
        off[name] = float(np.sqrt(np.square(got - want).mean()))
    assert off["winograd"] < 2 * off["direct"]


def test_where_it_applies() -> None:
    def one(kernel: int = 3, stride: int = 1, pad: int = 1, size: int = 14) -> Window:
        out = (size + 2 * pad - kernel) // stride + 1
        pair = [(v, v) for v in (size, out, kernel, stride, 1, pad, pad)]
        return Window(*pair)

    assert winograd.applies(one(), 32, 32)
    assert not winograd.applies(one(), 31, 64)
    assert not winograd.applies(one(), 64, 31)
    assert not winograd.applies(one(size=7), 512, 512)
    for window in (one(stride=2, size=28), one(kernel=5, pad=2), one(kernel=1, pad=0), one(pad=-1, size=28)):
        assert not winograd.applies(window, 64, 64)


@pytest.mark.parametrize("target", sorted(NAMED))
@pytest.mark.parametrize("size", [(56, 64), (28, 128), (14, 256), (13, 37), (3, 512)], ids=str)
def test_blocking_fits_the_registers_and_covers_the_image(target: str, size: tuple[int, int]) -> None:
    machine, (side, channels) = NAMED[target], size
    t = winograd.blocking(params((1, side, side, channels), channels), machine)
    vectors = t.nr // machine.lanes
    assert t.mr * vectors + vectors + 1 <= machine.vector_registers
    assert (t.parts - 1) * t.rows < t.down <= t.parts * t.rows
    assert (t.panels - 1) * t.nr < channels <= t.panels * t.nr
    assert t.mr <= (t.down - (t.parts - 1) * t.rows) * t.across  # also the last part fills a block
