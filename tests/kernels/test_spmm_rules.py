"""Sparse convolutions and linear layers lowered as nodes: geometries against onnxruntime, and what is refused."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec import ops
from sparsec.codegen.bundle import write_bundle
from sparsec.codegen.context import Lowering
from sparsec.codegen.kernels import spmm_rules
from sparsec.codegen.kernels.spmm_rules import dense_wins, lower_sparse_matmul, lower_sparse_rows
from sparsec.codegen.lower import lower
from sparsec.formats import Scheme, encode, unpack
from sparsec.op_view import view
from sparsec.target import NAMED, Target, host_target
from tests.kernels.programs import lower_and_run, reference
from tests.kernels.test_conv import build, check_conv, constant
from tests.kernels.test_decode import keep_mask

Array = np.ndarray[Any, Any]


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small products are worth it here."""
    monkeypatch.setattr(spmm_rules, "dense_wins", lambda *_: None)


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("scheme", ["s75", "s2x1@75-int8"])
def test_convolutions(scheme: str) -> None:
    check_conv(scheme, (1, 6, 17, 19), 5, (3, 3), pads=[1, 1, 1, 1])
    check_conv(scheme, (2, 7, 9, 8), 33, (1, 1), residual=True, act="relu")
    check_conv(scheme, (1, 9, 15, 14), 12, (3, 3), pads=[1, 1, 1, 1], strides=[2, 2], residual=True, act="relu6")


@pytest.mark.usefixtures("always")
def test_geometries() -> None:
    check_conv("s75", (1, 4, 33, 37), 6, (5, 2), strides=[2, 3], pads=[2, 0, 1, 3])
    check_conv("s75", (1, 4, 12, 12), 6, (3, 3), dilations=[2, 3], pads=[2, 3, 2, 3])
    check_conv("s75", (1, 8, 10, 10), 12, (1, 1), strides=[2, 2])
    check_conv("s75", (1, 3, 40, 41), 10, (7, 7), strides=[2, 2], pads=[3, 3, 3, 3])
    check_conv("s75", (1, 16, 7, 7), 8, (3, 3), pads=[1, 1, 1, 1])
    check_conv("s75", (1, 5, 6, 5), 8, (3, 3), pads=[4, 4, 4, 4])
    check_conv("s75", (2, 5, 137), 11, (7,), strides=[3], pads=[2, 4])
    check_conv("s75", (1, 5, 37), 11, (3,), dilations=[2])


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("target", [host_target(), NAMED["x86-avx2"], NAMED["arm"]], ids=lambda t: f"{t.name}-{t.arch}")
@pytest.mark.parametrize("scheme", ["s75", "s2x1@75-int8", "s4x4@60-cb4-g8", "s2:4-uint4", "s3x2@50-cb3.i4"])
def test_groups(scheme: str, target: Target) -> None:
    check_conv(scheme, (1, 6, 17, 19), 10, (3, 3), pads=[1, 1, 1, 1], group=2, target=target)
    check_conv(scheme, (2, 21, 9, 8), 33, (1, 1), residual=True, act="relu", group=3, target=target)
    check_conv(
        scheme, (3, 16, 11, 13), 24, (3, 2), pads=[0, 1, 2, 1], strides=[2, 3], group=8, act="relu6", target=target
    )


@pytest.mark.usefixtures("always")
def test_geometries_of_groups() -> None:
    check_conv("s75", (1, 8, 12, 12), 6, (3, 3), dilations=[2, 3], pads=[2, 3, 2, 3], group=2)
    check_conv("s75", (2, 6, 137), 12, (7,), strides=[3], pads=[2, 4], group=3)
    check_conv("s75-int4", (1, 16, 10, 10), 8, (1, 1), strides=[2, 2], group=8)
    check_conv("s75-int8-g4", (1, 4, 23, 9), 300, (3, 3), group=2, residual=True)


@pytest.mark.parametrize("scheme", ["s90", "s90-int8", "s2x1@90-cb4"])
def test_groups_skip_zeros(scheme: str) -> None:
    """No dense panel is decoded, and every group reads its own channels only."""
    rng = np.random.default_rng(7)
    parsed = Scheme.parse(scheme)
    weight = encode(rng.normal(size=(96, 288)).astype(np.float32), parsed, mask=keep_mask(parsed, 96, 288, rng, 0.1))
    feed = {"x": rng.normal(size=(1, 96, 14, 15)).astype(np.float32)}

    def make(values: dict[str, ir.Value]) -> Any:
        return ops.conv(values["x"], ops.weight_inputs(weight, "w"), kernel_shape=(3, 3), pads=(1, 1, 1, 1), group=3)

    made = build(make, feed, (1, 96, 14, 15))
    steps = lower(made, host_target(), "groups").steps
    assert [step.spec.family for step in steps] == ["spmm"]
    assert steps[0].spec.params["groups"] == 3
    (want,) = reference(made, feed)
    (got,) = lower_and_run(made, feed)
    assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


