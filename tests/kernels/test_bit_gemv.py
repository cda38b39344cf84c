"""One row of int8 activations times codes of one or two bits, looked up by bits, against float64 on the rounded operands."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bench.assembly import assembly, innermost_loops, uses_stack
from sparsec import int8
from sparsec.codegen.kernels import bit_weights
from sparsec.codegen.lower import lower
from sparsec.formats import EncodedWeight, Scheme, encode, unpack
from sparsec.target import NAMED, Target
from tests.kernels.harness import run_kernel
from tests.kernels.programs import lower_and_run, reference
from tests.kernels.test_gemv import model, rounded

Array = np.ndarray[Any, Any]
AVX2 = NAMED["x86-avx2"]
MANY = 1040
BITS = ["binary", "binary-g32", "cb1", "cb1-c", "cb1-g40", "cb2", "cb2-c", "cb2-t", "cb2-g32", "cb2-g64"]
EVEN = ["ternary", "ternary-t", "int2", "int2-t"]


def coded(text: str, n: int, k: int) -> EncodedWeight:
    """A random weight; a table of two bits is mirrored."""
    rng = np.random.default_rng([n, k, len(text)])
    weight = encode(rng.normal(size=(n, k)).astype(np.float32), Scheme.parse(text))
    if text.startswith("cb2"):
        object.__setattr__(weight, "codebook", np.float32([[-1.1, -0.3, 0.3, 1.1]]))
    return weight


def run(
    weight: EncodedWeight, x: Array, target: Target = AVX2, *, x_group: int = 0, act: str = "", splits: int = 3
) -> None:
    """One product with bias and residual."""
    rng = np.random.default_rng(weight.rows)
    unpacked = unpack(weight)
    assert not bit_weights.refused(unpacked, target, x_group)
    params, arrays = bit_weights.pack(unpacked, target, x_group)
    bias, residual = (rng.normal(size=weight.rows).astype(np.float32) for _ in range(2))
    padded = np.pad(bias, (0, -weight.rows % params["tile"]))
    p = {**params, "bias": True, "residual": True, "act": act, "act_params": []}
    ins = [x, *(array for _, array in arrays), padded, residual]
    (out,) = run_kernel("bit_gemv", p, ins, target=target, splits=splits)
    products = rounded(weight).astype(np.float64) * int8.quantised(x, x_group)
    wanted = products.sum(1) + bias + residual
    wanted = np.maximum(wanted, 0) if act == "relu" else wanted
    assert np.abs(out - wanted).max() <= 2e-6 * max(np.abs(wanted).max(), np.sqrt(np.square(products).sum(1)).max())


def normal(k: int) -> Array:
    return np.random.default_rng(k).normal(size=k).astype(np.float32)


@pytest.mark.parametrize("text", BITS)
def test_scheme(text: str) -> None:
    run(coded(text, 77, 132), normal(132))


@pytest.mark.parametrize("text", EVEN)
def test_even_levels(text: str) -> None:
    run(coded(text, MANY, 69), normal(69))
    weight = coded(text, MANY, 300)
    most = weight.codes[0].copy()
    most[len(most) // 4 :] = 0xAA
    object.__setattr__(weight, "codes", (most, *weight.codes[1:]))
    run(weight, np.ones(300, np.float32))  # the largest sums


@pytest.mark.parametrize("text", ["cb1-g32", "cb2-g32", "cb2", "cb1-c"])
def test_activations_in_groups(text: str) -> None:
    run(coded(text, 50, 160), normal(160), x_group=32)


@pytest.mark.parametrize("size", [(1, 1), (33, 4), (65, 1031), (200, 515)], ids=str)
@pytest.mark.parametrize("text", ["cb1", "cb2-c", "cb2-g8", "binary-g256"])
def test_sizes(text: str, size: tuple[int, int]) -> None:
    """Rows and inputs that fill no vector and no block; one range of units and more of them than there are tiles."""
    run(coded(text, *size), normal(size[1]), act="relu", splits=1 + size[0] % 9)


@pytest.mark.parametrize("text", ["cb1", "cb1-g64", "cb2", "cb2-g32"])
@pytest.mark.parametrize("kind", ["equal", "signs", "zero", "mixed"])
def test_inputs_whose_sums_are_no_bytes(text: str, kind: str) -> None:
    """Every quad, some and none has two tables; all sums at their limits."""
    k = 600
    x = {
        "equal": np.ones(k),
        "signs": np.where(np.arange(k) % 3 < 2, -1, 1),
        "zero": np.zeros(k),
        "mixed": np.where(np.arange(k) % 40 < 20, 1, 0.1) * np.where(np.arange(k) % 7 < 3, -1, 1),
    }[kind].astype(np.float32)
    weight = coded(text, 64, k)
    run(weight, x)
    for code in (0, (1 << weight.scheme.codec.code_bits) - 1):
        object.__setattr__(weight, "codes", (np.full_like(weight.codes[0], 255 * (code > 0)), *weight.codes[1:]))
        run(weight, x)


@pytest.mark.parametrize("used", [[0], [3], [1, 2], [0, 2, 3], [0, 1, 3]], ids=str)
def test_levels_that_are_not_used(used: list[int]) -> None:
    weight = coded("cb2", 40, 64)
    codes = np.random.default_rng(3).choice(used, (40, 64)).astype(np.uint8)
    packed = np.bitwise_or.reduce(codes.reshape(40, 16, 4) << np.arange(0, 8, 2, dtype=np.uint8), axis=2)
    object.__setattr__(weight, "codebook", np.float32([[-1.0, -0.7, 0.5, 0.9]]))
    object.__setattr__(weight, "codes", (packed.reshape(-1),))
    assert np.array_equal(unpack(weight).codes.reshape(40, 64), codes)
    run(weight, normal(64))


def test_bits_of_levels() -> None:
    """Every level is what its new number's bits say."""
    for table in ([-1.1, -0.3, 0.3, 1.1], [0.9, 0.3, -0.3, -0.9], [0.0, 1.0, 0.25, 0.75]):
        weight = coded("cb2", 40, 64)
        object.__setattr__(weight, "codebook", np.float32([table]))
        found = bit_weights.bits_of(unpack(weight))
        assert found is not None
        (base, first, second), number = found
        levels = int8.rounded_table(np.float32([table]))[0][0]
        assert [base + first * (b >> 1) + second * (b & 1) for b in number.tolist()] == levels.tolist()


