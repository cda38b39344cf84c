"""Products of few rows in equal shares: results in the simulator for every layout, which products get them, what the compiler says."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.activations import activation
from sparsec.codegen.cuda import few_rows, fragments, pairs, scattered, shares, strips
from sparsec.codegen.cuda.fragments import Packed
from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.nvrtc import compile_image
from sparsec.codegen.program import KernelSpec
from sparsec.formats import Scheme
from sparsec.formats.encoded import EncodedWeight, Unpacked, decode, encode, unpack
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler
from tests.cuda.driver import FakeGpu
from tests.cuda.products import NUMPY, PLAIN, bound, run_product
from tests.cuda.test_products import check as check_linear

Array = np.ndarray[Any, Any]


def uneven(n: int, k: int, block: tuple[int, int], rng: np.random.Generator) -> Array:
    """A mask: one row of blocks is stored whole, one not at all, the others to a random share."""
    r, c = block
    rows = -(-n // r)
    kept = rng.random(rows) ** 3
    whole, nothing = rng.permutation(rows)[:2] if rows > 1 else (0, 0)
    kept[nothing], kept[whole] = 0.0, 1.0
    blocks = rng.random((rows, -(-k // c))) < kept[:, None]
    return np.repeat(np.repeat(blocks, r, 0)[:n], c, 1)[:, :k]


def two_of_four(n: int, k: int, rng: np.random.Generator) -> Array:
    return (rng.random((n, k // 4, 4)).argsort(axis=2) < 2).reshape(n, k)


def encoded(scheme: str, n: int, k: int, rng: np.random.Generator, mask: Array | None = None) -> EncodedWeight:
    parsed = Scheme.parse(scheme)
    if mask is None and not parsed.is_dense:
        mask = two_of_four(n, k, rng) if "2:4" in scheme else uneven(n, k, parsed.block, rng)
    w = rng.standard_normal((n, k)).astype(np.float32)
    return encode(w, parsed, mask)


def packed_of(weight: Unpacked, storage: str) -> Packed:
    """As the rules of products.py lay it out."""
    if weight.scheme.is_dense:
        return fragments.pack(weight, fragments.row_tiles(weight, 1), storage)
    if not pairs.refused(weight):
        return pairs.pack(weight, 2, storage)
    return scattered.pack(weight, 1, storage) if strips.refused(weight) else strips.pack(weight, storage)


def check(
    weight: EncodedWeight, m: int, blocks: int, rng: np.random.Generator, target_name: str = "cuda", **more: Any
) -> None:
    target, w = resolve_target(target_name), decode(weight)
    n, k = w.shape
    packed = packed_of(unpack(weight), target.storage)
    pieces = shares.cut(few_rows.stored_chunks(packed), blocks)
    a = rng.standard_normal((m, k)).astype(NUMPY[target.storage])
    params = {"m": m, "weight": packed.params, "shares": blocks, "vector": 8 if k % 8 == 0 else 1, **PLAIN, **more}
    added, want = [], a.astype(np.float64) @ w.astype(np.float64).T
    if params["bias"]:
        added.append(rng.standard_normal(n).astype(np.float32))
        want = want + added[-1]
    arrays = [*(array for _, array in packed.arrays), pieces.reshape(-1)]
    got = run_product("gemv", params, a, arrays, added, target, n)
    want = activation(params["act"], params["act_params"])(want, params["act_params"])
    assert (np.abs(got - want) <= bound(a, w, target.storage) + 2.0**-8 * np.abs(want)).all(), np.abs(got - want).max()


DENSE = ["fp16", "cb4-g128", "int4-g32", "int8", "cb4.r16", "vq2d4.x2", "uint4-g64", "int5-c", "uint2-t"]
SPARSE = [
    "s2:4-cb4-g64",
    "s16x1@50-cb4-g64",
    "s32x4@50-int8",
    "s48x8@50-vq2d4",
    "s70-int8",
    "s70-uint5-g32",
    "s4x1@70-cb4-g16",
]


@pytest.mark.parametrize("scheme", [*DENSE, *SPARSE])
def test_schemes(scheme: str, rng: np.random.Generator) -> None:
    n, k, m = int(rng.integers(33, 80)), 8 * int(rng.integers(30, 60)), int(rng.integers(1, 4))
    check(encoded(scheme, n, k, rng), m, int(rng.integers(2, 9)), rng)


@pytest.mark.parametrize("scheme", ["cb4", "s16x1@50-cb4-g64", "s70-int8"])
@pytest.mark.parametrize(
    ("m", "n", "k", "blocks"), [(1, 1, 1, 3), (16, 33, 65, 2), (9, 50, 1100, 5), (8, 70, 520, 1), (5, 17, 63, 7)]
)
def test_sizes(scheme: str, m: int, n: int, k: int, blocks: int, rng: np.random.Generator) -> None:
    check(encoded(scheme, n, k, rng), m, blocks, rng)


@pytest.mark.parametrize("scheme", ["s16x1@50-cb4", "s70-int8"])
@pytest.mark.parametrize("kept", [0, 1])
def test_one_panel_or_nothing_is_stored(scheme: str, kept: int, rng: np.random.Generator) -> None:
    mask = np.zeros((100, 300), bool)
    mask[32 : 32 + 16 * kept] = True
    check(encoded(scheme, 100, 300, rng, mask), 2, 6, rng, bias=True, act="relu")


def test_bfloat16(rng: np.random.Generator) -> None:
    check(encoded("int4-g64", 40, 512, rng), 3, 5, rng, "cuda:sm_80:bf16")


@pytest.mark.parametrize("scheme", ["s16x1@50-int4-g32", "s70-int8"])
def test_shares_of_a_packed_weight_are_even(scheme: str, rng: np.random.Generator) -> None:
    packed = packed_of(unpack(encoded(scheme, 200, 3000, rng)), "float16")
    blocks = int(rng.integers(2, 50))
    table = shares.cut(few_rows.stored_chunks(packed), blocks)
    first, last, count, rest = (shares.FIELDS.index(name) for name in ("first", "last", "count", "rest"))
    loads = []
    for row in table[:blocks]:
        mine = [row, *(table[row[rest] + i] for i in range(1, row[count]))][: row[count]]
        loads.append(sum(int(piece[last] - piece[first]) for piece in mine))
    words = next(array for name, array in packed.arrays if name.endswith(".codes"))
    assert sum(loads) == words.size // (32 * fragments.lane_words(packed.params))
    assert max(loads) - min(loads) <= 1


def test_steps_without_anything_stored_are_left_out(rng: np.random.Generator) -> None:
    mask = np.zeros((40, 640), bool)
    mask[3, 64 * 4 + 7], mask[35, 64 * 2], mask[39, 64 * 9] = True, True, True
    packed = scattered.pack(unpack(encoded("s70-int8", 40, 640, rng, mask)), 1, "float16")
    arrays = {name.split(".")[1]: array for name, array in packed.arrays}
    assert packed.stored is not None
    assert packed.stored.tolist() == [1, 0, 2]
    assert arrays["inputs"].tolist() == [4, 2, 9]
    assert arrays["firsts"].tolist() == [0, 1, 1, 3]


def blocks_of(scheme: str, n: int, k: int, m: int, target: str, rng: np.random.Generator, **more: Any) -> int:
    packed = packed_of(unpack(encoded(scheme, n, k, rng, **more)), "float16")
    return few_rows.shares_of({"m": m, "weight": packed.params}, packed, resolve_target(target))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_which_products_are_shared(arch: str, rng: np.random.Generator) -> None:
    target = f"cuda:{arch}"
    assert blocks_of("fp16", 16, 32768, 1, target, rng) > 1
    assert blocks_of("int4", 64, 256, 1, target, rng) == 0
    assert blocks_of("int4", 4096, 512, 1, target, rng) == 0
    mask = np.zeros((64, 20000), bool)
    mask[:16] = True
    assert blocks_of("s16x1@50-int4", 64, 20000, 1, target, rng, mask=mask) > 1


def test_zeros_do_not_change_the_kernel(rng: np.random.Generator) -> None:
    """Layers that differ in their zeros alone have one kernel if both are shared."""
    mask = np.zeros((64, 20000), bool)
    mask[:16] = True
    found = []
    for rolled in (mask, np.roll(mask, 32, axis=0)):
        packed = packed_of(unpack(encoded("s16x1@50-int4", 64, 20000, rng, rolled)), "float16")
        params = {"m": 2, "weight": packed.params, **PLAIN}
        found.append({**params, "shares": few_rows.shares_of(params, packed, resolve_target("cuda"))})
    assert found[0] == found[1]
    assert found[0]["shares"]


@needs_compiler
def test_in_a_program(gpu: FakeGpu, rng: np.random.Generator) -> None:
    """From sparsec.compile on, in a captured graph: a few outputs of many inputs; the counters are the program's."""
    compiled = check_linear(None, 2, gpu, rng, k=16384, n=24)
    (step,) = compiled.program.steps
    assert step.spec.params["shares"] > 1
    assert [arg.name for arg in step.signature.args[-2:]] == ["parts", "counters"]
    assert compiled.program.status is not None
    assert compiled.program.status.size == 1 + shares.places(step.spec.params["shares"])
    compiled._session = None
    x = rng.standard_normal((2, 16384)).astype(np.float32)
    first, again = (compiled.run({"x": x})["y"] for _ in range(2))
    assert first.tobytes() == again.tobytes()
    compiled._session.close()


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize("scheme", ["cb4-g128", "s2:4-cb4-g128", "s16x1@50-cb4-g128", "s70-int8-g128"])
def test_nothing_spills(scheme: str, arch: str, rng: np.random.Generator) -> None:
    target = resolve_target(f"cuda:{arch}")
    packed = packed_of(unpack(encoded(scheme, 64, 512, rng)), "float16")
    params = {"m": 16, "weight": packed.params, "shares": 40, "vector": 8, **PLAIN}
    arrays = [array for _, array in packed.arrays]
    storage = ("float16", *(str(array.dtype) for array in arrays), "int32", "float16", "uint32")
    source = cuda_source(KernelSpec("cuda.gemv", params, storage), target, "product")
    image = compile_image(source.text, "product", arch)
    assert image.spills == 0
    assert source.launch.grid == (40, 1, 1)
    assert [arg.name for arg in source.signature.args[-4:]] == ["pieces", "c", "parts", "counters"]


