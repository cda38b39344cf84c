"""Ops that only TVM's Relax knows, on a GPU: against onnxruntime, in the simulator and on a simulated GPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.codegen.build import build_kernels
from sparsec.codegen.cuda import table
from sparsec.codegen.cuda.kernels.relax import lower_relax
from sparsec.codegen.kernels.relax import OPS
from sparsec.codegen.lower import lower
from sparsec.codegen.program import Program
from sparsec.errors import UnsupportedOpError
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.driver import FakeGpu
from tests.cuda.programs import run_gpu_program, source_of
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference
from tests.kernels.test_relax import CASES

Array = np.ndarray[Any, Any]
Case = tuple[str, dict[str, tuple[int, ...]], list[str], dict[str, Any]]

# Op, shapes of its inputs (all float32), those that are constants, attributes.
FLOATS: dict[str, Case] = {
    "transposed": ("ConvTranspose", {"x": (1, 3, 5, 7), "w": (3, 5, 3, 3), "b": (5,)}, ["w", "b"], {}),
    "transposed by groups": (
        "ConvTranspose",
        {"x": (1, 4, 5, 3), "w": (4, 3, 3, 2)},
        ["w"],
        {"strides": [2, 1], "group": 2, "pads": [1, 0, 1, 1], "output_padding": [1, 0]},
    ),
    "transposed, one axis": ("ConvTranspose", {"x": (2, 3, 9), "w": (3, 5, 4)}, ["w"], {"strides": [3]}),
    "einsum": ("Einsum", {"x": (2, 3, 7), "y": (2, 5, 7)}, [], {"equation": "bij,bkj->bik"}),
    "einsum of heads": ("Einsum", {"x": (2, 3, 5, 7), "y": (2, 3, 11, 7)}, [], {"equation": "bhid,bhjd->bhij"}),
    "volume": ("Conv", {"x": (1, 3, 4, 5, 7), "w": (5, 3, 3, 1, 3), "b": (5,)}, ["w", "b"], {"strides": [1, 2, 1]}),
    "samples": ("GridSample", {"x": (2, 3, 5, 7), "g": (2, 3, 11, 2)}, [], {"align_corners": 1}),
    "channels": ("LRN", {"x": (2, 7, 3, 5)}, [], {"size": 3, "alpha": 0.3, "beta": 0.6, "bias": 1.5}),
    # more than one block of threads
    "many": ("LRN", {"x": (1, 5, 13, 17)}, [], {"size": 5}),
}


def run(model: ir.Model, feed: dict[str, Array], atol: float = 1e-5) -> Program:
    """The model in the simulator, with every result of onnxruntime's type and value."""
    program = lower(model, resolve_target("cuda"), "test")
    results = run_gpu_program(program, feed)
    for wanted, found in zip(reference(model, feed), results.values(), strict=True):
        assert found.dtype == wanted.dtype
        np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=atol)
    return program


@pytest.mark.parametrize("name", FLOATS)
def test_floats(name: str, rng: np.random.Generator) -> None:
    op, shapes, constants, attributes = FLOATS[name]
    inputs = {n: rng.normal(size=shape).astype(np.float32) for n, shape in shapes.items()}
    feed = {n: array for n, array in inputs.items() if n not in constants}
    program = run(node_model(op, inputs, constants, **attributes), feed)
    assert {step.spec.family for step in program.steps} == {"cuda.relax"}


@pytest.mark.parametrize("op", sorted(CASES))
def test_op(op: str) -> None:
    for inputs, constants, attributes in CASES[op]:
        feed = {n: array for n, array in inputs.items() if n not in constants and n[0] != "_"}
        program = run(node_model(op, inputs, constants, **attributes), feed)
        assert program.steps[-1].spec.family == "cuda.relax"


