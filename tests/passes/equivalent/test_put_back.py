"""A Gather behind a product that puts reordered outputs back: as far behind as it can stand, and where it cannot be."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.equivalent.put_back import room_behind
from sparsec.passes.equivalent.steps import Refused
from sparsec.reference import Reference
from tests.passes.calibrate.networks import image_network, samples, text_network
from tests.passes.equivalent.networks import block, heads, made, mobile


def products(model: ir.Model) -> list[ir.Node]:
    constants = set(model.graph.initializers.values())
    return [node for node in model.graph if node.op_type in ("MatMul", "Gemm", "Conv") and node.inputs[1] in constants]


def difference(model: ir.Model, original: ir.Model) -> float:
    """The largest of any output."""
    ours, theirs = Reference(model), Reference(original)
    (feed,) = samples(original, 1)
    found, wanted = ours.run(feed), theirs.run(feed)
    assert list(found) == list(wanted)
    return max(float(np.abs(found[name] - wanted[name]).max()) for name in wanted)


@pytest.mark.parametrize("network", [mobile, block, heads, image_network, text_network])
def test_the_model_stays_as_it_is(network: Callable[[], ir.Model]) -> None:
    rng, model, refused, moved = np.random.default_rng(), network(), 0, 0
    for node in products(model):
        try:
            room = room_behind(node)
        except Refused:
            refused += 1
            continue
        weight = room.channels.touches[0].value
        assert weight is node.inputs[1]
        assert weight.const_value is not None
        before = weight.const_value.numpy()
        room.reorder(model, rng.permutation(room.channels.count))
        moved += not np.array_equal(before, weight.const_value.numpy())
    assert refused == {image_network: 1, mobile: 1}.get(network, 0)  # a grouped convolution, a depthwise one
    assert moved
    assert difference(model, network()) < 1e-4


def branches() -> ir.Model:
    return made(
        """net (float[2, 3, 5] x, float[2, 3, 8] z) => (float[2, 3, 8] y, float[2, 3, 8] u) {
            a = MatMul (x, w)
            b = Add (b0, a)
            c = Gelu (b)
            d = Mul (c, scale)
            y = Add (d, z)
            e = MatMul (x, v)
            u = Add (e, b0)
        }""",
        {"w": (5, 8), "v": (5, 8), "b0": (8,), "scale": (8,)},
    )


def test_it_stands_behind_bias_and_activation() -> None:
    model, original = branches(), branches()
    first, second = products(model)
    assert [room_behind(node).value.name for node in (first, second)] == ["d", "u"]
    order = np.array([3, 1, 0, 2, 7, 5, 4, 6])
    room_behind(first).reorder(model, order)
    room_behind(second).reorder(model, order[::-1])  # b0 belongs to both: each gets its own
    given = original.graph.initializers["b0"].const_value
    bias = list(model.graph)[1].inputs[0]
    assert given is not None
    assert bias is not None
    assert bias.const_value is not None
    np.testing.assert_array_equal(bias.const_value.numpy(), given.numpy()[order])
    kinds = [node.op_type for node in model.graph]
    assert kinds == ["MatMul", "Add", "Gelu", "Mul", "Gather", "Add", "MatMul", "Add", "Gather"]
    assert difference(model, original) < 1e-5


def test_a_bias_that_is_computed_stays_in_order() -> None:
    model = made("net (float[2, 5] x, float[2, 8] z) => (float[2, 8] y) { y = Gemm (x, w, z) }", {"w": (5, 8)})
    with pytest.raises(Refused, match="reads 'z', which is no constant"):
        room_behind(products(model)[0])
