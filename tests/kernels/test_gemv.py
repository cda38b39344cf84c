"""Products with int8 activations against float64 on the rounded operands: every layout, every instruction set."""

from __future__ import annotations

from copy import copy
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sparsec import int8, ops
from sparsec.codegen.kernels import byte_weights, gemv, gemv_inputs, joined
from sparsec.formats import EncodedWeight, Scheme, decode, encode, unpack
from sparsec.target import NAMED, Target, host_target
from tests.kernels.harness import run_kernel
from tests.kernels.programs import lower_and_run, reference, refusals
from tests.kernels.test_conv import build, constant
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]

DENSE = [
    "int8", "int8-g4", "int4-g32", "int4-t", "int2-g16", "uint8", "uint4-g32", "uint2-t", "ternary-g32", "ternary-t", "cb4-g32", "cb3",
    "cb2-g32", "cb2.r64", "cb1", "cb1.i32", "cb4-c", "cb4.r64", "cb3.i32", "cb4.i64-g32", "vq2d4", "vq2d4.x2-c", "vq2d2-g16", "vq1d8-t",
    "vq2d8.r32", "vq2d8.x4", "vq4d4-g32", "vq4d2", "vq1d4.i32", "vq1d2", "vq2d4.q8",
]  # fmt: skip
STRIPS = [
    "s16x1@50-cb4-g32",
    "s16x1@50-int4-g32",
    "s32x1@60-ternary",
    "s16x1@70-cb2",
    "s16x1@50-int2-g16",
    "s16x1@50-cb3-t",
]


def rounded(weight: EncodedWeight) -> Array:
    """W with the tables the kernel has."""
    if weight.codebook is None:
        return decode(weight)
    rounded_weight = copy(weight)
    object.__setattr__(rounded_weight, "codebook", int8.rounded_values(weight.codebook))  # float32, not what is stored
    return decode(rounded_weight)


def check(
    text: str, m: int, n: int, k: int, target: Target, x_group: int = 0, share: float = 0.5, act: str = ""
) -> None:
    """One product with bias and residual."""
    rng = np.random.default_rng([m, n, k, len(text)])
    scheme = Scheme.parse(text)
    weight = encode(rng.normal(size=(n, k)).astype(np.float32), scheme, mask=keep_mask(scheme, n, k, rng, share))
    unpacked = unpack(weight)
    assert not byte_weights.refusal(unpacked, target, x_group)
    packed = byte_weights.pack(unpacked, target, x_group, "w", m)
    x, residual = (rng.normal(size=(m, size)).astype(np.float32) for size in (k, n))
    x[m // 2] = 0  # no scale of its own
    bias = np.zeros(packed.params["tiles"] * packed.params["tile"], np.float32)
    bias[:n] = rng.normal(size=n)
    ins = [x, *(array for _, array in packed.arrays)]
    p = {"m": m, "w": packed.params, "x_group": x_group, "bias": True, "residual": True, "act": act, "act_params": []}
    if gemv_inputs.looks_up_bits(p, target):
        ins.append(gemv_inputs.pack_table(p, target))
    if joined.asks(p, target):
        ins.append(joined.limits(unpacked, packed.params))
    (out,) = run_kernel("gemv", p, [*ins, bias, residual], target=target)
    wanted = int8.quantised(x, x_group).astype(np.float64) @ rounded(weight).T.astype(np.float64) + bias[:n] + residual
    wanted = np.maximum(wanted, 0) if act == "relu" else wanted
    assert np.abs(out.reshape(m, n) - wanted).max() <= 2e-6 * np.abs(wanted).max(initial=1.0)


@pytest.mark.parametrize("text", DENSE + STRIPS)
def test_scheme(text: str) -> None:
    check(text, 3, 77, 128, host_target())


@pytest.mark.parametrize("group", [4, 12, 16, 20, 28, 32, 40, 60])
@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512", "arm", "arm-i8mm"])
def test_codes_of_three_bits(name: str, group: int) -> None:
    """Steps of one to eight quads of them."""
    check(f"cb3-g{group}", 2 if name == "arm-i8mm" else 1, 37, 2 * group + 4, NAMED[name])


@pytest.mark.slow
@pytest.mark.parametrize("size", [(1, 1, 4), (5, 131, 193), (9, 33, 1031), (37, 50, 67)], ids=str)
@pytest.mark.parametrize("text", DENSE + STRIPS)
@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512", "arm", "arm-i8mm"])
def test_sizes_and_targets(name: str, text: str, size: tuple[int, int, int]) -> None:
    target = NAMED[name]
    check(text, *size, target, share=0.3, act="relu")


@pytest.mark.parametrize("text", ["cb4-g32", "int4-g32", "uint4-g32", "int8", "cb2"])
def test_activations_in_groups(text: str) -> None:
    check(text, 2, 50, 160, host_target(), x_group=32)


@pytest.mark.parametrize("text", ["cb4-g32", "int8", "uint8", "s16x1@50-cb4-g32"])
def test_arm(text: str) -> None:
    check(text, 2, 37, 96, NAMED["arm"])


@pytest.mark.parametrize(
    ("text", "m", "k"),
    [
        ("cb4-g32", 5, 96),
        ("s16x1@50-cb4-g32", 3, 96),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("cb4", 11, 96),  # eight rows at once, then three
                ("uint8", 7, 200),
                ("int8-g8", 2, 40),
                ("int4-g40", 9, 120),  # rows of odd eights
                ("cb4-g32", 40, 64),
                ("s32x1@60-ternary", 5, 96),
                ("vq2d4", 9, 96),
                ("vq2d8-g32", 3, 96),
            )
        ),
    ],
)
def test_pairs_of_rows(text: str, m: int, k: int) -> None:
    """smmla."""
    check(text, m, 37, k, NAMED["arm-i8mm"])


