"""Ops that are views of memory where the layout allows, else one copy."""

from __future__ import annotations

import numpy as np
import pytest

from tests.kernels.nodes import node_check, node_refusal


def _x(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


# The output's own copy to the caller's buffer is one step when the result is a view of an input.
VIEW = 1


@pytest.mark.parametrize(
    ("shape", "target", "cl", "steps"),
    [
        ((2, 3, 5, 7), (2, 3, 35), ["x"], 2),  # stays channels last: one conversion at the end
        ((2, 3, 35), (2, 3, 7, 5), ["x"], 2),
        ((2, 3, 5, 7), (2, 105), ["x"], 1),
        ((2, 3, 5, 7), (6, 35), [], VIEW),
        ((2, 8, 1, 1), (2, 8), ["x"], VIEW),
        ((4, 1), (1, 1, 4), [], VIEW),
    ],
)
def test_reshape(shape: tuple[int, ...], target: tuple[int, ...], cl: list[str], steps: int) -> None:
    program = node_check("Reshape", {"x": _x(*shape), "s": _i(*target)}, ["s"], cl)
    assert len(program.steps) <= steps


@pytest.mark.parametrize("cl", [[], ["x"]])
def test_squeeze_unsqueeze_flatten(cl: list[str]) -> None:
    node_check("Squeeze", {"x": _x(2, 3, 1, 5), "a": _i(-2)}, ["a"], cl)
    node_check("Unsqueeze", {"x": _x(2, 3, 5), "a": _i(0, -1)}, ["a"], cl)
    node_check("Flatten", {"x": _x(2, 3, 5, 7)}, [], cl, axis=-2)
    node_check("Identity", {"x": _x(2, 3, 5)}, [], cl)
    node_check("Dropout", {"x": _x(2, 3, 5)}, [], cl)


@pytest.mark.parametrize(
    ("shape", "perm", "cl", "steps"),
    [
        ((2, 3, 5, 7), (0, 2, 3, 1), ["x"], VIEW),  # channels last to NHWC: the same memory
        ((2, 5, 7, 3), (0, 3, 1, 2), [], 1),  # NHWC to NCHW: a channels-last view, converted for the output
        ((2, 3, 5), (0, 2, 1), ["x"], VIEW),
        ((2, 3, 5, 7), (0, 2, 3, 1), [], 1),
        ((1, 9, 4, 8), (0, 2, 1, 3), [], 1),
        ((1, 1, 6), (2, 1, 0), [], VIEW),
        ((13, 17), None, [], 1),
        ((2, 3, 5, 7), (3, 1, 0, 2), ["x"], 1),
    ],
)
def test_transpose(shape: tuple[int, ...], perm: tuple[int, ...] | None, cl: list[str], steps: int) -> None:
    attributes = {} if perm is None else {"perm": perm}
    node_check("Transpose", {"x": _x(*shape)}, [], cl, steps=steps, **attributes)


@pytest.mark.parametrize("cl", [[], ["x"]])
@pytest.mark.parametrize(
    ("starts", "ends", "axes", "steps"),
    [
        ((1, 0), (3, 100), (1, 3), (1, 2)),
        ((-1,), (-100,), (2,), (-2,)),
        ((5, 2), (0, -5), (-1, 1), (-1, -1)),
        ((1,), (2,), (0,), (1,)),
        ((3,), (3,), (1,), (1,)),  # empty
        ((-100, 6), (2, -100), (2, 3), (1, -3)),
    ],
)
def test_slice(cl: list[str], starts: tuple, ends: tuple, axes: tuple, steps: tuple) -> None:
    inputs = {"x": _x(2, 4, 5, 7), "s": _i(*starts), "e": _i(*ends), "a": _i(*axes), "t": _i(*steps)}
    node_check("Slice", inputs, ["s", "e", "a", "t"], cl)


def test_contiguous_slice_is_a_view() -> None:
    program = node_check("Slice", {"x": _x(6, 5), "s": _i(2), "e": _i(5)}, ["s", "e"], steps=VIEW)
    assert program.steps[0].refs[0].byte_offset == 2 * 5 * 4


@pytest.mark.parametrize("cl", [[], ["x"]])
@pytest.mark.parametrize(("axis", "sizes"), [(1, (1, 4, 2)), (-1, (2, 3)), (0, (1, 1))])
def test_split(cl: list[str], axis: int, sizes: tuple[int, ...]) -> None:
    node_check("Split", {"x": _x(2, 7, 5), "s": _i(*sizes)}, ["s"], cl, outputs=len(sizes), axis=axis)


@pytest.mark.parametrize("cl", [[], ["x"]])
def test_expand(cl: list[str]) -> None:
    node_check("Expand", {"x": _x(2, 3, 1, 5), "s": _i(2, 3, 4, 5)}, ["s"], cl)
    node_check("Expand", {"x": _x(2, 3, 1, 5), "s": _i(7, 1, 3, 1, 1)}, ["s"], cl)
    node_check("Expand", {"x": _x(1, 1, 1), "s": _i(3, 5, 2)}, ["s"], cl)
    node_check("Expand", {"x": _x(2, 3, 4), "s": _i(1)}, ["s"], cl)


def test_static_values() -> None:
    node_check("Shape", {"x": _x(2, 3, 5)}, start=1)
    node_check("Size", {"x": _x(2, 3, 5)})
    down = {"a": np.float32(3), "b": np.float32(-2), "c": np.float32(-0.75)}
    node_check("Range", {name: np.array(v) for name, v in down.items()}, "abc")
    node_check("Range", {"a": np.array(1), "b": np.array(9), "c": np.array(3)}, "abc")
    node_check("ConstantOfShape", {"s": _i(2, 3)}, ["s"])


def test_refusals_say_why() -> None:
    assert "run time" in node_refusal("Slice", {"x": _x(4), "s": _i(1), "e": _i(3)}, ["s"])
    assert "training" in node_refusal(
        "Dropout", {"x": _x(4), "r": np.array(0.0, np.float32), "t": np.array(True)}, ["r", "t"]
    )
