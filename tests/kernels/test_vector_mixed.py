"""One row times a mirrored codebook of vectors on AVX2: sums are exact where their estimate is at its worst; the loop's instructions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bench.assembly import assembly, innermost_loops, uses_stack
from bench.instructions import kernel
from sparsec.codegen.kernels import vector_gemv, vector_mixed
from sparsec.codegen.kernels.vector_weights import MOST_UNITS
from sparsec.formats import EncodedWeight, Scheme, encode, unpack
from sparsec.target import NAMED
from tests.kernels.harness import run_kernel

Array = np.ndarray[Any, Any]
AVX2 = NAMED["x86-avx2"]
# Products with inputs of 127, 1, 0, 0: entry `a, b` gives 127 a + b. 2, 1: lower byte 255; 0, 0: lower byte 0 and an even upper byte.
ENTRIES = [
    (2, 1, 0, 0),
    (0, 0, 0, 0),
    (-2, -1, 0, 0),
    (63, 63, 0, 0),
    (-63, -63, 0, 0),
    (6, 6, 0, 0),
    (0, -1, 0, 0),
    (4, 4, 0, 0),
]


def weight(codes: Array, entries: Array, scheme: str = "vq2d4") -> EncodedWeight:
    """The weight of codes [rows, quads] and the first half of a mirrored codebook of whole numbers up to 63."""
    made = encode(np.ones((codes.shape[0], 4 * codes.shape[1]), np.float32), Scheme.parse(scheme))
    object.__setattr__(made, "codebook", np.concatenate([entries, -entries]).astype(np.float16)[None, None])
    object.__setattr__(made, "codes", (codes.astype(np.uint8).reshape(-1),))
    if made.scales is not None:
        object.__setattr__(made, "scales", np.ones_like(made.scales))
    return made


def product(made: EncodedWeight, x: Array, x_group: int = 0) -> tuple[str, Array]:
    """The form it was computed in, and the result."""
    params, arrays = vector_gemv.pack(unpack(made), AVX2, x_group, whole=True)
    p = {**params, "bias": False, "residual": False, "act": "", "act_params": []}
    (out,) = run_kernel("vector_gemv", p, [x, *(array for _, array in arrays)], target=AVX2)
    return params["form"], out


def codebook(rng: np.random.Generator) -> Array:
    entries = rng.integers(-63, 64, (128, 4))
    entries[: len(ENTRIES)] = ENTRIES
    return entries


@pytest.mark.parametrize("quads", [1, 31, MOST_UNITS["mixed"], 2 * MOST_UNITS["mixed"] + 3])
def test_exact(quads: int) -> None:
    """Rows of one code, of two that take turns, and of any codes, against whole numbers: not a bit may differ."""
    rng = np.random.default_rng()
    entries, extreme = codebook(rng), np.concatenate([np.arange(len(ENTRIES)), 128 + np.arange(len(ENTRIES))])
    pairs = np.stack(np.meshgrid(extreme, extreme), axis=-1).reshape(-1, 2)
    turns = np.resize(np.stack([pairs, pairs[:, ::-1]], axis=1).reshape(len(pairs), 4), (len(pairs), 4))
    codes = np.concatenate([np.tile(turns, (1, quads))[:, :quads], rng.integers(0, 256, (75, quads))])
    x = np.tile([127.0, 1.0, 0.0, 0.0], quads).astype(np.float32)
    matrix = np.concatenate([entries, -entries])[codes].reshape(len(codes), -1)
    form, out = product(weight(codes, entries), x)
    assert form == "mixed"
    np.testing.assert_array_equal(out, matrix @ x)


def test_groups_are_spans() -> None:
    """Groups of scales as long as a span may be, and longer ones, which are looked up in memory."""
    rng = np.random.default_rng()
    entries = codebook(rng)
    for scheme, wanted in (("vq2d4-g496", "mixed"), ("vq2d4-g512", "memory"), ("vq2d4-g16", "mixed")):
        codes = rng.integers(0, 256, (83, 256))
        x = rng.integers(-127, 128, 1024).astype(np.float32)
        x[0] = 127
        form, out = product(weight(codes, entries, scheme), x)
        assert form == wanted
        matrix = np.concatenate([entries, -entries])[codes].reshape(len(codes), -1)
        np.testing.assert_allclose(out, matrix @ x, rtol=1e-6, atol=1)


def test_starts_count_subtractions() -> None:
    """An estimate holds for sums that begin at as much as there are products in a span."""
    params, arrays = vector_gemv.pack(unpack(weight(np.full((80, 130), 255), np.eye(128, 4))), AVX2, 0, whole=True)
    found = dict(arrays)["starts"].reshape(2, -1)
    assert found.size == vector_mixed.starts(params)
    assert (found[0] == MOST_UNITS["mixed"]).all()
    assert (found[1] == 130 - MOST_UNITS["mixed"]).all()


def test_loop(tmp_path: Any) -> None:
    """The innermost loop keeps its vectors in registers, and adds what is in memory without taking it for lanes of vectors."""
    text = assembly(*kernel("vq2d4", 1, AVX2), AVX2, tmp_path)
    body = max(innermost_loops(text), key=lambda lines: sum(line.startswith("vpshufb") for line in lines))
    names = [line.split()[0] for line in body]
    assert names.count("vpshufb") == 2 * 2 * 8
    assert not any(name.startswith("vpinsr") for name in names)
    assert not uses_stack(body)
    assert len(body) <= 160
