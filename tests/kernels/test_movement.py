"""Concat, Tile, DepthToSpace, SpaceToDepth, Pad, Trilu in both layouts and mixes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from tests.kernels.nodes import node_check, node_refusal


def _x(*shape: int, seed: int = 0, dtype: Any = np.float32) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * 10).astype(dtype)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


@pytest.mark.parametrize("cl", [[], ["a"], ["a", "b"]])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_concat(cl: list[str], axis: int) -> None:
    shapes = [[2, 4, 3, 5] for _ in range(3)]
    for shape, n in zip(shapes, (1, 7, 2), strict=True):
        shape[axis] = n
    inputs = {n: _x(*s, seed=i) for i, (n, s) in enumerate(zip("abc", shapes, strict=True))}
    node_check("Concat", inputs, ["c"], cl, axis=axis)


def test_concat_of_one_and_of_integers() -> None:
    node_check("Concat", {"a": _x(3, 4)}, axis=0)
    node_check("Concat", {"a": _x(3, dtype=np.int64), "b": _x(0, dtype=np.int64), "c": _x(1, dtype=np.int64)}, axis=0)


@pytest.mark.parametrize("cl", [[], ["x"]])
def test_tile(cl: list[str]) -> None:
    node_check("Tile", {"x": _x(2, 3, 5), "r": _i(1, 2, 3)}, ["r"], cl)
    node_check("Tile", {"x": _x(1, 3, 2, 2), "r": _i(2, 1, 1, 4)}, ["r"], cl)


@pytest.mark.parametrize("cl", [[], ["x"]])
@pytest.mark.parametrize("mode", ["DCR", "CRD"])
def test_depth_to_space(cl: list[str], mode: str) -> None:
    node_check("DepthToSpace", {"x": _x(2, 12, 3, 5)}, [], cl, blocksize=2, mode=mode)


@pytest.mark.parametrize("cl", [[], ["x"]])
def test_space_to_depth(cl: list[str]) -> None:
    node_check("SpaceToDepth", {"x": _x(2, 3, 6, 9)}, [], cl, blocksize=3)


@pytest.mark.parametrize("cl", [[], ["x"]])
@pytest.mark.parametrize("mode", ["constant", "reflect", "edge", "wrap"])
@pytest.mark.parametrize(
    "pads", [(0, 0, 1, 2, 0, 0, 3, 4), (0, 0, 0, 0, 0, 0, 1, 0), (0, 1, 0, 3, 0, 2, 1, 0), (1, 0, 0, 2, 1, 0, 1, 0)]
)
def test_pad(cl: list[str], mode: str, pads: tuple[int, ...]) -> None:
    inputs = {"x": _x(2, 3, 5, 19), "p": _i(*pads)}
    constants = ["p"]
    if mode == "constant":
        inputs["v"] = np.array(-1.5, np.float32)
        constants.append("v")
    node_check("Pad", inputs, constants, cl, mode=mode)


@pytest.mark.parametrize("cl", [[], ["x"]])
def test_pad_negative_axes_and_run_time_value(cl: list[str]) -> None:
    inputs = {"x": _x(2, 3, 5, 7), "p": _i(-1, 2, 1, -3), "v": np.array(np.inf, np.float32), "a": _i(-1, 2)}
    node_check("Pad", inputs, ["p", "a"], cl)
    node_check("Pad", {"x": _x(3, 4, dtype=np.int64), "p": _i(1, 0, 0, 2)}, ["p"])


def test_pad_refusals() -> None:
    assert "run time" in node_refusal("Pad", {"x": _x(3, 4), "p": _i(1, 0, 0, 2)})


@pytest.mark.parametrize("upper", [0, 1])
@pytest.mark.parametrize("diagonal", [None, -9, -1, 0, 2, 9])
def test_trilu(upper: int, diagonal: int | None) -> None:
    inputs = {"x": _x(2, 3, 5)}
    if diagonal is not None:
        inputs["k"] = np.array(diagonal, np.int64)
    node_check("Trilu", inputs, ["k"] if diagonal is not None else [], upper=upper)
    node_check("Trilu", {"x": _x(5, 3) > 0}, upper=upper)
