"""The strided copy against numpy's own striding."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.harness import run_kernel


def _params(src: np.ndarray, view: np.ndarray, offset: int = 0) -> dict:
    strides = [s // src.itemsize for s in view.strides]
    out = [int(np.prod(view.shape[d + 1 :])) for d in range(view.ndim)]
    return {
        "dtype": str(src.dtype), "shape": list(view.shape), "src_size": src.size, "src_offset": offset,
        "src_strides": strides, "dst_size": view.size, "dst_offset": 0, "dst_strides": out,
    }  # fmt: skip


@pytest.mark.parametrize("dtype", ["float32", "int64", "bool"])
@pytest.mark.parametrize("axes", [(0, 1, 2), (2, 0, 1), (1, 0, 2), (2, 1, 0)])
def test_transpose(dtype: str, axes: tuple[int, ...]) -> None:
    src = np.random.default_rng(1).integers(0, 2, (3, 17, 5)).astype(dtype)
    view = src.transpose(axes)
    (out,) = run_kernel("copy", _params(src, view), [src])
    np.testing.assert_array_equal(out.reshape(view.shape), view)


def test_reversed_slice_and_expand() -> None:
    src = np.random.default_rng(2).normal(size=(7, 11)).astype(np.float32)
    view = src[::-2, 10:0:-3]
    (out,) = run_kernel("copy", _params(src, view, offset=6 * 11 + 10), [src])
    np.testing.assert_array_equal(out.reshape(view.shape), view)
    wide = np.broadcast_to(src[:, None, :], (7, 4, 11))
    (out,) = run_kernel("copy", _params(src, wide), [src])
    np.testing.assert_array_equal(out.reshape(wide.shape), wide)


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((3, 400), (1, 0)),
        ((400, 3), (1, 0)),
        ((2, 3, 41), (0, 2, 1)),
        ((2, 41, 4), (0, 2, 1)),
        ((67, 131), (1, 0)),
        ((131, 67), (1, 0)),
        ((5, 9, 2, 8), (0, 2, 3, 1)),
        ((1, 90, 3, 33), (0, 2, 1, 3)),
        ((8, 8), (1, 0)),
        ((7, 300), (1, 0)),
        ((300, 5), (1, 0)),
        ((17, 33, 20), (2, 1, 0)),
    ],
)
def test_blocked_transpose(shape: tuple[int, ...], axes: tuple[int, ...]) -> None:
    src = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    view = src.transpose(axes)
    (out,) = run_kernel("copy", _params(src, view), [src], splits=4)
    np.testing.assert_array_equal(out.reshape(view.shape), view)


def test_interleave_into_wider_destination() -> None:
    """Three planes into channels 1..3 of five: the bytes between stay."""
    src = np.random.default_rng(4).normal(size=(3, 50)).astype(np.float32)
    params = {
        "dtype": "float32", "shape": [50, 3], "src_size": 150, "src_offset": 0, "src_strides": [1, 50],
        "dst_size": 250, "dst_offset": 1, "dst_strides": [5, 1],
    }  # fmt: skip
    (out,) = run_kernel("copy", params, [src], outs=[np.zeros(250, np.float32)])
    expected = np.zeros((50, 5), np.float32)
    expected[:, 1:4] = src.T
    np.testing.assert_array_equal(out.reshape(50, 5), expected)
