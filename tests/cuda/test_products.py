"""Linear layers compiled for a GPU, from a model on: which kernel computes them, what the report says, results on a simulated GPU."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.codegen.lower import lower
from sparsec.passes import compress
from sparsec.readers import readers_of
from sparsec.recipe import load_recipe
from sparsec.report import layer_rows
from sparsec.target import resolve_target
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu
from tests.kernels.programs import one_node_model

pytestmark = needs_compiler


def linear(m: int, k: int, n: int, rng: np.random.Generator) -> tuple[ir.Model, np.ndarray]:
    x, w = rng.standard_normal((m, k)).astype(np.float32), rng.standard_normal((k, n)).astype(np.float32)
    return one_node_model("MatMul", {"x": x, "w": w / np.float32(np.sqrt(k))}, ["w"]), x


def check(
    scheme: str | None, m: int, gpu: FakeGpu, rng: np.random.Generator, k: int = 128, n: int = 72
) -> sparsec.CompiledModel:
    model, x = linear(m, k, n, rng)
    wanted = sparsec.compile(model, recipe=scheme, verify=False).run({"x": x})["y"]
    compiled = sparsec.compile(model, target="cuda", recipe=scheme, verify=False)
    gpu.add(compiled._compiled)
    got = compiled.run({"x": x})["y"]
    np.testing.assert_allclose(got, wanted, atol=2.0**-7)
    compiled._session.close()
    return compiled


def families(compiled: sparsec.CompiledModel) -> list[str]:
    return [step.spec.family for step in compiled.program.steps]


@pytest.mark.parametrize("scheme", [None, "int4-g32", "cb4", "vq2d4"])
def test_few_rows(scheme: str | None, gpu: FakeGpu, rng: np.random.Generator) -> None:
    assert families(check(scheme, 3, gpu, rng)) == ["cuda.gemv"]


@pytest.mark.parametrize("scheme", [None, "cb4-g64"])
def test_many_rows(scheme: str | None, gpu: FakeGpu, rng: np.random.Generator) -> None:
    assert families(check(scheme, 20, gpu, rng)) == ["cuda.gemm"]


def test_split_inputs(gpu: FakeGpu, rng: np.random.Generator) -> None:
    assert families(check("int4-g64", 17, gpu, rng, k=1024)) == ["cuda.gemm", "cuda.join"]


def test_strips(gpu: FakeGpu, rng: np.random.Generator) -> None:
    compiled = check("s16x1@50-cb4-g64", 2, gpu, rng, k=512, n=40)
    assert families(compiled) == ["cuda.gemv"]
    assert "strip" in compiled.program.steps[0].spec.params["weight"]


@pytest.mark.parametrize("m", [2, 20])
def test_two_of_four(m: int, gpu: FakeGpu, rng: np.random.Generator) -> None:
    compiled = check("s2:4-cb4-g64", m, gpu, rng, k=256)
    assert compiled.program.steps[0].spec.params["weight"]["pairs"]


@pytest.mark.parametrize("scheme", ["s2:4-cb4-g64", "s2:4-uint4-g64", "s2:4-int8"])
def test_two_of_four_does_not_spill(scheme: str, gpu: FakeGpu, rng: np.random.Generator) -> None:
    compiled = check(scheme, 66, gpu, rng, k=256)
    assert [kernel.meta["spills"] for kernel in compiled._compiled.kernels.values()] == [0]


@pytest.mark.parametrize(("scheme", "m"), [("s70-int8", 2), ("s16x1@50-cb4-g64", 20)])
def test_any_structure(scheme: str, m: int, gpu: FakeGpu, rng: np.random.Generator) -> None:
    compiled = check(scheme, m, gpu, rng)
    assert compiled.program.steps[0].spec.params["weight"]["scattered"]
    assert not compiled.program.decisions


def test_a_scheme_without_kernel_is_decoded_and_the_report_says_why(gpu: FakeGpu, rng: np.random.Generator) -> None:
    compiled = check("int4-g8", 20, gpu, rng)
    assert families(compiled) == ["cuda.gemm"]
    (layer,) = compiled.report.layers
    assert "int4-g8 decoded at compile time, no GPU kernel takes int4-g8: groups of 8 values" in layer.record.reason
    assert (layer.record.scheme, layer.record.nbytes) == ("fp16", 2 * 128 * 72)


@pytest.mark.parametrize(
    ("scheme", "shown", "bits"),
    [(None, "{}", 16.0), ("fp16", "{}", 16.0), ("s2:4", "s2:4-{}", 9.0), ("int8", "int8", 8.25)],
)
@pytest.mark.parametrize("target", ["cuda", "cuda:bf16"])
def test_the_report_says_what_is_stored(
    scheme: str | None, shown: str, bits: float, target: str, rng: np.random.Generator
) -> None:
    model, _ = linear(3, 128, 72, rng)
    compressed = compress(model, load_recipe(scheme))
    program = lower(compressed.model, resolve_target(target), "test")
    (row,) = layer_rows(compressed.layers, program, readers_of(compressed.model))
    assert row.record.scheme == shown.format("fp16" if target == "cuda" else "bf16")
    assert row.record.bits_per_weight == bits
    assert row.record.nbytes == bits * 128 * 72 / 8