@pytest.mark.parametrize("mode", ["half_pixel", "align_corners", "asymmetric"])
@pytest.mark.parametrize("shape", [(1, 3, 5, 7), (1, 2, 3, 4, 5)])
def test_linear_resize(mode: str, shape: tuple[int, ...], rng: np.random.Generator) -> None:
    """Of images by plain loops, with halves between them; of volumes by Relax."""
    factors = np.array([1, 1, 2, 3, 2][: len(shape)], np.float32)
    x = rng.normal(size=shape).astype(np.float32)
    inputs = {"x": x, "_roi": np.zeros(0, np.float32), "s": factors}
    model = node_model("Resize", inputs, ["s"], mode="linear", coordinate_transformation_mode=mode)
    program = run(model, {"x": x}, 1e-5 if len(shape) == 5 else 4e-3)
    assert (program.steps[-1].spec.family == "cuda.relax") == (len(shape) == 5)


def test_every_op_of_the_list_is_tested_and_in_the_table() -> None:
    assert set(OPS) == {*CASES, *(case[0] for case in FLOATS.values())}
    assert all(table.rules_for(ir.Node("", op, []))[-1] is lower_relax for op in OPS)


def decoder(rng: np.random.Generator) -> ir.Model:
    """x [1, 5, 6, 7] -> Conv -> ReLU -> ConvTranspose -> Tanh: values go from a product to Relax and on."""
    text = """<ir_version: 10, opset_import: ["" : 20]>
    decoder (float[1, 5, 6, 7] x) => (float[1, 3, 12, 14] y) {
        a = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (x, v)
        b = Relu (a)
        c = ConvTranspose <kernel_shape = [2, 2], strides = [2, 2]> (b, w)
        y = Tanh (c)
    }"""
    weights = {"v": rng.normal(size=(8, 5, 3, 3)) / 4, "w": rng.normal(size=(8, 3, 2, 2)) / 4}
    tensors = [ir.tensor(array.astype(np.float32), name=name) for name, array in weights.items()]
    return ir.from_onnx_text(text, initializers=tensors)


@needs_compiler
def test_compiled_and_verified(rng: np.random.Generator, simulated: FakeGpu) -> None:
    compiled = sparsec.compile(decoder(rng), "cuda")
    check = compiled.report.verification
    assert check is not None
    assert check.error < check.bound
    assert isinstance(compiled._session, sparsec.runtime.Session)
    compiled._session.close()
    compiled._session = None


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_they_compile(arch: str) -> None:
    machine = resolve_target(f"cuda:{arch}")
    inputs = {"x": np.ones((1, 7, 3, 5), np.float32)}
    specs = [step.spec for step in lower(node_model("LRN", inputs, size=3), machine, "test").steps]
    assert all(kernel.meta["spills"] == 0 for kernel in build_kernels(specs, machine, jobs=1).values())


def test_the_same_node_gives_the_same_kernels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = {"x": np.ones((1, 7, 3, 5), np.float32)}
    made = []
    for folder in ("a", "b"):
        monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / folder))
        program = lower(node_model("LRN", inputs, size=3), resolve_target("cuda"), "test")
        made.append([source_of(step.spec, program.target) for step in program.steps])
    assert made[0] == made[1]
    assert len(made[0]) > 1


def resize(**attributes: Any) -> ir.Model:
    inputs = {
        "x": np.ones((1, 2, 4, 5), np.float32),
        "_roi": np.zeros(0, np.float32),
        "s": np.array([1, 1, 2, 3], np.float32),
    }
    return node_model("Resize", inputs, ["s"], mode="cubic", **attributes)


def moving_filter() -> ir.Model:
    return node_model("ConvTranspose", {"x": np.ones((1, 2, 3, 3), np.float32), "w": np.ones((2, 1, 2, 2), np.float32)})


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (lambda: resize(antialias=1), "antialias"),
        (moving_filter, "the weight 'w' is not a constant"),
        (lambda: node_model("Det", {"x": np.eye(3, dtype=np.float32)}), "no kernel for this op"),
    ],
)
def test_refused_by_name(model: Callable[[], ir.Model], why: str) -> None:
    with pytest.raises(UnsupportedOpError, match=why) as error:
        lower(model(), resolve_target("cuda"), "test")
    assert "for target 'cuda'" in str(error.value)
