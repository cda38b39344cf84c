"""Products of many rows in equal shares: results in the simulator, which products get them, what the compiler says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import sparsec
from sparsec.codegen.cuda import blocking, many_rows, scattered, shares
from sparsec.codegen.cuda.capacity import CAPACITY
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.nvrtc import compile_image
from sparsec.codegen.program import KernelSpec
from sparsec.formats import Scheme
from sparsec.formats.encoded import EncodedWeight, decode, encode, unpack
from sparsec.target import Target, resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.driver import FakeGpu
from tests.cuda.products import NUMPY, PLAIN, bound, run_product
from tests.kernels.programs import one_node_model

Array = np.ndarray[Any, Any]


def uneven(scheme: str, n: int, k: int, rng: np.random.Generator) -> EncodedWeight:
    """A weight whose first 16 outputs store most, the others little; one step of 64 inputs is empty throughout."""
    r, c = Scheme.parse(scheme).block
    kept = np.where(np.arange(-(-n // r)) * r < 16, 0.9, 0.02)
    blocks = rng.random((len(kept), -(-k // c))) < kept[:, None]
    mask = np.repeat(np.repeat(blocks, r, 0)[:n], c, 1)[:, :k]
    mask[:, 64:128] = False
    return encode(rng.standard_normal((n, k)).astype(np.float32), Scheme.parse(scheme), mask)


def packed_for(weight: EncodedWeight, m: int, target: Target) -> tuple[dict[str, Any], Packed]:
    """What gemm.py takes, cut as by the rule of products.py."""
    unpacked = unpack(weight)
    params = scattered.parameters(unpacked, 2, target.storage)
    cut = blocking.blocking(m, params, target.gpu)
    packed = scattered.pack(unpacked, 2, target.storage, together=cut["warps_n"])
    return {"m": m, "weight": packed.params, **cut}, packed


def check(scheme: str, m: int, n: int, k: int, blocks: int, rng: np.random.Generator, name: str = "cuda") -> None:
    target, weight = resolve_target(name), uneven(scheme, n, k, rng)
    w = decode(weight)
    params, packed = packed_for(weight, m, target)
    pieces = shares.cut(many_rows.stored_steps(params, packed), blocks)
    a = rng.standard_normal((m, k)).astype(NUMPY[target.storage])
    params |= {"parts": 1, "shares": blocks, "vector": 8 if k % 8 == 0 else 1, **PLAIN, "bias": True}
    bias = rng.standard_normal(n).astype(np.float32)
    arrays = [*(array for _, array in packed.arrays), pieces.reshape(-1)]
    got = run_product("gemm", params, a, arrays, [bias], target, n)
    want = a.astype(np.float64) @ w.astype(np.float64).T + bias
    assert (np.abs(got - want) <= bound(a, w, target.storage) + 2.0**-8 * np.abs(want)).all(), np.abs(got - want).max()


@pytest.mark.parametrize("scheme", ["s70-int8", "s16x16@90-cb4-g16", "s4x4@70-uint4-g32", "s70"])
def test_schemes(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(17, 30)), 150, 4 * int(rng.integers(90, 150)), int(rng.integers(2, 6)), rng)


@pytest.mark.parametrize(
    ("m", "n", "k", "blocks"), [(70, 140, 200, 3), (17, 1, 500, 2), (20, 300, 65, 7), (18, 300, 196, 1)]
)
def test_sizes(m: int, n: int, k: int, blocks: int, rng: np.random.Generator) -> None:
    check("s70-int8", m, n, k, blocks, rng)


def test_bfloat16(rng: np.random.Generator) -> None:
    check("s70-int4-g32", 20, 150, 256, 3, rng, "cuda:sm_80:bf16")


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_which_products_are_shared(arch: str, rng: np.random.Generator) -> None:
    target, groups = resolve_target(f"cuda:{arch}"), CAPACITY[arch].multiprocessors
    small = unpack(uneven("s64x64@90-int8", 64, 128, rng))

    def shared(stored: Array) -> int:
        weight = scattered.parameters(small, 2, "float16") | {"n": 32 * len(stored), "k": 8192}
        params = {"m": 256, "weight": weight, **blocking.blocking(256, weight, arch)}
        assert params["parts"] == 1
        return many_rows.shares_of(params, Packed(weight, [], stored), target)

    even = np.full(2 * groups, 20)
    assert shared(even) == 0
    even[:6] = 128
    assert shared(even) == groups


@needs_compiler
def test_in_a_program(gpu: FakeGpu, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """From sparsec.compile on, where the estimate is told to take shares."""
    monkeypatch.setattr(shares, "gains", lambda *sizes: True)
    x, w = rng.standard_normal((20, 1024)).astype(np.float32), rng.standard_normal((1024, 72)).astype(np.float32) / 32
    model = one_node_model("MatMul", {"x": x, "w": w}, ["w"])
    wanted = sparsec.compile(model, recipe="s70-int8", verify=False).run({"x": x})["y"]
    compiled = sparsec.compile(model, target="cuda", recipe="s70-int8", verify=False)
    (step,) = compiled.program.steps
    assert step.spec.params["shares"] > 1
    gpu.add(compiled._compiled)
    np.testing.assert_allclose(compiled.run({"x": x})["y"], wanted, atol=2.0**-7)
    compiled._session.close()


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_nothing_spills(arch: str, rng: np.random.Generator) -> None:
    target = resolve_target(f"cuda:{arch}")
    params, packed = packed_for(uneven("s16x16@90-cb4-g16", 256, 512, rng), 128, target)
    params |= {"parts": 1, "shares": 20, "vector": 8, **PLAIN}
    storage = ("float16", *(str(array.dtype) for _, array in packed.arrays), "int32", "float16", "uint32")
    source = cuda_source(KernelSpec("cuda.gemm", params, storage), target, "product")
    assert compile_image(source.text, "product", arch).spills == 0
    assert source.launch.grid == (20, 1, 1)