def _linear(scheme: str, shape: tuple[int, ...], n: int) -> tuple[ir.Model, dict[str, Array]]:
    rng = np.random.default_rng([*shape, n])
    parsed = Scheme.parse(scheme)
    weight = rng.normal(size=(n, shape[-1])).astype(np.float32)
    encoded = encode(weight, parsed, mask=keep_mask(parsed, n, shape[-1], rng, 0.3))
    bias = constant("bias", rng.normal(size=n).astype(np.float32))
    feed = {
        "x": rng.normal(size=shape).astype(np.float32),
        "r": rng.normal(size=(*shape[:-1], n)).astype(np.float32),
    }

    def make(values: dict[str, ir.Value]) -> Any:
        inputs = ops.weight_inputs(encoded, "w")
        return ops.matmul(values["x"], inputs, bias=bias, residual=values["r"], activation="gelu", name="linear")

    model = build(make, feed, (*shape[:-1], n))
    if bias.name not in model.graph.initializers:
        model.graph.register_initializer(bias)
    return model, feed


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("scheme", ["s70", "s16x1@70-cb4-g32", "s1:4-int8"])
def test_linear(scheme: str) -> None:
    model, feed = _linear(scheme, (2, 19, 37), 45)
    (want,) = reference(model, feed)
    (got,) = lower_and_run(model, feed)
    assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


def _asked(model: ir.Model, rule: Any) -> str:
    low = Lowering(model, host_target(), "asked")
    for value in model.graph.inputs:
        low.bind(value, low.temp(low.dtype(value), low.shape(value)))
    node = next(iter(model.graph))
    assert view(node).x is not None
    refusal = rule(node, low)
    return "" if refusal is None else str(refusal.reason)


def test_refusals_say_why() -> None:
    assert _asked(_linear("s70", (128, 150), 150)[0], lower_sparse_matmul) == ""
    assert "tokens" in _asked(_linear("s70", (1, 150), 150)[0], lower_sparse_matmul)
    assert "1 to 8" in _asked(_linear("s70", (9, 150), 150)[0], lower_sparse_rows)
    assert "vectors over them" in _asked(_linear("s70", (8, 150), 150)[0], lower_sparse_rows)
    assert "is dense" in _asked(_linear("int8", (1, 36), 45)[0], lower_sparse_rows)


@pytest.mark.parametrize("tokens", [1, 2, 3, 8])
@pytest.mark.parametrize("scheme", ["s70", "s90-cb4-g8", "s2:4-int8"])
def test_few_rows(scheme: str, tokens: int) -> None:
    """No product of sparse weights decodes them to dense panels, and each has bias, residual and activation."""
    model, feed = _linear(scheme, (tokens, 136), 133)
    steps = lower(model, host_target(), "few").steps
    # scales of groups are decoded one by one for spmm.py
    most = 3 if "-g" in scheme else 2
    assert [step.spec.family for step in steps] == ["spmv" if tokens <= most else "spmm"]
    (want,) = reference(model, feed)
    (got,) = lower_and_run(model, feed)
    assert np.abs(got - want).max() <= 3e-6 * np.abs(want).max()


def test_dense_rows_are_refused() -> None:
    assert "dense kernel is faster" in _asked(_linear("s9:10", (128, 150), 150)[0], lower_sparse_matmul)
    assert "is dense" in _asked(_linear("int8", (128, 36), 45)[0], lower_sparse_matmul)


@pytest.mark.parametrize("name", ["x86-avx512", "x86-avx2", "arm"])
def test_sparser_and_larger_products_are_worth_it(name: str) -> None:
    rng = np.random.default_rng(0)

    def refused(n: int, k: int, share: float, pixels: int) -> bool:
        scheme = Scheme.parse("s50")
        weight = encode(rng.normal(size=(n, k)).astype(np.float32), scheme, mask=rng.random((n, k)) < share)
        return dense_wins(unpack(weight), pixels, 1, NAMED[name]) is not None

    assert not refused(384, 384, 0.1, 128)
    assert refused(384, 384, 0.95, 1024)
    assert refused(8, 8, 0.3, 4096)  # moving activations costs more than all multiplications


@pytest.mark.skipif(
    host_target().arch == "x86_64" and shutil.which("qemu-aarch64") is None, reason="qemu-aarch64 is not installed"
)
@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("scheme", ["s70", "s4x1@70-cb4-g8", "s70-uint4"])
def test_linear_on_arm(scheme: str, tmp_path: Path) -> None:
    model, feed = _linear(scheme, (2, 19, 37), 45)
    (want,) = reference(model, feed)
    bundle = write_bundle(lower(model, NAMED["arm"], "sparse"), tmp_path / "sparse")
    for name, array in feed.items():
        np.save(tmp_path / f"{name}.npy", array)
    emulator = [] if host_target().arch == "aarch64" else ["qemu-aarch64"]
    inputs = [str(tmp_path / f"{name}.npy") for name in feed]
    subprocess.check_call([*emulator, str(bundle / "bin" / "sparse"), *inputs, str(tmp_path / "y.npy")])
    assert np.abs(np.load(tmp_path / "y.npy") - want).max() <= 3e-6 * np.abs(want).max()


def test_wide_windows_are_refused() -> None:
    """Their gathering code would be written out tap by tap."""
    rng = np.random.default_rng(5)
    weight = encode(rng.normal(size=(8, 100)).astype(np.float32), Scheme.parse("s90"), mask=rng.random((8, 100)) < 0.1)
    feed = {"x": rng.normal(size=(1, 1, 40, 40)).astype(np.float32)}

    def make(values: dict[str, ir.Value]) -> Any:
        return ops.conv(values["x"], ops.weight_inputs(weight, "w"), kernel_shape=(10, 10))

    assert "100 taps" in _asked(build(make, feed, (1, 8, 31, 31)), spmm_rules.lower_sparse_conv)
