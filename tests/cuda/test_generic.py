"""Families of the processor as GPU kernels: against onnxruntime, in the simulator."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.build import build_kernels
from sparsec.codegen.cuda.units import device_signature, thread_count, unit_launch
from sparsec.codegen.lower import lower
from sparsec.codegen.program import Arg, KernelSpec, Signature
from sparsec.target import resolve_target
from tests.cuda.compiler import needs_compiler
from tests.cuda.programs import lower_and_simulate, run_gpu_program
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

Array = np.ndarray[Any, Any]


def normal(*shape: int) -> Array:
    return np.random.default_rng().normal(size=shape).astype(np.float32)


@pytest.mark.parametrize(
    ("op", "inputs", "constants", "attributes"),
    [
        ("CumSum", {"x": normal(3, 37), "axis": np.array(1)}, ("axis",), {"reverse": 1}),
        ("Exp", {"x": normal(3, 5, 7)}, (), {}),
        ("Gather", {"x": normal(9, 5), "at": np.array([[0, -9], [8, -1]])}, (), {"axis": 0}),
        ("GatherElements", {"x": normal(4, 6), "at": np.array([[0, 5], [3, -6]])}, (), {"axis": 1}),
        ("IsNaN", {"x": np.array([1, np.nan, np.inf, -0.0], np.float32)}, (), {}),
        ("Log", {"x": np.array([0, -1, 1e-40, 2, np.inf, np.nan], np.float32)}, (), {}),
        ("Max", {"x": np.array([1, np.nan, 3], np.float32), "b": np.array([2, 2, np.nan], np.float32)}, (), {}),
        ("Pad", {"x": normal(2, 3, 5), "pads": np.array([0, 1, 2, 1, 0, 1])}, ("pads",), {"mode": "reflect"}),
        ("Pow", {"x": np.abs(normal(3, 7)), "b": normal(3, 1)}, (), {}),
        ("ReduceMax", {"x": normal(3, 5, 7), "axes": np.array([0, 2])}, ("axes",), {}),
        ("Round", {"x": 3 * normal(40)}, (), {}),
        ("Sin", {"x": 100 * normal(3, 7)}, (), {}),
        ("Trilu", {"x": normal(2, 5, 4)}, (), {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_operators(op: str, inputs: dict[str, Array], constants: tuple[str, ...], attributes: dict[str, Any]) -> None:
    model = node_model(op, inputs, constants, **attributes)
    feed = {name: array for name, array in inputs.items() if name not in constants}
    (wanted,), (found,) = reference(model, feed), lower_and_simulate(model, feed)
    assert found.dtype == wanted.dtype
    np.testing.assert_allclose(found, wanted, rtol=2e-6, atol=1e-6)


def test_bytes_of_odd_lengths() -> None:
    inputs = {"x": np.random.default_rng().integers(0, 200, (5, 7)).astype(np.uint8), "at": np.array([3, 0, -1])}
    model = node_model("Gather", inputs, axis=0)
    np.testing.assert_array_equal(lower_and_simulate(model, inputs)[0], inputs["x"][inputs["at"]])


def test_an_index_out_of_range_is_noted() -> None:
    inputs = {"x": normal(4, 3), "at": np.array([1, 0, 2])}
    program = lower(node_model("Gather", inputs, axis=0), resolve_target("cuda"), "bad")
    inputs["at"][1] = 4
    assert program.status is not None
    with pytest.raises(AssertionError, match=r"\[\('gather', 1\)\]"):
        run_gpu_program(program, inputs)


def test_scratch_of_every_thread() -> None:
    steps, batch, size, hidden = 3, 2, 5, 7
    rng = np.random.default_rng()
    inputs = {
        "x": normal(steps, batch, size),
        "w": rng.normal(size=(1, 4 * hidden, size)).astype(np.float32),
        "r": (rng.normal(size=(1, 4 * hidden, hidden)) / 3).astype(np.float32),
    }
    model = node_model("LSTM", inputs, ("w", "r"), hidden_size=hidden)
    (wanted,) = reference(model, inputs)
    np.testing.assert_allclose(lower_and_simulate(model, {"x": inputs["x"]})[0], wanted, rtol=0, atol=4e-3)


def test_units_and_scratch() -> None:
    work = Signature((Arg("x", "float32", 9, "in"), Arg("s", "float32", 5, "work")), units=1 << 20, may_fail=True)
    launch = unit_launch(work)
    assert thread_count(launch) == 1 << 14
    scratch, status = device_signature(work).args[1:]
    assert (scratch.role, scratch.size, status.name) == ("out", 5 << 14, "status")
    assert unit_launch(Signature((), units=3)).block == (32, 1, 1)


@needs_compiler
def test_they_compile() -> None:
    params = {"outer": 5, "n": 7, "inner": 3, "log": True}
    spec = KernelSpec("softmax", params, ("float16", "float16"))
    assert build_kernels([spec], resolve_target("cuda:sm_80"))[spec.canonical()].meta["spills"] == 0