@needs_compiler
@pytest.mark.parametrize(
    ("scheme", "asked"),
    [("cb4-g128", "scales"), ("int4-g32", ""), ("fp16", ""), ("s16x1@50-cb4-g128", "scales"), ("s70-int8-g128", "starts ranks")],
)  # fmt: skip
def test_what_is_asked_for_ahead(scheme: str, asked: str, rng: np.random.Generator) -> None:
    """Before the table is there, for the first chunk, and before every chunk for the next one."""
    target = resolve_target("cuda")
    packed = packed_of(unpack(encoded(scheme, 64, 4096, rng)), "float16")
    params = {"m": 1, "weight": packed.params, "vector": 8, **PLAIN}
    storage = ("float16", *(str(array.dtype) for _, array in packed.arrays), "float16")
    text = cuda_source(KernelSpec("cuda.gemv", params, storage), target, "product").text
    found = [line for line in text.splitlines() if "spc_prefetch" in line]
    assert len(found) == 2 * len(asked.split())
    assert all(sum(f"{name}_p[" in line for line in found) == 2 for name in asked.split())
    if asked:
        assert text.index("spc_prefetch") < text.index("__syncthreads")
    assert compile_image(text, "product", target.gpu).ptx.count(b"prefetch.global.L2") == len(found)
