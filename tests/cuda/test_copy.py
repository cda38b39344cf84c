"""Strided copies on a GPU: runs, tiles, single elements; every element type."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.lower import lower
from sparsec.codegen.program import KernelSpec
from sparsec.target import resolve_target
from tests.cuda.programs import lower_and_simulate, run_kernel
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def values(shape: tuple[int, ...], dtype: str) -> Array:
    return np.random.default_rng().integers(0, 2 if dtype == "bool" else 100, shape).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint8", "bool", "float16"])
@pytest.mark.parametrize(
    ("shape", "perm"),
    [((3, 40), (1, 0)), ((2, 9, 33), (0, 2, 1)), ((5, 3, 2), (2, 1, 0)), ((2, 3, 4, 8), (0, 2, 1, 3))],
)
def test_transpose(shape: tuple[int, ...], perm: tuple[int, ...], dtype: str) -> None:
    inputs = {"x": values(shape, dtype)}
    model = node_model("Transpose", inputs, perm=list(perm))
    np.testing.assert_array_equal(lower_and_simulate(model, inputs)[0], inputs["x"].transpose(perm))


@pytest.mark.parametrize(
    ("op", "inputs", "constants", "attributes"),
    [
        ("Expand", {"x": values((3, 1), "int32"), "s": np.array([2, 3, 19])}, ("s",), {}),
        ("Concat", {"x": values((3, 5), "float32"), "b": values((3, 8), "float32")}, (), {"axis": 1}),
        ("Slice", {"x": values((40, 9), "float32"), "a": np.array([30]), "b": np.array([2]), "c": np.array([0]), "d": np.array([-3])},
         ("a", "b", "c", "d"), {}),
        ("Tile", {"x": values((3, 16), "uint8"), "n": np.array([2, 3])}, ("n",), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_operators(op: str, inputs: dict[str, Array], constants: tuple[str, ...], attributes: dict[str, Any]) -> None:
    model = node_model(op, inputs, constants, **attributes)
    feed = {name: array for name, array in inputs.items() if name not in constants}
    np.testing.assert_array_equal(lower_and_simulate(model, feed)[0], reference(model, feed)[0])


def params(shape: list[int], src_strides: list[int], dst_strides: list[int], **more: Any) -> dict[str, Any]:
    return {
        "dtype": "float32", "shape": shape, "src_size": 1000, "src_offset": 3, "src_strides": src_strides, "dst_size": 1000,
        "dst_offset": 5, "dst_strides": dst_strides, **more,
    }  # fmt: skip


@pytest.mark.parametrize("storage", [(), ("float32", "float16"), ("bfloat16", "float32"), ("float16", "float16")])
@pytest.mark.parametrize(
    "case", [params([17], [1], [1]), params([4, 16], [20, 1], [16, 1]), params([9, 10], [1, 11], [12, 1])]
)
def test_places_and_storage(case: dict[str, Any], storage: tuple[str, ...]) -> None:
    types = storage or ("float32", "float32")
    source = np.random.default_rng().integers(0, 200, 1000).astype(np.float32)
    (found,) = run_kernel(KernelSpec("cuda.copy", case, storage), [source], types)
    wanted = np.zeros(1000, np.float32)
    for index in np.ndindex(*case["shape"]):
        at = 5 + int(np.dot(index, case["dst_strides"]))
        wanted[at] = source[3 + int(np.dot(index, case["src_strides"]))]
    np.testing.assert_array_equal(found.astype(np.float32), wanted)


def test_nothing_is_copied_of_nothing() -> None:
    program = lower(node_model("Identity", {"x": np.zeros((0, 4), np.float32)}), resolve_target("cuda"), "none")
    assert program.outputs[0].shape == (0, 4)
