"""The simulator of GPU kernels: right kernels give the right numbers, wrong ones are found."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

from sparsec.codegen.cuda.launch import Launch
from tests.cuda import simulator
from tests.cuda.simulator import HERE, SimulationError, simulate
from tests.cuda.simulator.device import device_functions, device_text, plain_functions


@pytest.fixture(autouse=True)
def _no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels that are wrong on purpose stay off a real GPU."""
    monkeypatch.setattr(simulator, "real_gpu", lambda: None)


REVERSE = """
extern "C" __global__ void __launch_bounds__(64) kern(float* __restrict__ x_p, float* __restrict__ y_p) {
  __shared__ alignas(64) float tile[64];
  tile[((int)threadIdx.x)] = x_p[((((int)blockIdx.x) * 64) + ((int)threadIdx.x))];
  __syncthreads();
  y_p[((((int)blockIdx.x) * 64) + ((int)threadIdx.x))] = tile[(63 - ((int)threadIdx.x))];
}
"""


def lines(blocks: int, threads: int, shared: int = 0) -> Launch:
    return Launch((blocks, 1, 1), (threads, 1, 1), shared)


def kernel(body: str, parameters: str = "float* x_p, float* y_p") -> str:
    return f'#include "device.cuh"\n\nextern "C" __global__ void kern({parameters}) {{\n{body}\n}}\n'


def run(body: str, blocks: int = 2, threads: int = 64, size: int = 128, shared: int = 0) -> np.ndarray:
    x = np.random.default_rng(3).normal(size=size).astype(np.float32)
    return simulate(kernel(body), "kern", lines(blocks, threads, shared), [x, np.zeros_like(x)])[1]


def test_shared_memory_and_a_barrier() -> None:
    x = np.random.default_rng(0).normal(size=192).astype(np.float32)
    after = simulate(REVERSE, "kern", lines(3, 64), [x, np.zeros_like(x)])
    np.testing.assert_array_equal(after[0], x)
    np.testing.assert_array_equal(after[1], x.reshape(3, 64)[:, ::-1].reshape(-1))


def test_indices_of_three_dimensions() -> None:
    body = """
  int block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  int thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  y_p[block * 24 + thread] = block * 24 + thread;"""
    y = simulate(
        kernel(body, "int* y_p"), "kern", Launch((2, 3, 2), (4, 3, 2)), [np.zeros(12 * 24, np.int32)], align=4
    )[0]
    np.testing.assert_array_equal(y, np.arange(12 * 24))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.replace("  __syncthreads();\n", ""), "results depend on the order of threads: argument 1"),
        (lambda s: s.replace("(63 -", "(64 -"), r"shared array tile was touched 256 bytes from its start; it has 256 bytes"),
        (lambda s: s.replace("y_p[(", "y_p[(64 + "), r"argument 1 of 768 bytes was touched 768 bytes from its start"),
        (lambda s: s.replace("x_p[(", "x_p[-192 + ("), r"argument 0 of 768 bytes was touched -\d+ bytes"),
        (lambda s: s.replace("y_p[(", "y_p[-1 + ("), "argument 1 of 768 bytes was (written|touched) -4 bytes from its start"),
        (
            lambda s: s.replace("__syncthreads();", "if (threadIdx.x < 40) __syncthreads();"),
            r"barrier that not all threads reach: thread 0, 1, 2, 3 ... \(40 in all\) waits in __syncthreads in line 4; "
            r"thread 40.*ended",
        ),
        (
            lambda s: s.replace("__syncthreads();", "if (threadIdx.x < 40) {\n__syncthreads();\n} else\n__syncthreads();"),
            "barrier that not all threads reach: .*line 5; .*line 7",
        ),
        (lambda s: s.replace("tile[((int)threadIdx.x)] = x", "float ignored = x"), None),
        (
            lambda s: s.replace("float tile", "float2 tile").replace("= x_p[", "= *(float2*)&x_p[").replace("[(63", "[0].x; tile[(63"),
            "unaligned",
        ),
        (lambda s: s.replace("y_p[(", "*(float4*)&y_p[(").replace("= tile", "= *(float4*)&tile").replace("63 -", "0 *"), "unaligned"),
        (lambda s: s.replace("float tile[64]", "float tile[8][8]"), "does not know this form of shared memory"),
        (lambda s: s.replace("__syncthreads()", "__syncthread()"), "does not compile as C"),
    ],
)  # fmt: skip
def test_wrong_kernels_are_found(change: object, message: str | None) -> None:
    x = np.random.default_rng(1).normal(size=192).astype(np.float32)
    source = change(REVERSE)  # type: ignore[operator]
    assert source != REVERSE
    if message is None:  # memory nobody wrote holds NaN
        assert np.isnan(simulate(source, "kern", lines(3, 64), [x, np.zeros_like(x)])[1]).all()
        return
    with pytest.raises(SimulationError, match=message):
        simulate(source, "kern", lines(3, 64), [x, np.zeros_like(x)])


