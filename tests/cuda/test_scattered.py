"""Weights of any structure on the GPU, in the simulator: tiles put together of what is stored."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.codegen.cuda import blocking, scattered
from sparsec.formats import Scheme
from sparsec.formats.encoded import encode, unpack
from sparsec.target import resolve_target
from tests.cuda import products


def mask_of(scheme: Scheme, n: int, k: int, kept: float, rng: np.random.Generator) -> np.ndarray:
    r, c = scheme.block
    text = str(scheme.structure)
    grid = (-(-n // r), -(-k // c))
    blocks = rng.random(grid) < kept
    if ":" in text or text.startswith("sf"):  # as many in every row and in every four
        blocks = np.tile(rng.permuted(np.tile([True, False, False, False], (grid[0], 1)), axis=1), -(-grid[1] // 4))[
            :, : grid[1]
        ]
    return np.repeat(np.repeat(blocks, r, 0)[:n], c, 1)[:, :k]


def check(
    scheme: str,
    m: int,
    n: int,
    k: int,
    rng: np.random.Generator,
    target_name: str = "cuda",
    kept: float = 0.3,
    mask: np.ndarray | None = None,
) -> scattered.Packed:
    target, parsed = resolve_target(target_name), Scheme.parse(scheme)
    mask = mask_of(parsed, n, k, kept, rng) if mask is None else mask
    encoded = encode(rng.standard_normal((n, k)).astype(np.float32), parsed, mask)
    weight = unpack(encoded)
    assert scattered.refused(weight) == ""
    tiles, together = 2 if m > 16 else 1, 1
    if m > 16:
        together = blocking.blocking(m, scattered.parameters(weight, tiles, target.storage), target.gpu)["warps_n"]
    packed = scattered.pack(weight, tiles, target.storage, together=together)
    products.check(encoded, packed, m, rng, target)
    return packed


SCHEMES = [
    "s70",
    "s70-int8",
    "s70-int4-g8",
    "s1:4-cb3",
    "sf75-uint4-g32",
    "s4x1@70-cb4-g16",
    "s2x4@70-vq2d4.x2-g32",
    "s16x1@70-ternary",
]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_few_rows(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(1, 4)), 40, 4 * int(rng.integers(30, 60)), rng)


@pytest.mark.parametrize("scheme", ["s70", "s70-uint5-g32", "s2x4@70-vq2d4", "s1:4-int8"])
def test_many_rows(scheme: str, rng: np.random.Generator) -> None:
    check(scheme, int(rng.integers(17, 40)), 70, 4 * int(rng.integers(20, 40)), rng)


@pytest.mark.parametrize("m", [3, 20])
def test_bfloat16(m: int, rng: np.random.Generator) -> None:
    check("s70-int4-g32", m, 32, 256, rng, "cuda:sm_80:bf16")


@pytest.mark.parametrize(("n", "k", "kept"), [(1, 1, 1.0), (17, 130, 0.02), (50, 65, 0.95)])
def test_sizes(n: int, k: int, kept: float, rng: np.random.Generator) -> None:
    check("s70-cb4", 2, n, k, rng, kept=kept)


@pytest.mark.parametrize("scheme", ["s64x64@90-int8", "s16x16@90-cb4-g16"])
def test_steps_that_no_panel_of_a_block_stores_are_left_out(scheme: str, rng: np.random.Generator) -> None:
    (r, c), n, k = Scheme.parse(scheme).block, 150, 640
    blocks = rng.random((-(-n // r), -(-k // c))) < 0.2
    blocks[0] = False
    mask = np.repeat(np.repeat(blocks, r, 0)[:n], c, 1)[:, :k]
    packed = check(scheme, 20, n, k, rng, mask=mask)
    steps = mask[:128].reshape(128, -1, 64).any((0, 2)).sum()  # four panels of 32 are a block
    assert packed.stored is not None
    assert packed.stored.tolist() == [steps] * 4 + [mask[128:].reshape(n - 128, -1, 64).any((0, 2)).sum()]


def test_nothing_stored(rng: np.random.Generator) -> None:
    for m in (2, 20):
        check("s70-int8-g32", m, 40, 130, rng, mask=np.zeros((40, 130), bool))


def test_bytes_follow_what_is_stored(rng: np.random.Generator) -> None:
    sizes = {name.split(".")[1]: array.nbytes for name, array in check("s70-int8", 1, 64, 1024, rng).arrays}
    assert sizes["codes"] == 64 * 1024 // 8
    assert sizes["stored"] < 0.35 * 64 * 1024
