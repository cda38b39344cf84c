"""gemm on the GPU against numpy, in the simulator: schemes, odd sizes, split inputs, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.activations import activation
from sparsec.codegen.cuda import fragments
from sparsec.codegen.cuda.kernels import gemm
from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.program import KernelSpec
from sparsec.formats import Scheme
from sparsec.formats.encoded import decode, encode, unpack
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES
from tests.cuda.products import NUMPY, PLAIN, bound, run_product
from tests.cuda.simulator import simulate


def check(
    scheme: str, target_name: str, m: int, n: int, k: int, rng: np.random.Generator, parts: int = 1, **more: Any
) -> None:
    target = resolve_target(target_name)
    encoded = encode(rng.standard_normal((n, k)).astype(np.float32), Scheme.parse(scheme))
    w, weight = decode(encoded), unpack(encoded)
    assert fragments.refused(weight, 16 * gemm.TILES, target.storage) == ""
    packed = fragments.pack(weight, gemm.TILES, target.storage)
    a = rng.standard_normal((m, k)).astype(NUMPY[target.storage])
    vector = 8 if k % 8 == 0 else 1
    params = {
        "m": m,
        "weight": packed.params,
        "vector": vector,
        **gemm.blocking(m, packed.params, target.gpu),
        "parts": parts,
        **PLAIN,
        **more,
    }
    added, want = [], a.astype(np.float64) @ w.astype(np.float64).T
    if params["bias"]:
        added.append(rng.standard_normal(n).astype(np.float32))
        want = want + added[-1]
    if params["residual"]:
        added.append(rng.standard_normal((m, n)).astype(np.float32))
        want = want + added[-1]
    arrays = [array for _, array in packed.arrays]
    if parts > 1:
        storage = (target.storage, *(str(x.dtype) for x in arrays), "uint32")
        source = cuda_source(KernelSpec("cuda.gemm", params, storage), target, "product")
        out = np.zeros(parts * m * n, np.uint32)
        after = simulate(source.text, "product", source.launch, [a.reshape(-1), *arrays, out])
        joined = {"m": m, "n": n, "parts": parts, "bits": True, **PLAIN}
        source = cuda_source(KernelSpec("cuda.join", joined, ("uint32", "float32")), target, "join")
        got = simulate(source.text, "join", source.launch, [after[-1], np.zeros(m * n, np.float32)])[-1].reshape(m, n)
    else:
        got = run_product("gemm", params, a, arrays, added, target, n)
    want = activation(params["act"], params["act_params"])(want, params["act_params"])
    assert (np.abs(got - want) <= bound(a, w, target.storage) + 2.0**-8 * np.abs(want)).all(), np.abs(got - want).max()


@pytest.mark.parametrize(
    "scheme",
    ["fp16", "int8", "int4-g32", "uint4-g64", "uint3-g16", "cb1", "cb3", "cb4-g128", "cb4.r64", "fp8", "ternary", "vq2d4.x2", "vq1d8"],
)  # fmt: skip
def test_schemes(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, "cuda", int(rng.integers(17, 25)), 70, 128, rng)


@pytest.mark.parametrize(("m", "n", "k"), [(17, 1, 72), (66, 130, 200), (129, 65, 264), (40, 300, 65)])
def test_sizes(m: int, n: int, k: int, rng: np.random.Generator) -> None:
    check("cb4-g64", "cuda", m, n, k, rng)


def test_bfloat16(rng: np.random.Generator) -> None:
    check("int4-g32", "cuda:sm_80:bf16", 20, 64, 128, rng)
    check("uint4-g64", "cuda:sm_80:bf16", 20, 64, 65, rng)


def test_epilogue(rng: np.random.Generator) -> None:
    check("int8", "cuda", 18, 80, 64, rng, bias=True, residual=True, act="gelu_tanh")


@pytest.mark.parametrize("parts", [2, 3])
def test_split_inputs(parts: int, rng: np.random.Generator) -> None:
    check("int4-g64", "cuda", 19, 70, 448, rng, parts=parts)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_blocking(arch: str) -> None:
    """Few outputs are split along the inputs; all that is staged fits."""

    def blocking(m: int, k: int, bits: int = 4) -> dict[str, int]:
        weight = {
            "n": 4096,
            "k": k,
            "tiles": 4,
            "bits": bits,
            "dim": 1,
            "decode": "float",
            "scales": "none",
            "zeros": False,
        }
        made = gemm.blocking(m, weight, arch)
        launched = gemm.launch({"m": m, "weight": weight, **made}, resolve_target(f"cuda:{arch}"))
        assert launched.shared_bytes <= gemm.shared_limit(arch)
        return made

    assert blocking(64, 4096)["parts"] > 1
    assert blocking(4096, 4096)["parts"] == 1
    assert blocking(20, 128)["parts"] == 1
    assert blocking(64, 4096, 16)["stages"] >= 2