def test_arguments_are_counted() -> None:
    with pytest.raises(SimulationError, match="takes 2 arguments, 1 given"):
        simulate(REVERSE, "kern", lines(1, 64), [np.zeros(64, np.float32)])


def test_a_register_array_nobody_wrote_is_nan() -> None:
    assert np.isnan(run("float r[4]; r[0] = 0; y_p[blockIdx.x * 64 + threadIdx.x] = r[threadIdx.x % 3 + 1];")).all()


def test_an_index_outside_of_a_register_array_is_found() -> None:
    with pytest.raises(SimulationError, match="index outside of its array"):
        run("float r[4] = {0}; y_p[threadIdx.x] = r[threadIdx.x / 15];")


def test_a_block_that_is_too_large() -> None:
    with pytest.raises(SimulationError, match="1025 threads in a block"):
        run("", threads=1025)


def test_blocks_that_disagree_are_found() -> None:
    with pytest.raises(SimulationError, match="depend on the order"):
        run("y_p[threadIdx.x] = blockIdx.x;")


def test_dynamic_shared_memory() -> None:
    body = """
  extern __shared__ __align__(16) uchar buf_dyn_shmem[];
  ((float*)buf_dyn_shmem)[threadIdx.x] = x_p[blockIdx.x * 64 + threadIdx.x];
  __syncthreads();
  y_p[blockIdx.x * 64 + threadIdx.x] = ((float*)buf_dyn_shmem)[threadIdx.x ^ 1];"""
    x = np.random.default_rng(3).normal(size=128).astype(np.float32)
    np.testing.assert_array_equal(run(body, shared=256), x.reshape(-1, 2)[:, ::-1].reshape(-1))
    with pytest.raises(SimulationError, match="buf_dyn_shmem was touched 240 bytes from its start; it has 240 bytes"):
        run(body, shared=240)


def test_shuffles() -> None:
    body = """
  float v = x_p[blockIdx.x * 64 + threadIdx.x];
  float s = v;
  for (int d = 16; d; d >>= 1) s += __shfl_xor_sync(0xffffffffu, s, d);
  float up = __shfl_up_sync(0xffffffffu, v, 1), down = __shfl_down_sync(0xffffffffu, v, 3, 8);
  float third = __shfl_sync(0xffffffffu, v, 3);
  unsigned odd = __ballot_sync(0xffffffffu, threadIdx.x & 1);
  y_p[blockIdx.x * 64 + threadIdx.x] = s + 2 * up + 3 * down + 5 * third + (odd == 0xaaaaaaaau ? 0 : 1e30f);"""
    x = np.random.default_rng(3).normal(size=128).astype(np.float32).reshape(4, 32)
    lane = np.arange(32)
    down = x[:, np.where(lane % 8 + 3 < 8, lane + 3, lane)]
    wanted = x.sum(1, keepdims=True) + 2 * x[:, np.maximum(lane - 1, 0)] + 3 * down + 5 * x[:, 3:4]
    np.testing.assert_allclose(run(body).reshape(4, 32), wanted, rtol=1e-5, atol=1e-5)


def test_a_shuffle_in_a_branch_is_found() -> None:
    with pytest.raises(SimulationError, match=r"not all threads reach.*waits in __shfl_sync in line 3; .*ended"):
        run(
            "float v = x_p[threadIdx.x];\nif (threadIdx.x < 20) v = __shfl_sync(0xffffffffu, v, 0);\ny_p[threadIdx.x] = v;"
        )
    with pytest.raises(SimulationError, match="the mask 0000000f lacks lane 4"):
        run("float v = __shfl_sync(0xfu, 1.0f, 0);")


