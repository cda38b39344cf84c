"""Real GPUs: how kernels are run on one (tried on the fake driver), and programs, graphs and tensors where there is one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from scipy.special import erf

import sparsec
from sparsec.codegen.bundle import build_loadable, compile_program
from sparsec.codegen.cuda import fragments
from sparsec.codegen.cuda.launch import Launch
from sparsec.formats import Scheme
from sparsec.formats.encoded import encode, unpack
from sparsec.runtime import DeviceArray, Session
from sparsec.target import resolve_target
from tests.cuda import simulator
from tests.cuda.compare import differences
from tests.cuda.compiler import needs_compiler
from tests.cuda.device import Device, needs_gpu, real_gpu
from tests.cuda.driver import FakeGpu
from tests.cuda.joins import join_program, join_reference
from tests.cuda.products import check
from tests.cuda.simulator import kernel_library
from tests.cuda.test_compiled import network
from tests.kernels.programs import reference

SOURCE = """#include "device.cuh"

extern "C" __global__ void __launch_bounds__(64) kernel(float* __restrict__ x_p, half* __restrict__ y_p) {
  __shared__ float tile[64];
  int i = ((int)blockIdx.x) * 64 + ((int)threadIdx.x);
  tile[((int)threadIdx.x)] = i < 100 ? x_p[i] : 0.0f;
  __syncthreads();
  if (i < 100) y_p[i] = (half)spc_gelu(tile[(63 - ((int)threadIdx.x))]);
}
"""


@needs_compiler
def test_kernels_are_launched_with_their_arrays(gpu: FakeGpu) -> None:
    """Compiled, loaded, launched and cleaned up through the driver's functions."""
    (gpu.kernels / "kernel.so").symlink_to(kernel_library(SOURCE, "kernel"))
    x = np.random.default_rng(2).normal(size=100).astype(np.float32)
    found = Device(str(gpu.path)).run(SOURCE, "kernel", Launch((2, 1, 1), (64, 1, 1)), [x, np.zeros(100, np.float16)])
    tiles = np.zeros(128, np.float32)
    tiles[:100] = x
    turned = tiles.reshape(2, 64)[:, ::-1].reshape(-1)[:100]
    np.testing.assert_array_equal(found[0], x)
    np.testing.assert_allclose(found[1], 0.5 * turned * (1 + erf(turned / np.sqrt(2))), rtol=2e-3, atol=1e-4)
    assert gpu.calls("cuLaunchKernel") == 1


def test_differences_are_told() -> None:
    x = np.array([1.0, 2.0, 100.0], np.float32)
    assert differences([x], [x + np.float32(0.1)]) == ""
    assert differences([np.array([np.nan, 1])], [np.array([np.nan, 1.001])]) == ""
    assert "argument 0: 1 of 3 elements differ, largest error 0.01, element 1: 2 simulated, 3 on" in differences(
        [x], [x + np.array([0, 1, 0])]
    )
    assert differences([np.array([7], np.int8)], [np.array([8], np.int8)]) == ""
    assert "1 of 1 elements differ" in differences([np.array([7])], [np.array([8])])
    assert "1 of 2 elements differ" in differences([np.array([True, False])], [np.array([True, True])])
    bits = [x.view(np.uint32), (x + np.float32(0.1)).view(np.uint32), (x + np.float32(9)).view(np.uint32)]
    assert differences(bits[:1], bits[1:2]) == ""
    assert "3 of 3 elements differ" in differences(bits[:1], bits[2:])


def test_a_step_of_a_half_is_a_rounding_that_turned() -> None:
    """bfloat16 in its own type: as whole numbers no two results would be near."""
    for dtype, nearest in ((np.float16, 2.0**-10), (ml_dtypes.bfloat16, 2.0**-7)):
        x = np.array([1.0, -0.5, 1.0], dtype)
        near, far = (x + np.array([0, 0, steps * nearest], dtype) for steps in (1, 8))
        assert near[2] > 1
        assert differences([x], [near]) == ""
        assert "argument 0: 1 of 3 elements differ" in differences([x], [far])


@pytest.mark.parametrize("storage", ["float16", "bfloat16"])
def test_products_are_compared_in_their_storage_type(storage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A real GPU sees the types that kernels have: what it rounds to the neighbour is no difference."""
    seen: list[str] = []

    class Neighbour:
        def run(self, source: str, name: str, launch: Launch, arrays: list[np.ndarray], *more: Any) -> list[np.ndarray]:
            after = simulator.simulate(source, name, launch, arrays, orders=["ascending"])
            seen.append(str(after[-1].dtype))
            return [*after[:-1], np.nextafter(after[-1], after[-1].dtype.type(np.inf))]

    gpus: list[Any] = [None, Neighbour()]  # the GPU's own run is simulated without a GPU
    monkeypatch.setattr(simulator, "real_gpu", lambda: gpus.pop())
    rng = np.random.default_rng(1)
    weight = encode(rng.standard_normal((20, 64)).astype(np.float32), Scheme.parse("int8"))
    target = resolve_target("cuda:bf16" if storage == "bfloat16" else "cuda")
    check(weight, fragments.pack(unpack(weight), 1, storage), 2, rng, target)
    assert seen == [storage]


# --- on a real GPU ---


def _target() -> str:
    found = real_gpu()
    return f"cuda:{found.arch}" if found is not None else "cuda"


@pytest.fixture
def session() -> Iterator[Session]:
    made = build_loadable(compile_program(join_program(target=_target())[0]))
    with Session(made.library, made.weights) as opened:
        yield opened


def _inputs(seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape).astype(np.float32) for shape in ((4, 3, 37), (3, 37))]


@needs_compiler
@needs_gpu
def test_a_program_on_the_gpu(session: Session) -> None:
    for seed in range(4):
        given = _inputs(seed)
        result = session.run(given)
        for name, wanted in join_reference(*given, join_program()[1]).items():
            np.testing.assert_allclose(result[name], wanted, rtol=4e-3, atol=4e-3)
    assert all(0 < step.ns < 1e7 for step in session.profile(_inputs(1)))


@needs_compiler
@needs_gpu
@pytest.mark.parametrize("recipe", [None, "cb4-g32", "s2:4-cb4", "s16x1@50-cb4-g32", "vq2d4"])
@pytest.mark.parametrize("halves", ["", ":bf16"])
def test_a_model_on_the_gpu(recipe: str | None, halves: str) -> None:
    model = network(np.random.default_rng(4))
    x = {"x": np.random.default_rng(1).normal(size=(3, 20)).astype(np.float32)}
    options: dict[str, Any] = {} if recipe is None else {"recipe": recipe}
    compiled = sparsec.compile(model, target=_target() + halves, verify=recipe is not None, **options)
    if recipe is None:
        np.testing.assert_allclose(compiled.run(x)["y"], reference(model, x)[0], atol=3e-2 if halves else 4e-3)


@needs_compiler
@needs_gpu
def test_tensors_of_torch_on_the_gpu(session: Session) -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("torch is installed without CUDA")
    given = _inputs(3)
    there = [torch.from_numpy(array).cuda() for array in given]
    result = session.run(there)
    assert isinstance(result["y"], DeviceArray)
    for name, wanted in join_reference(*given, join_program()[1]).items():
        tensor = torch.from_dlpack(result[name])
        assert tensor.data_ptr() == result[name].address
        np.testing.assert_allclose(tensor.cpu().numpy(), wanted, rtol=4e-3, atol=4e-3)
