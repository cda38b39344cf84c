"""Grids of products: how many blocks a launch may have, and that many rows of A are no reason to have more."""

from __future__ import annotations

import importlib

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.codegen.lower import lower
from sparsec.codegen.program import family_module
from sparsec.errors import DeviceError
from sparsec.target import resolve_target
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu
from tests.kernels.programs import one_node_model

MOST = (2**31 - 1, 65535, 65535)


@needs_compiler
def test_many_rows(simulated: FakeGpu, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than 65535 blocks of rows pass for a launch; that they run is told by smaller products."""
    monkeypatch.setenv("SPC_FAKE_FAIL_LAUNCH", "1")
    m = 65536 * 128 + 1
    x, w = np.zeros((m, 1), np.float32), np.ones((1, 1), np.float32)
    compiled = sparsec.compile(one_node_model("MatMul", {"x": x, "w": w}, ["w"]), target="cuda", verify=False)
    (step,) = compiled.program.steps
    assert step.spec.family == "cuda.gemm"
    with pytest.raises(DeviceError, match=r"a kernel failed: CUDA_ERROR_LAUNCH_FAILED"):
        compiled.run({"x": x})
    assert simulated.problem == "a failure that was asked for"
    compiled._session.close()
    compiled._session = None


def test_convolutions_of_many_pixels(rng: np.random.Generator) -> None:
    """256 x 224 x 224 pixels are 100352 blocks of 128 rows, for filters as for a product of two activations."""
    text = """<ir_version: 10, opset_import: ["" : 18]>
    network (float[1, 3, 40, 40] x, float[1600, 16] a, float[16, 64] b) => (float[1, 64, 40, 40] y, float[1600, 64] z) {
        y = Conv <kernel_shape: ints = [3, 3], pads: ints = [1, 1, 1, 1]> (x, w)
        z = MatMul (a, b)
    }"""
    filters = rng.standard_normal((64, 3, 3, 3)).astype(np.float32)
    model = ir.from_onnx_text(text, initializers=[ir.tensor(filters, name="w")])
    program = lower(sparsec.compress(model).model, resolve_target("cuda"), "network")
    found = {step.spec.family: step.spec.params for step in program.steps}
    for family in ("cuda.conv", "cuda.matmul"):
        module = importlib.import_module(family_module(family))
        grid = module.launch({**found[family], "m": 256 * 224 * 224}, resolve_target("cuda")).grid
        assert grid[0] >= 100352
        assert all(blocks <= most for blocks, most in zip(grid, MOST, strict=True))