def test_digits() -> None:
    """Two bits in groups of at most 32 inputs; not three levels so far apart that products of digits might overflow."""

    def digits(weight: EncodedWeight, x_group: int = 0) -> bool:
        return bool(bit_weights.pack(unpack(weight), AVX2, x_group)[0]["digits"])

    assert [digits(coded(text, 40, 64)) for text in ("cb2-g32", "cb2-g64", "cb2-c", "cb1-g32")] == [1, 0, 0, 0]
    assert digits(coded("cb2-c", 40, 64), 32)
    weight = coded("cb2-g32", 40, 64)
    packed = weight.codes[0]
    object.__setattr__(weight, "codes", (packed & ~(packed >> 1 & 0x55),))  # codes 0, 1, 2
    object.__setattr__(weight, "codebook", np.float32([[-1.0, 0.9, 1.0, 0.0]]))
    assert not digits(weight)
    run(weight, -np.ones(64, np.float32))


def test_wide_registers() -> None:
    target = NAMED["x86-avx512"]
    run(coded("cb2-g32", 150, 200), normal(200), target)
    run(coded("cb1", 150, 200), normal(200), target)


def test_what_is_refused() -> None:
    def why(text: str, n: int = 64, k: int = 64, name: str = "x86-avx2", x_group: int = 0) -> str:
        return bit_weights.refused(unpack(coded(text, n, k)), NAMED[name], x_group)

    assert not why("cb2-g32")
    assert "multiplies" in why("cb2-g32", name="x86-avx512vnni")
    assert "multiplies" in why("cb2-g32", name="arm")
    assert "bits" in why("cb3-g32")
    assert "sparse" in why("s16x1@50-cb2")
    assert "zero points" in why("uint2")
    assert "codebooks" in why("cb2.r32")
    assert "as fast" in why("ternary")
    assert not why("ternary", MANY)
    assert "as fast" in why("ternary-g32", MANY)
    assert "eights" in why("cb2-g12")
    assert "follow" in why("cb2-g32", x_group=16)
    weight = coded("cb2", 40, 64)
    object.__setattr__(weight, "codebook", np.float32([[-1.0, -0.7, 0.5, 0.9]]))
    assert "levels" in bit_weights.refused(unpack(weight), AVX2, 0)


@pytest.mark.parametrize("activations", ["int8", "int8-g32"])
def test_node(activations: str) -> None:
    """One row takes this kernel, two rows multiply; the operator's body in onnxruntime decides."""
    for m, family in ((1, "bit_gemv"), (2, "gemv")):
        made, feed = model("cb1", m, 45, 96, activations)
        assert [step.spec.family for step in lower(made, AVX2, name="one").steps] == [family]
        (wanted,) = reference(made, feed)
        (got,) = lower_and_run(made, feed, AVX2)
        assert np.abs(got - wanted).max() <= 3e-6 * np.abs(wanted).max()


@pytest.mark.parametrize("text", ["cb1-c", "cb2-c", "ternary", "cb1-g32", "cb2-g32"])
def test_sums_stay_in_registers(text: str, tmp_path: Path) -> None:
    """The loops that look up; of groups that of the bytes that are looked up again."""
    params, _ = bit_weights.pack(unpack(coded(text, MANY, 256)), AVX2, 0)
    p = {**params, "bias": False, "residual": False, "act": "", "act_params": []}
    loops = innermost_loops(assembly("bit_gemv", p, AVX2, tmp_path))
    lookups = [body for body in loops if any(line.startswith("vpshufb") and "ymm" in line for line in body)]
    assert lookups
    assert not any(uses_stack(body) for body in lookups)
