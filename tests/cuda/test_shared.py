"""Shared memory of a block: what a kernel declares and what a launch adds, on GPUs that have as much and on such that have less."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from sparsec.codegen.blob import make_blob
from sparsec.codegen.build import BuiltKernel
from sparsec.codegen.bundle import Compiled, Loadable, build_loadable
from sparsec.codegen.cuda import objects
from sparsec.codegen.cuda.emit import CudaEmitter
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.cuda.source import KernelSource
from sparsec.codegen.emit_c import emit_c
from sparsec.codegen.plan import make_plan
from sparsec.errors import DeviceError
from sparsec.runtime import Session
from sparsec.target import resolve_target
from tests.codegen.programs import ProgramBuilder
from tests.cuda.compiler import needs_compiler
from tests.cuda.driver import FakeGpu
from tests.cuda.joins import PLAIN
from tests.cuda.simulator import kernel_library

pytestmark = needs_compiler

TEXT = """#include "device.cuh"

extern "C" __global__ void __launch_bounds__(64, 1) NAME(float* __restrict__ x_p, float* __restrict__ y_p) {
  extern __shared__ __align__(16) float more[];
  __shared__ float tile[COUNT];
  int i = ((int)threadIdx.x);
  tile[(COUNT - 64) + i] = x_p[i];
  more[MORE - 64 + i] = x_p[i];
  __syncthreads();
  y_p[i] = tile[(COUNT - 1) - i] + more[MORE - 1 - i];
}
"""


def loadable(gpu: FakeGpu, folder: Path, declared: int, added: int, monkeypatch: pytest.MonkeyPatch) -> Loadable:
    """x [64] -> 2 x, turned round, by a kernel that declares so many bytes of shared memory and gets so many more."""
    target = resolve_target("cuda:sm_90")
    build = ProgramBuilder("turned", target)
    x, y = build.input("x", (1, 64)), build.output("y", (1, 64))
    build.low.call("cuda.join", {"m": 1, "n": 64, "parts": 1, **PLAIN}, [x], [y], node="turn", op="Turn")
    (step,) = build.program.steps
    symbol, path = f"spc_turned_{declared}_{added}", folder / "kernel.o"
    source = TEXT.replace("NAME", symbol).replace("COUNT", str(declared // 4)).replace("MORE", str(added // 4))
    made = KernelSource(symbol, source, Launch((1, 1, 1), (64, 1, 1), added), step.signature)
    monkeypatch.setattr(objects, "cuda_source", lambda *given: made)
    meta = objects.compile_kernel(step.spec, target, symbol, str(path))
    assert meta["shared"] == declared + added
    (gpu.kernels / f"{symbol}.so").symlink_to(kernel_library(source, symbol))
    text, plan = step.spec.canonical(), make_plan(build.program)
    code = emit_c(build.program, plan, {text: symbol}, CudaEmitter)
    kernels = {text: BuiltKernel(symbol, path, meta)}
    return build_loadable(Compiled(build.program, kernels, plan, code, make_blob(plan, code.model_id)))


@pytest.mark.parametrize(("declared", "added"), [(1 << 10, 4 << 10), (30 << 10, 30 << 10), (1 << 10, 60 << 10)])
def test_what_is_declared_counts(
    declared: int, added: int, gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU gives more than 48 KB in all when it is asked for them."""
    x = np.random.default_rng(1).normal(size=(1, 64)).astype(np.float32)
    made = loadable(gpu, tmp_path, declared, added, monkeypatch)
    with Session(made.library, made.weights) as session:
        np.testing.assert_array_equal(session.run([x])["y"], 2 * x[:, ::-1])
    assert gpu.calls("cuFuncSetAttribute") == (declared + added > 48 << 10)


def test_a_newer_gpu_with_less(gpu: FakeGpu, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """PTX for an H100 runs on a GeForce, but where a block takes more than it has."""
    made = loadable(gpu, tmp_path, 2 << 10, 98 << 10, monkeypatch)
    monkeypatch.setenv("SPC_FAKE_SM", "120")
    with pytest.raises(
        DeviceError,
        match=r"compiled for sm_90, and spc_turned_\w+ takes 102400 bytes of shared memory; "
        r"this GPU, sm_120 \(Simulated 120\), has 101376: compile the model for cuda:sm_120",
    ):
        Session(made.library, made.weights)
    monkeypatch.setenv("SPC_FAKE_SM", "100")
    Session(made.library, made.weights).close()