def test_what_is_paired() -> None:
    def paired(text: str, m: int, name: str, k: int = 96) -> bool:
        weight = unpack(encode(np.ones((8, k), np.float32), Scheme.parse(text)))
        return bool(byte_weights.pack(weight, NAMED[name], 0, "w", m).params["paired"])

    assert paired("cb4-g32", 2, "arm-i8mm")
    assert not paired("cb4-g32", 1, "arm-i8mm")
    assert not paired("int8-g4", 2, "arm-i8mm")
    assert not paired("int8-g12", 2, "arm-i8mm")
    assert not paired("cb4-g32", 2, "arm")
    assert not paired("cb4-g32", 2, "x86-avx512vnni")


@pytest.mark.parametrize(
    ("text", "m"),
    [
        ("cb4-g32", 3),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ("int8", 3),
                ("uint8", 1),
                ("int4-t", 13),
                ("s16x1@50-cb4-g32", 3),
                ("vq2d4", 5),
                ("cb4-g32", 40),
            )
        ),
    ],
)
@pytest.mark.parametrize("name", ["x86-avxvnni", "x86-avx512vnni", "x86-avx512vbmi2"])
def test_vnni(name: str, text: str, m: int) -> None:
    """Where the machine has no VNNI, the instruction's definition stands in for it."""
    target = NAMED[name]
    check(text, m, 37, 200, target)


@pytest.mark.parametrize("m", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.1, 1.0])
def test_densities_of_strips(m: int, share: float) -> None:
    check("s16x1@50-cb4-g32", m, 48, 200, host_target(), share=share)


@pytest.mark.parametrize("name", ["x86-avx512", "x86-avx512vbmi2"])
@pytest.mark.parametrize(
    ("text", "m", "k", "share"),
    [
        ("s16x1@50-cb4-g32", 1, 1, 1.0), ("s16x1@50-cb4-g32", 1, 607, 0.5), ("s16x1@50-int4-g8", 1, 513, 0.3),
        ("s16x1@50-cb4", 1, 519, 0.2), ("s16x1@50-cb4-g32", 2, 143, 0.5), ("s16x1@50-ternary", 5, 129, 1.0),
        ("s16x1@50-cb4-g64", 1, 640, 0.9),
    ],
)  # fmt: skip
def test_strips_packed_by_a_mask(name: str, text: str, m: int, k: int, share: float) -> None:
    """Whole steps of 64 (16) inputs and the words behind them; `vnni.py` stands in where the machine lacks the instruction."""
    if "avx512" not in host_target().features:
        pytest.skip("this machine has no AVX-512")
    check(text, m, 50, k, NAMED[name], share=share)


@pytest.mark.parametrize("text", STRIPS)
@pytest.mark.parametrize(
    ("name", "m", "k"), [("x86-avx2", 1, 193), ("x86-avx2", 7, 64), ("arm", 1, 96), ("arm-i8mm", 5, 131)]
)
def test_strips_that_list_their_inputs(name: str, text: str, m: int, k: int) -> None:
    check(text, m, 50, k, NAMED[name], share=0.08)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.sampled_from(DENSE + STRIPS), st.integers(1, 9), st.integers(1, 130), st.integers(1, 60), st.floats(0, 1))
@pytest.mark.slow
def test_random_shapes(text: str, m: int, n: int, quads: int, share: float) -> None:
    check(text, m, n, 4 * quads, host_target(), share=share)


