"""Block-sparse weights times many rows on the GPU, in the simulator: what is not stored is neither read nor multiplied."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.codegen.cuda import blocking, blocks, many_rows, shares
from sparsec.codegen.cuda.capacity import CAPACITY
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.kernels import gemm
from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.nvrtc import compile_image
from sparsec.codegen.program import KernelSpec
from sparsec.formats import Scheme
from sparsec.formats.encoded import EncodedWeight, decode, encode, unpack
from sparsec.target import resolve_target
from tests.cuda import products
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.products import NUMPY, PLAIN, bound, run_product

Array = np.ndarray[Any, Any]


def weight_of(scheme: str, n: int, k: int, kept: float, rng: np.random.Generator) -> EncodedWeight:
    """A weight whose first blocks of outputs store nothing."""
    parsed = Scheme.parse(scheme)
    r, c = parsed.block
    stored = rng.random((-(-n // r), -(-k // c))) < kept
    stored[0] = False
    mask = np.repeat(np.repeat(stored, r, 0)[:n], c, 1)[:, :k]
    return encode(rng.standard_normal((n, k)).astype(np.float32), parsed, mask)


def check(
    scheme: str, m: int, n: int, k: int, rng: np.random.Generator, name: str = "cuda", kept: float = 0.4, **more: Any
) -> Packed:
    target, encoded = resolve_target(name), weight_of(scheme, n, k, kept, rng)
    weight = unpack(encoded)
    assert blocks.refused(weight) == ""
    packed = blocks.pack(weight, target.storage)
    products.check(encoded, packed, m, rng, target, **more)
    return packed


@pytest.mark.parametrize(
    "scheme",
    ["s32x8@60", "s64x64@60-cb4-g64", "s32x16@60-int4-g32", "s96x8@60-uint4-g16", "s128x8@60-vq2d4", "s32x8@60-ternary", "s64x24@60-int8"],
)  # fmt: skip
def test_schemes(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(17, 40)), 300, 8 * int(rng.integers(30, 60)), rng)


@pytest.mark.parametrize(
    ("scheme", "m", "n", "k", "kept"),
    [("s32x8@60-cb4", 70, 33, 65, 0.9), ("s256x16@60-int8", 300, 520, 72, 0.5), ("s64x8@60-cb4-g32", 17, 130, 7, 0.5),
     ("s32x32@60-cb4", 140, 64, 600, 0.05)],
)  # fmt: skip
def test_sizes(scheme: str, m: int, n: int, k: int, kept: float, rng: np.random.Generator) -> None:
    check(scheme, m, n, k, rng, kept=kept)


def test_bfloat16(rng: np.random.Generator) -> None:
    check("s32x8@60-int4-g32", 20, 96, 256, rng, "cuda:sm_80:bf16")


def test_epilogue_and_split_inputs(rng: np.random.Generator) -> None:
    check("s64x8@60-int8", 20, 130, 256, rng, bias=True, residual=True, act="silu")
    check("s64x8@60-int8", 20, 130, 512, rng, parts=3)


def test_nothing_stored(rng: np.random.Generator) -> None:
    packed = check("s32x8@60-int8-g32", 20, 64, 130, rng, kept=0.0)
    assert packed.stored is not None
    assert not packed.stored.any()


def test_what_is_read_is_what_is_stored(rng: np.random.Generator) -> None:
    """Codes of blocks that are stored, in whole steps of 64 inputs, and two bytes for every 8 inputs of a panel."""
    encoded = weight_of("s64x64@80-int4", 640, 1024, 0.2, rng)
    packed = blocks.pack(unpack(encoded), "float16")
    sizes = {name.split(".")[1]: array.nbytes for name, array in packed.arrays}
    stored = int((decode(encoded) != 0).reshape(10, 64, 16, 64).any((1, 3)).sum())
    assert stored
    assert sizes["codes"] == 64 * 64 // 2 * stored
    assert sizes["chunks"] == 2 * 8 * 2 * stored  # a block has two panels
    assert packed.stored is not None
    assert packed.stored.sum() == 2 * stored


def test_panels_of_a_block_of_the_grid_store_the_same_inputs(rng: np.random.Generator) -> None:
    for outputs in (32, 64, 96, 128, 192, 256):
        weight = blocks.parameters(unpack(weight_of(f"s{outputs}x8@60-int4", 512, 64, 0.5, rng)), "float16")
        for m in (17, 65, 300):
            cut = blocking.blocking(m, weight, "sm_90")
            assert outputs % (16 * weight["tiles"] * cut["warps_n"]) == 0, (outputs, m, cut)
            assert cut["warps_n"] * cut["warps_m"] <= 4


def test_other_blocks_are_refused(rng: np.random.Generator) -> None:
    for scheme in ("s16x16@60-int8", "s32x4@60-int8", "s48x8@60-int8"):
        assert "no multiples of 32 outputs and 8 inputs" in blocks.refused(unpack(weight_of(scheme, 96, 64, 0.5, rng)))


def test_equal_shares(rng: np.random.Generator) -> None:
    target, (m, n, k, count) = resolve_target("cuda"), (20, 160, 640, 3)
    encoded = weight_of("s32x8@60-cb4-g32", n, k, 0.4, rng)
    packed = blocks.pack(unpack(encoded), target.storage)
    params = {"m": m, "weight": packed.params, **blocking.blocking(m, packed.params, target.gpu)}
    pieces = shares.cut(many_rows.stored_steps(params, packed), count)
    params |= {"parts": 1, "shares": count, "vector": 8, **PLAIN}
    a = rng.standard_normal((m, k)).astype(NUMPY[target.storage])
    arrays = [*(array for _, array in packed.arrays), pieces.reshape(-1)]
    got = run_product("gemm", params, a, arrays, [], target, n)
    want = a.astype(np.float64) @ decode(encoded).astype(np.float64).T
    assert (np.abs(got - want) <= bound(a, decode(encoded), target.storage) + 2.0**-8 * np.abs(want)).all()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_uneven_panels_take_shares(arch: str, rng: np.random.Generator) -> None:
    target, groups = resolve_target(f"cuda:{arch}"), CAPACITY[arch].multiprocessors
    small = blocks.parameters(unpack(weight_of("s64x8@60-int4", 64, 64, 0.5, rng)), "float16")
    weight = small | {"n": 64 * 2 * groups, "k": 8192}
    params = {"m": 256, "weight": weight, **blocking.blocking(256, weight, arch)}
    even = np.full(2 * groups, 20)
    assert many_rows.shares_of(params, Packed(weight, [], even), target) == 0
    even[:6] = 128
    assert many_rows.shares_of(params, Packed(weight, [], even), target) > 0


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(
    "scheme", ["s64x64@60-cb4-g64", "s64x64@60-int4-g64", "s128x8@60-uint4-g32", "s32x32@60-cb4-g32", "s256x8@60-vq2d4"]
)
def test_nothing_spills(scheme: str, arch: str, rng: np.random.Generator) -> None:
    target = resolve_target(f"cuda:{arch}")
    packed = blocks.pack(unpack(weight_of(scheme, 256, 256, 0.5, rng)), target.storage)
    params = {"m": 512, "weight": packed.params, "vector": 8, **PLAIN, **blocking.blocking(512, packed.params, arch)}
    storage = (
        "float16",
        *(str(array.dtype) for _, array in packed.arrays),
        "float16" if params["parts"] == 1 else "uint32",
    )
    source = cuda_source(KernelSpec("cuda.gemm", params, storage), target, "product")
    assert compile_image(source.text, "product", arch).spills == 0
    assert gemm.launch(params, target).shared_bytes == source.launch.shared_bytes
