"""A bias of its own for every layer: the graph computes the same before, and the shifted outputs after a change."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.calibrate.biases import add_to_bias, own_bias
from sparsec.reference import Reference
from tests.passes.calibrate.networks import choices, image_network, samples, text_network


def outputs(model: ir.Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    return next(iter(Reference(model).run(feed).values()))


@pytest.mark.parametrize("network", [image_network, text_network])
def test_graphs_stay_what_they_are(network: object) -> None:
    model: ir.Model = network()  # type: ignore[operator]
    feed = samples(model, 1)[0]
    before, names = outputs(model, feed), [o.name for o in model.graph.outputs]
    made = [own_bias(model, choice.weight.uses[0], choice.weight.rows) for choice in choices(model, "int8")]
    assert len(set(made)) == len(made)
    np.testing.assert_allclose(outputs(model, feed), before, rtol=1e-6, atol=1e-6)
    assert [o.name for o in model.graph.outputs] == names
    assert all(len(list(model.graph.initializers[name].uses())) == 1 for name in made)


@pytest.mark.parametrize(("network", "index"), [(image_network, 2), (text_network, 3)])
def test_the_last_layer_shifts_the_output(network: object, index: int) -> None:
    model: ir.Model = network()  # type: ignore[operator]
    feed = samples(model, 1)[0]
    before, weight = outputs(model, feed), choices(model, "int8")[index].weight
    shift = np.linspace(-1, 2, weight.rows, dtype=np.float32)
    add_to_bias(model, own_bias(model, weight.uses[0], weight.rows), shift)
    np.testing.assert_allclose(outputs(model, feed), before + shift, rtol=1e-5, atol=1e-5)


def test_a_shift_of_a_convolution_without_bias_is_per_channel() -> None:
    model = image_network()
    feed = samples(model, 1)[0]
    weight = choices(model, "int8")[1].weight
    inner = next(node for node in model.graph if node.name == "Conv2").outputs[0]
    model.graph.outputs.append(inner)
    before = Reference(model).run(feed)["c"]
    shift = np.linspace(-1, 2, 9, dtype=np.float32)
    add_to_bias(model, own_bias(model, weight.uses[0], 9), shift)
    after = Reference(model).run(feed)["c"]
    np.testing.assert_allclose(after - before, np.broadcast_to(shift[:, None, None], (1, 9, 4, 7)), atol=1e-5)
