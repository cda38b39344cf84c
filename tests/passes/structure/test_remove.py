"""What is left after removal computes what the original computes with the removed weights set to zero."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.check import check_model
from sparsec.passes.structure.groups import couple
from sparsec.passes.structure.remove import remove
from sparsec.reference import Reference
from tests.passes.structure.networks import branching, build, family, feeds, masked, residual, transformer

NETWORKS: dict[str, Callable[[], ir.Model]] = {
    "residual": residual,
    "branching": branching,
    "pre-norm, tied": transformer,
    "post-norm": lambda: transformer(post=True, tied=False),
}


def same_as_masked(model: ir.Model, share: float, seed: int) -> tuple[int, int]:
    """Removes a share of every family; returns the elements of all constants before and after."""
    coupling = couple(model)
    rng = np.random.default_rng(seed)
    gone = [(f, np.sort(rng.permutation(f.size)[: int(f.size * share)])) for f in coupling.families]
    wanted = masked(model, gone)
    before = elements(model)
    remove(model, coupling, gone)
    check_model(model, "remove", static=True)
    for feed in feeds(model, 2, seed):
        expected, found = Reference(wanted).run(feed), Reference(model).run(feed)
        for name, array in expected.items():
            assert np.abs(found[name] - array).max() <= 2e-6 * max(1, np.abs(array).max())
    return before, elements(model)


def elements(model: ir.Model) -> int:
    return sum(v.const_value.size for v in model.graph.initializers.values() if v.const_value is not None)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("share", [0.2, 0.5, 0.9])
def test_removal_equals_masking(name: str, share: float) -> None:
    before, after = same_as_masked(NETWORKS[name](), share, seed=int(100 * share))
    assert after < before


def test_a_residual_stream_goes_together() -> None:
    coupling = couple(residual())
    stream = family(coupling, "w0")
    assert [(t.slot.value.name, t.axis) for t in stream.tied] == [
        ("w0", 0), ("b0", 0), ("w1", 1), ("w2", 0), ("b2", 0), ("w3", 1), ("w4", 0), ("b4", 0), ("w5", 1),
    ]  # fmt: skip
    assert stream.size == 7
    # The shortcut's 4 added channels are the last convolution's alone, each read by 20 columns of the Gemm.
    padded = family(coupling, "w4")
    assert padded.size == 4
    (reader,) = padded.readers
    assert all(np.count_nonzero(padded.read_units[0] == unit) == 20 for unit in range(4))
    assert reader.node.op_type == "Gemm"
    assert "output" in coupling.stuck["w5"]


def test_groups_of_a_convolution_stay_equal() -> None:
    coupling = couple(branching())
    stem = family(coupling, "w0")  # depthwise, one and two outputs each
    assert stem.size == 9
    assert [np.bincount(t.units).tolist() for t in stem.tied if t.slot.value.name == "we"] == [[2] * 9]
    assert family(coupling, "wh").size == 3  # one place in each of 3 groups
    # 4 places, and the Split's halves that are multiplied tie places 0 and 2, 1 and 3.
    assert family(coupling, "wg").size == 2


def test_heads_go_as_wholes() -> None:
    coupling = couple(transformer())
    heads = [f for f in coupling.families if f.heads]
    assert [(f.name, f.size) for f in heads] == [("qw0", 3), ("qw1", 3)]
    assert {t.slot.value.name for t in heads[0].tied} == {"qw0", "qb0", "kw0", "kb0", "vw0", "vb0", "ow0"}
    gated = family(coupling, "uw0")
    assert {t.slot.value.name for t in gated.tied} == {"uw0", "gw0", "dw0"}
    assert gated.size == 13
    assert "normalises" in coupling.stuck["ow0"]


def test_what_cannot_be_followed_is_named() -> None:
    model = build(
        """(float[1, 6] x) => (float[1, 5] y, float[1, 8] z)
        {
            a = MatMul (x, w0)
            c = CumSum (a, one)
            y = MatMul (c, w1)
            z = MatMul (x, w2)
        }""",
        {"w0": (6, 7), "w1": (7, 5), "w2": (6, 8)},
        constants={"one": 1},
    )
    coupling = couple(model)
    assert coupling.families == []
    assert "CumSum" in coupling.stuck["w0"]
    assert "'y' is an output" in coupling.stuck["w1"]
    assert "'z' is an output" in coupling.stuck["w2"]


def test_a_shared_weight_loses_the_same_everywhere() -> None:
    model = build(
        """(float[1, 4] x) => (float[1, 3] y)
        {
            a = MatMul (x, w0)
            b = Tanh (a)
            c = MatMul (b, w1)
            d = Relu (c)
            e = MatMul (d, w1)
            y = MatMul (e, w2)
        }""",
        {"w0": (4, 6), "w1": (6, 6), "w2": (6, 3)},
    )
    coupling = couple(model)
    assert [f.size for f in coupling.families] == [6]
    same_as_masked(model, 0.5, 0)


def test_a_vector_that_two_layers_read_is_split() -> None:
    model = build(
        """(float[1, 4] x) => (float[1, 3] y, float[1, 3] z)
        {
            a0 = MatMul (x, w0)
            a = Add (a0, b)
            y = MatMul (a, w1)
            c0 = MatMul (x, w2)
            c = Add (c0, b)
            z = MatMul (c, w3)
        }""",
        {"w0": (4, 6), "w1": (6, 3), "w2": (4, 6), "w3": (6, 3), "b": (6,)},
    )
    coupling = couple(model)
    assert [f.size for f in coupling.families] == [6, 6]
    first, second = coupling.families
    wanted = model.clone()
    for name, axis, units in (("w1", 0, [0, 1]), ("w3", 0, [3])):
        value = wanted.graph.initializers[name]
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        np.moveaxis(array, axis, 0)[units] = 0
        value.const_value = ir.tensor(array, name=name)
    remove(model, coupling, [(first, np.array([0, 1])), (second, np.array([3]))])
    check_model(model, "remove", static=True)
    (feed,) = feeds(model, 1)
    expected, found = Reference(wanted).run(feed), Reference(model).run(feed)
    assert all(np.allclose(expected[name], found[name], atol=1e-6) for name in expected)