def test_lanes_do_not_run_in_step() -> None:
    """What lanes exchange through memory needs __syncwarp."""
    body = """
  __shared__ float tile[64];
  tile[threadIdx.x] = x_p[blockIdx.x * 64 + threadIdx.x];
  SYNC
  y_p[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x ^ 1];"""
    x = np.random.default_rng(3).normal(size=128).astype(np.float32)
    np.testing.assert_array_equal(run(body.replace("SYNC", "__syncwarp();")), x.reshape(-1, 2)[:, ::-1].reshape(-1))
    with pytest.raises(SimulationError, match="depend on the order"):
        run(body.replace("SYNC", ""))


@pytest.mark.parametrize("kind", ["half", "nv_bfloat16"])
def test_halves_round_like_numpy(kind: str) -> None:
    dtype = np.dtype(np.float16 if kind == "half" else ml_dtypes.bfloat16)
    rng = np.random.default_rng(5)
    bits = rng.integers(0, 2**32, 4096, np.uint32)
    edges = np.array(
        [0, -0.0, 65504, 65519.99, 65520, 1e9, 2.98e-8, 2.9802322e-08, 5.96e-8, 6.1e-5, 1e-40, np.inf, -np.inf]
    )
    ties = (1 + rng.integers(0, 2048, 500) / 2048) * 2.0 ** rng.integers(-20, 15, 500)
    x = np.concatenate([bits.view(np.float32), edges.astype(np.float32), ties.astype(np.float32)])
    x = np.resize(x[~np.isnan(x)], 4608)
    body = f"int i = blockIdx.x * 128 + threadIdx.x; y_p[i] = ({kind})x_p[i]; z_p[i] = (float)y_p[i] + 1.0f;"
    arrays = [x, np.zeros(x.size, dtype), np.zeros_like(x)]
    with np.errstate(over="ignore"):
        wanted = x.astype(dtype)
        after = simulate(kernel(body, f"float* x_p, {kind}* y_p, float* z_p"), "kern", lines(36, 128), arrays)
        np.testing.assert_array_equal(after[1].view(np.uint16), wanted.view(np.uint16))
        np.testing.assert_array_equal(after[2], wanted.astype(np.float32) + 1)


def test_byte_permute_and_dot() -> None:
    body = "y_p[0] = __byte_perm(0x83020100u, 0x07060504u, 0xb7a0u); y_p[1] = __dp4a((int)0x01ff02feu, (int)0x030405fbu, 100);"
    y = simulate(kernel(body, "int* y_p"), "kern", lines(1, 1), [np.zeros(2, np.int32)])[0]
    assert y.view(np.uint32)[0] == 0xFF070000
    assert y[1] == 100 + 1 * 3 - 1 * 4 + 2 * 5 + 2 * 5


def test_device_functions_are_taken_apart() -> None:
    text = """
SPC_DEVICE int one(int a) { if (a) { return 1; } return 2; }
template <int N>
SPC_DEVICE void two(float *p)
{
  asm volatile("nop;" : : "r"(N));
}
"""
    one, two = device_functions(text)
    assert (one.name, two.name, one.assembly, two.assembly) == ("one", "two", False, True)
    assert one.text.endswith("return 2; }")
    assert two.text.startswith("template <int N>")


def test_every_type_of_the_device_header_is_there() -> None:
    types = set(re.findall(r"struct (\w+) \{|typedef [^;]*?(\w+);", device_text()))
    ours = (HERE / "types.h").read_text()
    names = {a or b for a, b in types}
    assert {"half", "nv_bfloat16", "uchar"} <= names
    assert [n for n in sorted(names) if not n.endswith("_t") and not re.search(rf"\b{n};", ours)] == []


def test_every_device_function_is_there() -> None:
    """What is assembly in device.cuh has a twin; what is not compiles as it is (every simulated kernel includes it)."""
    functions = device_functions(device_text())
    assert len(functions) == device_text().count("SPC_DEVICE ") - 1, "a function of device.cuh was not understood"
    helpers = (HERE / "helpers.h").read_text()
    missing = [f.name for f in functions if f.assembly and f" {f.name}(" not in helpers]
    assert missing == []
    assert "spc_warp_sum" in plain_functions()


def test_warp_sum() -> None:
    x = np.random.default_rng(3).normal(size=128).astype(np.float32)
    y = run("y_p[blockIdx.x * 64 + threadIdx.x] = spc_warp_sum(x_p[blockIdx.x * 64 + threadIdx.x]);")
    np.testing.assert_allclose(
        y.reshape(4, 32), np.repeat(x.reshape(4, 32).sum(1)[:, None], 32, 1), rtol=1e-5, atol=1e-5
    )
