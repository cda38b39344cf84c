"""gemm on the GPU against numpy, in the simulator: schemes, odd sizes, split inputs, epilogues."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.cuda import blocking, fragments
from sparsec.codegen.cuda.capacity import shared_limit
from sparsec.codegen.cuda.kernels import gemm
from sparsec.formats import Scheme
from sparsec.formats.encoded import encode, unpack
from sparsec.target import resolve_target
from tests.cuda import products
from tests.cuda.compiler import ARCHITECTURES


def check(
    scheme: str, target_name: str, m: int, n: int, k: int, rng: np.random.Generator, parts: int = 1, **more: Any
) -> None:
    target = resolve_target(target_name)
    encoded = encode(rng.standard_normal((n, k)).astype(np.float32), Scheme.parse(scheme))
    weight = unpack(encoded)
    assert fragments.refused(weight, 16 * gemm.TILES, target.storage) == ""
    packed = fragments.pack(weight, gemm.TILES, target.storage)
    products.check(encoded, packed, m, rng, target, parts=parts, **more)


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

    def cut(m: int, k: int, bits: int = 4) -> dict[str, int]:
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
        made = blocking.blocking(m, weight, arch)
        launched = gemm.launch({"m": m, "weight": weight, **made}, resolve_target(f"cuda:{arch}"))
        assert launched.shared_bytes <= shared_limit(arch)
        return made

    assert cut(64, 4096)["parts"] > 1
    assert cut(4096, 4096)["parts"] == 1
    assert cut(20, 128)["parts"] == 1
    assert cut(64, 4096, 16)["stages"] >= 2