def test_largest_products_do_not_overflow() -> None:
    """Every product at its limit, in every bit width."""
    for text in ("int8", "int4", "int2", "uint8", "cb4", "ternary", "s16x1@50-cb4", "s16x1@50-int4"):
        scheme, target = Scheme.parse(text), host_target()
        signs = np.where(np.arange(4096) < 2048, -1, 1)
        matrix = np.broadcast_to(signs, (32, 4096)).astype(np.float32)
        mask = None if scheme.is_dense else np.ones((32, 4096), bool)
        weight = encode(matrix, scheme, mask=mask)
        packed = byte_weights.pack(unpack(weight), target, 0, "w")
        ins = [signs.astype(np.float32).reshape(1, -1), *(a for _, a in packed.arrays)]
        p = {"m": 1, "w": packed.params, "x_group": 0, "bias": False, "residual": False, "act": "", "act_params": []}
        if gemv_inputs.looks_up_bits(p, target):
            ins.append(gemv_inputs.pack_table(p, target))
        (out,) = run_kernel("gemv", p, ins, target=target)
        wanted = (signs * rounded(weight).astype(np.float64)).sum(axis=1)
        np.testing.assert_allclose(out, wanted, rtol=1e-6, err_msg=text)


def joined_product(text: str, matrix: Array, x: Array, x_group: int, target: Target) -> tuple[Array, Array, Array]:
    """(what the kernel computes, what is wanted, `limits`) of a product whose quads are summed in 16 bits."""
    weight = encode(matrix.astype(np.float32), Scheme.parse(text))
    packed = byte_weights.pack(unpack(weight), target, x_group, "w", len(x))
    p = {
        "m": len(x),
        "w": packed.params,
        "x_group": x_group,
        "bias": False,
        "residual": False,
        "act": "",
        "act_params": [],
    }
    assert joined.applies(p, target)
    limits = joined.limits(unpack(weight), packed.params) if joined.asks(p, target) else np.zeros(0, np.int16)
    ins = [x, *(a for _, a in packed.arrays), *([limits] if len(limits) else [])]
    (out,) = run_kernel("gemv", p, ins, target=target)
    return out.reshape(len(x), -1), int8.quantised(x, x_group).astype(np.float64) @ rounded(weight).T, limits


