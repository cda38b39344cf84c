"""Models compiled for a GPU, from `sparsec.compile` on: run in this process on a simulated GPU, and as a saved bundle."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import sparsec
from sparsec.errors import BundleError, DeviceError
from sparsec.runtime import DeviceArray
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu
from tests.kernels.nodes import node_model
from tests.kernels.programs import reference

pytestmark = needs_compiler


def network(rng: np.random.Generator) -> ir.Model:
    """x [3, 20] -> softmax(relu(x W1 + b1) W2 + b2) [3, 7]: MatMul, Add and an activation, twice."""
    weights = {
        "w1": rng.normal(size=(20, 33)).astype(np.float32) / 4,
        "b1": rng.normal(size=33).astype(np.float32),
        "w2": rng.normal(size=(33, 7)).astype(np.float32) / 4,
        "b2": rng.normal(size=7).astype(np.float32),
    }
    text = """<ir_version: 10, opset_import: ["" : 18]>
    network (float[3, 20] x) => (float[3, 7] y) {
        a = MatMul (x, w1)
        b = Add (a, b1)
        c = Relu (b)
        d = MatMul (c, w2)
        e = Add (d, b2)
        y = Softmax <axis: int = -1> (e)
    }"""
    model = ir.from_onnx_text(text, initializers=[ir.tensor(array, name=name) for name, array in weights.items()])
    return model


@pytest.fixture(scope="module")
def model() -> ir.Model:
    return network(np.random.default_rng(4))


@pytest.fixture(scope="module")
def compiled(model: ir.Model) -> sparsec.CompiledModel:
    return sparsec.compile(model, target="cuda:sm_90", verify=False)


def inputs(seed: int = 1) -> dict[str, np.ndarray]:
    return {"x": np.random.default_rng(seed).normal(size=(3, 20)).astype(np.float32)}


def test_run(model: ir.Model, compiled: sparsec.CompiledModel, gpu: FakeGpu) -> None:
    gpu.add(compiled._compiled)
    for seed in range(3):
        result = compiled.run(inputs(seed))["y"]
        np.testing.assert_allclose(result, reference(model, inputs(seed))[0], atol=4e-3)
    assert compiled._session is not None
    compiled._session.close()
    compiled._session = None


def test_a_chain_of_runs_stays_on_the_gpu(compiled: sparsec.CompiledModel, gpu: FakeGpu) -> None:
    gpu.add(compiled._compiled)
    compiled.run(inputs())
    session = compiled._session
    assert isinstance(session, sparsec.runtime.Session)
    there = session._take(session.inputs[0])
    gpu.write(there.address, inputs()["x"])
    result = compiled.run([there])["y"]
    assert isinstance(result, DeviceArray)
    np.testing.assert_array_equal(gpu.read(result.address, "float32", (3, 7)), compiled.run(inputs())["y"])
    del there, result
    session.close()
    compiled._session = None


def test_without_a_gpu_the_error_says_so(compiled: sparsec.CompiledModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPC_CUDA_DRIVER", "libcuda-is-nowhere.so")
    with pytest.raises(DeviceError, match="there is no CUDA driver"):
        compiled.run(inputs())


def test_a_saved_bundle_runs_without_python(
    model: ir.Model, compiled: sparsec.CompiledModel, gpu: FakeGpu, tmp_path: Path
) -> None:
    gpu.add(compiled._compiled)
    bundle = compiled.save(tmp_path / "network")
    np.save(tmp_path / "x.npy", inputs()["x"])
    command = [bundle / "bin" / compiled._compiled.source.identifier, tmp_path / "x.npy", tmp_path / "y.npy"]
    done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), reference(model, inputs())[0], atol=4e-3)
    with sparsec.load(bundle) as session:
        np.testing.assert_array_equal(session.run(inputs())["y"], np.load(tmp_path / "y.npy"))


def test_an_error_that_a_kernel_finds(gpu: FakeGpu) -> None:
    """An index out of range, which only the data tells."""
    given = {"x": np.arange(12, dtype=np.float32).reshape(4, 3), "at": np.array([3, 0])}
    compiled = sparsec.compile(node_model("Gather", given, axis=0), target="cuda:sm_90", verify=False)
    gpu.add(compiled._compiled)
    name = compiled.outputs[0].name
    assert compiled.program.status is not None
    np.testing.assert_array_equal(compiled.run(given)[name], given["x"][[3, 0]])
    with pytest.raises(BundleError, match="a kernel reported a failure"):
        compiled.run({**given, "at": np.array([4, 0])})
    np.testing.assert_array_equal(compiled.run(given)[name], given["x"][[3, 0]])  # the code is cleared
    assert isinstance(compiled._session, sparsec.runtime.Session)
    compiled._session.close()
