"""What is added to a layer's outputs: how it is found, and that making up for its error pays."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from sparsec.passes.calibrate import groups
from sparsec.passes.calibrate.residual import added_to
from sparsec.passes.weights import Use
from tests.passes.calibrate.networks import choices, distance, image_network, samples, text_network, with_tensors
from tests.passes.calibrate.test_layers import run

WIDTH, HIDDEN = 12, 48


def residual_network(put_back: bool = False, seed: int = 0) -> ir.Model:
    """s = x W0, y = s + Relu(s W1) W2 + b; with `put_back` the outputs of W2 are in another order, which a Gather undoes."""
    rng = np.random.default_rng(seed)
    order = rng.permutation(WIDTH) if put_back else np.arange(WIDTH)
    lines = ["c = Add (v, b)", "g = Gather <axis = 2> (c, places)"] if put_back else ["g = Add (v, b)"]
    model = onnx.parser.parse_model(
        f"""<ir_version: 10, opset_import: ["" : 20]>
        net (float[1, 8, {WIDTH}] x) => (float[1, 8, {WIDTH}] y)
        {{
            s = MatMul (x, w0)
            h = MatMul (s, w1)
            r = Relu (h)
            v = MatMul (r, w2)
            {chr(10).join(lines)}
            y = Add (g, s)
        }}"""
    )
    tensors = {
        "w0": rng.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5,
        "w1": rng.standard_normal((WIDTH, HIDDEN)) / WIDTH**0.5,
        "w2": rng.standard_normal((HIDDEN, WIDTH))[:, order] / HIDDEN**0.5,
        "b": rng.standard_normal(WIDTH)[order],
    }
    if put_back:
        tensors["places"] = np.argsort(order).astype(np.int64)
    return with_tensors(model, tensors)


def uses_of(network: ir.Model) -> dict[str, Use]:
    return {choice.weight.name: choice.weight.uses[0] for choice in choices(network, "int8")}


@pytest.mark.parametrize(
    ("network", "reader", "added"),
    [(residual_network(), "w2", "s"), (image_network(), "w2", "r"), (text_network(), "wq", "k")],
)
def test_found_behind_biases(network: ir.Model, reader: str, added: str) -> None:
    found = added_to(uses_of(network)[reader])
    assert found is not None
    assert found.name == added
    assert found.order is None


def test_found_behind_a_gather() -> None:
    network = residual_network(put_back=True)
    found, places = added_to(uses_of(network)["w2"]), network.graph.initializers["places"].const_value
    assert found is not None
    assert found.order is not None
    assert places is not None
    assert np.array_equal(found.order[places.numpy()], np.arange(WIDTH))


def test_nothing_is_added() -> None:
    text, residual = uses_of(text_network()), uses_of(residual_network())
    assert added_to(text["wo"]) is None  # an output of the model
    assert added_to(residual["w0"]) is None  # read twice
    assert added_to(residual["w1"]) is None  # no Add behind it


@pytest.mark.parametrize("put_back", [False, True])
@pytest.mark.parametrize("scheme", ["int3", "cb2-c"])
def test_making_up_for_the_other_branch_beats_leaving_it(
    put_back: bool, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what W0 lost, the hidden layer still knows: W2 can give it back."""
    original, with_it, without = (residual_network(put_back) for _ in range(3))
    feeds, others = samples(original, 64), samples(original, 8, seed=9)
    run(with_it, scheme, feeds)
    monkeypatch.setattr(groups, "added_to", lambda use: None)
    run(without, scheme, feeds)
    assert distance(with_it, original, others) < 0.8 * distance(without, original, others)
