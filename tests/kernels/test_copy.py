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
