"""Normalisation, softmax and reductions by teams of threads: short and long rows, every thread order."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.cuda.teams import team_size
from sparsec.codegen.lower import lower
from sparsec.codegen.program import KernelSpec
from sparsec.target import resolve_target
from tests.cuda.programs import lower_and_simulate, run_kernel
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng().normal(size=shape).astype(np.float32)


def close(op: str, inputs: dict[str, Array], constants: tuple[str, ...] = (), **attributes: Any) -> None:
    model = node_model(op, inputs, constants, **attributes)
    feed = {name: array for name, array in inputs.items() if name not in constants}
    (wanted,), (found,) = reference(model, feed), lower_and_simulate(model, feed)
    assert (found.dtype, found.shape) == (wanted.dtype, wanted.shape)
    np.testing.assert_allclose(found, wanted, rtol=3e-6, atol=3e-6)


@pytest.mark.parametrize("shape", [(7, 40), (2, 3, 77), (3, 300), (1, 2049)])
def test_layer_norm(shape: tuple[int, ...]) -> None:
    inputs = {"x": 3 + normal(*shape), "scale": normal(shape[-1]), "bias": normal(shape[-1])}
    close("LayerNormalization", inputs, ("scale", "bias"), axis=-1)


def test_instance_norm() -> None:
    close("InstanceNormalization", {"x": normal(2, 3, 5, 7), "s": normal(3), "b": normal(3)}, ("s", "b"))


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
@pytest.mark.parametrize(
    ("shape", "axis"), [((5, 31), -1), ((2, 300), -1), ((2, 9, 5), 1), ((2, 3, 4, 5), 1), ((3, 1), -1)]
)
def test_softmax(op: str, shape: tuple[int, ...], axis: int) -> None:
    close(op, {"x": 9 * normal(*shape)}, axis=axis)


def test_softmax_of_hidden_values() -> None:
    x = normal(3, 40)
    x[1, 3:] = -np.inf
    close("Softmax", {"x": x}, axis=-1)


@pytest.mark.parametrize("axes", [(2,), (0, 2), (1,), (0, 1), (0, 1, 2)])
@pytest.mark.parametrize("op", ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceL2", "ReduceProd"])
def test_reduce(op: str, axes: tuple[int, ...]) -> None:
    x = np.sign(normal(3, 5, 67)) if op == "ReduceProd" else normal(3, 5, 67)
    close(op, {"x": x, "axes": np.array(axes)}, ("axes",), keepdims=0)


def test_reduce_whole_numbers() -> None:
    x = np.random.default_rng().integers(-(2**40), 2**40, (3, 500))
    model = node_model("ReduceMin", {"x": x, "axes": np.array([1])}, ("axes",), keepdims=0)
    # not onnxruntime: 1.22 gets one in ten of these wrong
    np.testing.assert_array_equal(lower_and_simulate(model, {"x": x})[0], x.min(1))
    close("ReduceSum", {"x": x.astype(np.int32) // 1000, "axes": np.array([1])}, ("axes",))


@pytest.mark.parametrize("last", [0, 1])
@pytest.mark.parametrize("axis", [0, 1, 2])
def test_arg(axis: int, last: int) -> None:
    x = np.random.default_rng().integers(0, 4, (3, 5, 9)).astype(np.float32)
    close("ArgMax", {"x": x}, axis=axis, select_last_index=last)
    close("ArgMin", {"x": x}, axis=axis, select_last_index=last, keepdims=0)


@pytest.mark.parametrize("half", ["float16", "bfloat16"])
@pytest.mark.parametrize("centre", [True, False])
def test_halves(half: str, centre: bool) -> None:
    rows, n = 6, 90
    params = {
        "rows": rows, "n": n, "centre": centre, "epsilon": 1e-5, "scale": True, "bias": False, "channels": 0,
    }  # fmt: skip
    x, scale = normal(rows, n), normal(n)
    spec = KernelSpec("cuda.norm", params, (half, "float32", half))
    (found,) = run_kernel(spec, [x, scale], (half, "float32", half))
    x = x.astype(found.dtype).astype(np.float64)
    x = x - x.mean(1, keepdims=True) if centre else x
    wanted = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-5) * scale
    step = 2.0 ** (-11 if half == "float16" else -8)
    assert np.abs(found.astype(np.float64).reshape(rows, n) - wanted).max() <= 1.01 * step * np.abs(wanted).max()


def test_families() -> None:
    model = node_model("Softmax", {"x": normal(3, 40)})
    assert [s.spec.family for s in lower(model, resolve_target("cuda"), "m").steps] == ["cuda.softmax"]
    assert [team_size(rows, n) for rows, n in [(5000, 2000), (10, 200), (10, 300), (5000, 3000)]] == [32, 32, 256, 256]