@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512"])
@pytest.mark.parametrize("x_group", [0, 32])
@pytest.mark.parametrize("size", [65, 66, 127])
def test_sums_in_16_bits_at_their_limit(name: str, x_group: int, size: int) -> None:
    """Eight inputs whose norm is just what 16 bits hold against the largest weights, just more, and far more; sums as large as that."""
    m, n, k = 9, 40, 96
    rng = np.random.default_rng(5)
    inputs = np.full((k // 16, 4, 2, 2), size)  # sixteen inputs, quad, lane, input
    inputs[:, :, 1] = 50  # the other lane has the largest input of a group
    inputs[:, 0, 1, 0] = 127
    signs = rng.choice([-1, 1], k)
    signs[:32] = 1
    x = np.zeros((m, k), np.float32)
    x[:] = inputs.reshape(k) * signs
    x[1::2] *= -1
    x[2, :] = rng.integers(-9, 9, k)  # a small row between large ones
    x[:, -1] = 127
    matrix = np.broadcast_to(signs, (n, k)) * np.where(np.arange(n) % 2, 1, -1)[:, None]
    got, wanted, limits = joined_product("cb4-g32", matrix, x, x_group, NAMED[name])
    assert set(limits) == {32767**2 // (4 * 8 * int8.TABLE_MAX**2)}
    assert (4 * -(-2 * size**2 // 4) <= limits[0]) == (size <= 65)
    np.testing.assert_allclose(got, wanted, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("name", ["x86-avx2", pytest.param("x86-avx512", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("text", "x_group"),
    [("cb4-g32", 32), ("cb4-g32", 0), ("cb4.r64-g32", 32), ("cb3.i64-g32", 32), ("cb2-g64", 64), ("cb4-g16", 16), ("cb4-c", 0),
     ("cb4", 32), ("cb1-g32", 32), ("vq2d4-g32", 32), ("vq2d4", 0)],
)  # fmt: skip
def test_sums_in_16_bits_of_large_and_small_steps(name: str, text: str, x_group: int) -> None:
    """Steps that exceed the limit beside some that do not, in rows that are multiplied together; no whole number of anything."""
    rng = np.random.default_rng()
    m, n, k = int(rng.integers(5, 12)), int(rng.integers(1, 90)), 64 * int(rng.integers(1, 4))
    if not x_group:
        k += 4 * int(rng.integers(16))
    matrix = rng.normal(size=(n, k)) * (rng.random((n, k)) < 0.9)
    largest = rng.random((m, -(-k // 32))).repeat(32, axis=1)[:, :k] < 0.3  # steps in which every input is as large
    x = np.where(largest, rng.choice([-1.0, 1.0], (m, k)), rng.normal(size=(m, k)))
    x[rng.integers(m)] = 0
    got, wanted, _ = joined_product(text, matrix, x.astype(np.float32), x_group, NAMED[name])
    assert np.abs(got - wanted).max() <= 2e-6 * max(1.0, np.abs(wanted).max())


@pytest.mark.parametrize("name", ["x86-avx2", "x86-avx512"])
@pytest.mark.parametrize(
    ("text", "x_group"),
    [
        ("int2-g32", 32),
        ("int3-g64", 64),
        ("int4", 0),
        ("int4-g16", 16),
        ("uint4-g32", 32),
        ("uint4-g64", 0),
        ("int5-g32", 32),
        ("uint5", 0),
    ],
)
def test_sums_of_codes_in_16_bits(name: str, text: str, x_group: int) -> None:
    """All inputs at their largest with the largest codes, in sums of as many quads as fit; a random row beside them."""
    rng = np.random.default_rng()
    m, n, k = int(rng.integers(5, 12)), int(rng.integers(1, 90)), 64 * int(rng.integers(1, 4))
    if not x_group and "-g" not in text:
        k += 4 * int(rng.integers(16))
    x = np.broadcast_to(rng.choice([-1.0, 1.0], (m, 1)), (m, k)).astype(np.float32)
    x = np.concatenate([x, rng.normal(size=(1, k)).astype(np.float32)])
    matrix = np.ones((n, k))
    matrix[:, ::31] = 0  # what unsigned codes have as their smallest
    got, wanted, limits = joined_product(text, matrix, x, x_group, NAMED[name])
    assert not len(limits)
    assert np.abs(got - wanted).max() <= 2e-6 * np.abs(wanted).max()


def model(text: str, m: int, n: int, k: int, activations: str, share: float = 0.5) -> tuple[ir.Model, dict[str, Array]]:
    """One sparsec::MatMul with bias and residual."""
    rng = np.random.default_rng([m, n, k])
    scheme = Scheme.parse(text)
    weight = encode(rng.normal(size=(n, k)).astype(np.float32), scheme, mask=keep_mask(scheme, n, k, rng, share))
    feed = {"x": rng.normal(size=(m, k)).astype(np.float32), "r": rng.normal(size=(m, n)).astype(np.float32)}
    bias = constant("bias", rng.normal(size=n).astype(np.float32))

    def make(values: dict[str, ir.Value]) -> Any:
        inputs = ops.weight_inputs(weight, "w")
        return ops.matmul(
            values["x"], inputs, bias=bias, residual=values["r"], activation="silu", activations=activations
        )

    made = build(make, feed, (m, n))
    if bias.name not in made.graph.initializers:
        made.graph.register_initializer(bias)
    return made, feed


@pytest.mark.parametrize(
    "target",
    [host_target(), NAMED["arm"], pytest.param(NAMED["arm-i8mm"], marks=pytest.mark.slow), NAMED["arm-v8.0"]],
    ids=lambda t: f"{t.name}-{t.arch}",
)
@pytest.mark.parametrize("activations", ["int8", "int8-g32"])
@pytest.mark.parametrize(
    "text",
    [
        "int4-g32",
        "cb4",
        "s50-cb4-g32",
        "s2:4-int8",
        "s16x1@50-cb4-g32",
        "s4x4@50-int8",
        "uint8",
        "vq2d4",
        "vq2d8-g32",
        "vq3d4.q8",
    ],
)
def test_node(text: str, activations: str, target: Target) -> None:
    """With the fused kernel or, where it refuses, by rounding first: the operator's body in onnxruntime decides."""
    made, feed = model(text, 3, 45, 96, activations)
    (wanted,) = reference(made, feed)
    (got,) = lower_and_run(made, feed, target)
    assert np.abs(got - wanted).max() <= 3e-6 * np.abs(wanted).max()


def test_refuses_what_does_not_fit() -> None:
    made, _ = model("s4x4@50-int8", 3, 45, 96, "int8")
    assert any("no strips" in reason for reason in refusals(made))
    made, _ = model("s16x1@50-int8", 3, 45, 96, "int8")
    assert any("at most 4 bits" in reason for reason in refusals(made))


def test_signature_counts_the_rounding() -> None:
    """Its workspace holds the rounded rows."""
    weight = unpack(encode(np.ones((32, 64), np.float32), Scheme.parse("int4-g32")))
    packed = byte_weights.pack(weight, host_target(), 0, "w")
    p = {"m": 3, "w": packed.params, "x_group": 0, "bias": False, "residual": False, "act": "", "act_params": []}
    work = {a.name: a.size for a in gemv.signature(p, host_target()).args if a.role == "work"}
    assert work["xq"] >= 3 * 64
