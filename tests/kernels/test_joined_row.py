"""One row of int8 activations on x86 without VNNI: products of two or four quads summed in 16 bits, exact whatever the inputs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec import int8
from sparsec.codegen.kernels import byte_weights, joined_row
from sparsec.formats import EncodedWeight, Scheme, encode, unpack
from sparsec.target import NAMED, Target
from tests.kernels.harness import run_kernel
from tests.kernels.test_gemv import rounded

Array = np.ndarray[Any, Any]

# |inputs| that four quads have for the two 16-bit halves of a lane, and whether they fit: they add up to 520 at most.
FITS = [127, 65, 65, 65, 65, 65, 34, 34]
JUST_MORE = [127, 65, 65, 65, 65, 65, 34, 35]
CASES = {
    "fits": (FITS, FITS),
    "first half just more": (JUST_MORE, FITS),
    "second half just more": (FITS, JUST_MORE),
    "all at their limit": ([127] * 8, [127] * 8),
    "small": ([127] + [1] * 7, [1] * 8),
}


def sixteen(halves: tuple[list[int], list[int]]) -> Array:
    """Four quads of inputs of which each half of a lane has its eight."""
    first, second = (np.array(half).reshape(4, 2) for half in halves)
    return np.concatenate([first, second], axis=1).reshape(16)


def product(weight: EncodedWeight, x: Array, target: Target, x_group: int) -> Array:
    """One row of x against the weight."""
    packed = byte_weights.pack(unpack(weight), target, x_group, "w")
    p = {"m": 1, "w": packed.params, "x_group": x_group, "bias": False, "residual": False, "act": "", "act_params": []}
    assert joined_row.applies(p, target)
    (out,) = run_kernel("gemv", p, [x.reshape(1, -1), *(a for _, a in packed.arrays)], target=target)
    return out


@pytest.mark.parametrize(
    ("text", "x_group"), [("cb4-g32", 0), ("cb4-g32", 32), ("cb2-g32", 0), ("cb2-g32", 32), ("cb3", 0)]
)
@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512"])
def test_at_the_limit(name: str, text: str, x_group: int) -> None:
    """Weights as large as they can be, with the signs of the inputs in half of the rows, with opposite ones in the others: rows of x that
    fit everywhere, nowhere, and in some of the fours."""
    rng, n = np.random.default_rng(), 40
    fours = {name: sixteen(halves) for name, halves in CASES.items()}
    rows = [np.tile(four, 10) for four in fours.values()]
    rows += [np.concatenate([fours[key] for key in rng.choice(list(fours), 10)]) for _ in range(3)]
    for row in rows:
        signs = rng.choice([-1, 1], len(row))
        signs[:32] = 1
        x = (row * signs).astype(np.float32)
        x[::32] = 127 * signs[::32]  # every scale is 1
        matrix = np.broadcast_to(signs, (n, len(row))) * np.where(np.arange(n) % 2, 1, -1)[:, None]
        weight = encode(matrix.astype(np.float32), Scheme.parse(text))
        wanted = x.astype(np.float64) @ rounded(weight).T
        np.testing.assert_allclose(product(weight, x, NAMED[name], x_group), wanted, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize(
    ("text", "n", "k", "x_group"),
    [
        ("cb4-g32", 77, 160, 32), ("cb4-g32", 5, 1031, 0), ("cb4-g16", 33, 48, 0), ("cb4-g48", 19, 240, 48), ("cb4-g64", 16, 130, 0),
        ("cb2-g32", 50, 96, 32), ("cb2", 131, 193, 0), ("cb1", 40, 33, 0), ("cb1-g16", 17, 112, 16), ("cb3", 37, 257, 0),
        ("cb3-g32", 9, 64, 32), ("cb4-c", 45, 512, 0), ("cb4.r64", 70, 100, 0), ("cb4.i64-g32", 21, 192, 0), ("cb4.i32", 24, 96, 0),
    ],
)  # fmt: skip
@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512"])
def test_inputs_of_many_kinds(name: str, text: str, n: int, k: int, x_group: int) -> None:
    """Normal inputs, some fours of which are too large; uniform ones, most of which are; a few large ones among small."""
    rng = np.random.default_rng()
    weight = encode(rng.normal(size=(n, k)).astype(np.float32), Scheme.parse(text))
    lone = rng.normal(size=k) * np.where(rng.random(k) < 0.02, 30, 1)
    for x in (rng.normal(size=k), rng.uniform(-1, 1, k), lone, np.zeros(k)):
        x = x.astype(np.float32)
        wanted = int8.quantised(x.reshape(1, -1), x_group).astype(np.float64)[0] @ rounded(weight).T.astype(np.float64)
        got = product(weight, x, NAMED[name], x_group)
        assert np.abs(got - wanted).max() <= 2e-6 * np.abs(wanted).max(initial=1.0)


def test_where_it_applies() -> None:
    def applies(text: str, name: str, m: int = 1, k: int = 96) -> bool:
        weight = unpack(encode(np.ones((8, k), np.float32), Scheme.parse(text)))
        return joined_row.applies({"m": m, "w": byte_weights.pack(weight, NAMED[name], 0, "w", m).params}, NAMED[name])

    assert applies("cb4-g32", "x86-avx2")
    assert applies("cb4-g32", "x86-avx512")
    assert applies("cb3", "x86-avx2")
    assert not applies("cb4-g8", "x86-avx2")
    assert not applies("int4-g32", "x86-avx2")
    assert not applies("cb4-g32", "x86-avx2", m=2)
    assert not applies("cb4-g32", "x86-avx512vnni")
    assert not applies("cb4-g32", "arm")
