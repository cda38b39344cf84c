"""Whole models compiled for a GPU, verified against onnxruntime and run by the C runtime on a simulated GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsec
from bench.zoo import MissingData, ZooModel, get
from sparsec.codegen.lower import lower
from sparsec.frontend import load_model
from sparsec.passes import compress
from sparsec.recipe import load_recipe
from sparsec.report import step_counts
from sparsec.target import resolve_target
from sparsec.verify import half_bound
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu

MODELS = Path(__file__).parents[1] / "models"
# Families of the processor that run on threads in models of the zoo: what moves values, and is little of their time.
GENERIC = {"gather", "pad"}


def zoo(name: str) -> ZooModel:
    try:
        return get(name)
    except MissingData as missing:
        pytest.skip(str(missing))


def check(compiled: sparsec.CompiledModel) -> None:
    verification = compiled.report.verification
    assert verification is not None
    assert verification.error < half_bound(compiled.target.storage, len(compiled.program.steps))
    assert isinstance(compiled._session, sparsec.runtime.Session)
    compiled._session.close()


@needs_compiler
@pytest.mark.parametrize("recipe", [None, "int8"])
def test_digits(recipe: str | None, simulated: FakeGpu) -> None:
    compiled = sparsec.compile(MODELS / "digits.onnx", "cuda", recipe, input_shapes={"x": [2, 1, 8, 8]})
    families = set(compiled.report.steps)
    assert {"cuda.conv", "cuda.depthwise", "cuda.global_pool", "cuda.gemv"} <= families
    assert {f for f in families if not f.startswith("cuda.")} <= GENERIC
    check(compiled)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet20", "stories_decode", "stories_prefill", "mobilenet_v1", "silero_vad"])
def test_zoo(name: str, simulated: FakeGpu) -> None:
    model = zoo(name)
    check(model.compile(None, "cuda", verify=True, inputs=model.random_inputs(1)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["minilm", "resnet20", "resnet50_random", "mobilenet_v2", "stories_decode", "stories_prefill"]
)
def test_hot_operators_have_kernels_of_their_own(name: str) -> None:
    model = zoo(name)
    source = load_model(model.onnx_file(), None, model.input_shapes, model.input_values)
    program = lower(compress(source, load_recipe(None)).model, resolve_target("cuda"), name)
    assert {f for f in step_counts(program) if not f.startswith("cuda.")} <= GENERIC
    assert np.sum([b.nbytes for b in program.buffers if b.kind == "const"]) > 0
