"""Layers fitted again: exact where the smaller model can do it, no worse than before where it cannot."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from sparsec.passes.check import check_model
from sparsec.passes.structure.groups import couple
from sparsec.passes.structure.refit import refit
from sparsec.passes.structure.remove import remove
from sparsec.reference import Reference
from tests.passes.structure.networks import Array, build, family, feeds, residual


def _error(model: ir.Model, before: ir.Model, samples: list[dict[str, Array]]) -> float:
    one, other = Reference(model), Reference(before)
    return float(np.mean([np.square(one.run(s)["y"] - other.run(s)["y"]).mean() for s in samples]))


def _without(model: ir.Model, name: str, units: list[int]) -> tuple[ir.Model, dict[str, Array]]:
    small = model.clone()
    coupling = couple(small)
    one = family(coupling, name)
    gone = np.array(units)
    wanted = {
        node: np.eye(len(kept), dtype=np.float32)[:, kept]
        for tied in one.tied
        for node, kept in tied.outputs_left(gone)
    }
    remove(small, coupling, [(one, gone)])
    return small, wanted


def test_copies_of_a_channel_are_not_missed() -> None:
    """Channels that others span go without a trace: least squares finds the combination."""
    model = build(
        "(float[1, 6, 8] x) => (float[1, 6, 5] y)\n{\na = MatMul (x, w0)\nb = Add (a, b0)\ny = MatMul (b, w1)\n}",
        {"w0": (8, 6), "b0": (6,), "w1": (6, 5)},
    )
    value = model.graph.initializers["w0"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[:, 4] = array[:, 0] - 2 * array[:, 1]
    value.const_value = ir.tensor(array, name="w0")
    small, wanted = _without(model, "w0", [4])
    samples = feeds(model, 8)
    bare = _error(small, model, samples)
    refit(small, model.clone(), wanted, {}, samples, weights=True, damping=0.0, mask="", threads=1)
    check_model(small, "refit", static=True)
    assert _error(small, model, feeds(model, 4, seed=9)) < 1e-8 * bare


def test_weights_beat_biases_beat_nothing() -> None:
    model = residual()
    samples, others = feeds(model, 100), feeds(model, 20, seed=5)
    errors = {}
    for what in ("none", "bias", "weights"):
        small, wanted = _without(model, "w0", [1, 4])
        if what != "none":
            left = refit(
                small, model.clone(), wanted, {}, samples, weights=what == "weights", damping=0.01, mask="", threads=1
            )
            assert left == {}
        errors[what] = _error(small, model, others)
    assert errors["weights"] < errors["bias"] < errors["none"]


def test_shared_weights_are_left_and_named() -> None:
    model = build(
        """(float[1, 4, 4] x) => (float[1, 4, 3] y)
        {
            a = MatMul (x, w0)
            b = MatMul (a, w1)
            c = Relu (b)
            d = MatMul (c, w2)
            e = MatMul (d, w2)
            y = MatMul (e, w3)
        }""",
        {"w0": (4, 6), "w1": (6, 5), "w2": (5, 5), "w3": (5, 3)},
    )
    small, wanted = _without(model, "w0", [1])
    left = refit(small, model.clone(), wanted, {}, feeds(model, 4), weights=True, damping=0.01, mask="", threads=1)
    assert list(left) == ["w2"]
    assert "2 nodes" in left["w2"]
