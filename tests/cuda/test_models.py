"""Whole models compiled for a GPU, verified against onnxruntime and run by the C runtime on a simulated GPU."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import sparsec
from bench.zoo import MissingData, ZooModel, get
from bench.zoo.base import from_module
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


def few_tokens() -> ZooModel:
    """all-MiniLM-L6-v2 on five tokens: 128 take the simulator too long."""
    import torch

    from examples import minilm_model

    ids = torch.ones(1, 5, dtype=torch.int64)
    return from_module(
        "minilm_of_5_tokens",
        minilm_model.load(minilm_model.model_folder()),
        {"input_ids": ids, "attention_mask": ids.clone()},
        integer_ranges={"input_ids": (0, 30522), "attention_mask": (1, 2)},
    )


@needs_compiler
@pytest.mark.slow
def test_minilm_on_few_tokens(simulated: FakeGpu) -> None:
    try:
        model = few_tokens()
    except ModuleNotFoundError as error:
        pytest.skip(str(error))
    check(model.compile(None, "cuda", verify=True, inputs=model.random_inputs(1)))


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("recipe", ["s16x1@50-cb4-g32", "s2:4"])
def test_sparse_convolutions(recipe: str, simulated: FakeGpu) -> None:
    model = zoo("resnet8")
    compiled = model.compile(recipe, "cuda", verify=True, inputs=model.random_inputs(1))
    check(compiled)
    assert not compiled.program.decisions
    forms = {form for step in compiled.program.steps for form in step.spec.params.get("weight", {})}
    assert {"s2:4": "pairs", "s16x1@50-cb4-g32": "scattered"}[recipe] in forms


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
