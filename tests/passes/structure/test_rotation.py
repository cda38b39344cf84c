"""Rotations are exact, slices leave out what carries least, and norms lose their means without a trace."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.check import check_model
from sparsec.passes.opset import RaiseOpset
from sparsec.passes.structure.hidden import find_stream
from sparsec.passes.structure.rms import without_means
from sparsec.passes.structure.rotation import principal, turn
from sparsec.reference import Reference
from tests.passes.structure.networks import build, feeds, transformer
from tests.passes.test_restructure import error, shrink


def assert_same(model: ir.Model, other: ir.Model, tolerance: float = 2e-5) -> None:
    RaiseOpset()(other)
    check_model(other, "turn", static=True)
    for feed in feeds(model, 3, seed=4):
        wanted, found = Reference(model).run(feed), Reference(other).run(feed)
        for name, array in wanted.items():
            assert np.abs(found[name] - array).max() <= tolerance * max(1, np.abs(array).max())


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]


KINDS: list[dict[str, Any]] = [
    {"tied": False}, {"tied": True}, {"rms": True}, {"rms": True, "tied": False}, {"post": True}, {"post": True, "tied": False},
    {"post": True, "rms": True},
]  # fmt: skip


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_nothing_sliced_is_exact(kind: dict[str, Any]) -> None:
    model = transformer(3, **kind)
    small = model.clone()
    stream = find_stream(small)
    assert stream.why_not == ""
    assert len(stream.points) == 5
    rng = np.random.default_rng(0)
    bases = {p.value: np.linalg.qr(rng.standard_normal((12, 12)))[0] for p in stream.points}
    turn(small, stream, bases)
    assert "LayerNormalization" not in operators(small)
    assert_same(model, small)


@pytest.mark.parametrize("post", [False, True])
def test_a_layernorm_has_a_direction_too_many(post: bool) -> None:
    """Without the mean, eleven of twelve directions hold everything."""
    model = transformer(5, post=post, tied=False)
    samples = feeds(model, 30)
    made = shrink(model, samples, slice=1 / 12, compensate="none")
    (record,) = made.removed
    assert (record.kind, record.units, record.removed) == ("hidden width", 12, 1)
    assert_same(model, made.model)


def test_principal_directions() -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((400, 9)) * np.arange(1, 10)
    moment = x.T @ x / 400
    base = principal(moment, 4)
    assert np.allclose(base.T @ base, np.eye(4))
    kept = float(np.trace(base.T @ moment @ base))
    assert kept == pytest.approx(np.sort(np.linalg.eigvalsh(moment))[-4:].sum())
    for _ in range(20):
        other = np.linalg.qr(rng.standard_normal((9, 4)))[0]
        assert np.trace(other.T @ moment @ other) <= kept
    assert np.array_equal(base, principal(moment, 9)[:, :4])


@pytest.mark.parametrize("rms", [True, False])
def test_a_stream_of_low_rank_is_sliced_without_loss(rms: bool) -> None:
    """Whatever writes the stream writes a 5-dimensional space, in no axis' direction: half of the width goes exactly."""
    model = low_rank(rms=rms)
    samples, others = feeds(model, 40), feeds(model, 8, seed=3)
    sliced = shrink(model, samples, slice=0.5, compensate="none")
    assert error(sliced.model, model, others) < 1e-8
    # Magnitude takes rows and columns as they are; here of the feed-forward layers, which have the same share of weights.
    cut = shrink(model, samples, channels=0.5, score="magnitude", compensate="none")
    assert error(cut.model, model, others) > 1e4 * error(sliced.model, model, others)


def low_rank(*, rms: bool) -> ir.Model:
    model = transformer(7, rms=rms, tied=False)
    rng = np.random.default_rng(7)
    space = np.linalg.qr(rng.standard_normal((12, 5)))[0]
    onto = space @ space.T
    for name in ("table", "place", "ow0", "ob0", "dw0", "db0", "ow1", "ob1", "dw1", "db1"):
        value = model.graph.initializers[name]
        assert value.const_value is not None
        value.const_value = ir.tensor((value.const_value.numpy() @ onto).astype(np.float32), name=name)
    return model


@pytest.mark.parametrize("post", [False, True])
def test_layers_and_turns_are_fitted_again(post: bool) -> None:
    model = transformer(2, post=post, tied=False)
    samples, others = feeds(model, 60), feeds(model, 12, seed=5)
    errors = [
        error(shrink(model, samples, slice=0.25, compensate=how).model, model, others) for how in ("none", "weights")
    ]
    assert errors[1] < 0.9 * errors[0]


def test_tied_tables_stay_tied() -> None:
    made = shrink(transformer(), feeds(transformer(), 8), slice=0.25)
    table = made.model.graph.initializers["table"].const_value
    assert table is not None
    assert np.array_equal(table.numpy(), transformer().graph.initializers["table"].const_value.numpy())  # type: ignore[union-attr]


def test_pre_norm_becomes_rms_norm() -> None:
    model = transformer(tied=False)
    made = shrink(model, rms_norm=True)
    assert operators(made.model).count("RMSNormalization") == 5
    assert "LayerNormalization" not in operators(made.model)
    assert {r.reason for r in made.removed} == {""}
    assert_same(model, made.model)


def test_norms_that_cannot_lose_the_mean_are_named() -> None:
    model = transformer(post=True, tied=False)
    small = model.clone()
    left, layers = without_means(small, find_stream(small))
    # Only the first norm is written by weights alone.
    assert len(left) == 4
    assert layers == []
    assert operators(small).count("RMSNormalization") == 1
    assert all("result of a norm" in reason for reason in left.values())
    assert_same(model, small)
    tied = shrink(transformer(), rms_norm=True)
    assert {r.removed for r in tied.removed} == {0}
    assert all("other readers" in r.reason for r in tied.removed)


def test_streams_that_cannot_be_turned_are_named() -> None:
    text = """(float[1, 4, 6] x) => (float[1, 4, 6] y, float[1, 4, 6] h)
        {
            a = MatMul (x, w0)
            h = Add (a, b0)
            n = LayerNormalization <axis = -1> (h, g, b)
            y = MatMul (n, w1)
        }"""
    model = build(text, {"w0": (6, 6), "b0": (6,), "g": (6,), "b": (6,), "w1": (6, 6)})
    made = shrink(model, feeds(model, 4), slice="50%")
    assert [(r.removed, r.reason) for r in made.removed] == [(0, "'h' is an output of the model")]
    none = build("(float[1, 6] x) => (float[1, 6] y)\n{\ny = MatMul (x, w)\n}", {"w": (6, 6)})
    made = shrink(none, feeds(none, 4), slice="50%")
    assert "no LayerNormalization" in made.removed[0].reason
