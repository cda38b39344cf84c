"""Channels followed through a graph: whatever can be reordered or scaled leaves the outputs as they were."""

from __future__ import annotations

import re
from collections.abc import Callable

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.equivalent.channels import Channels, channels_of, input_space, output_space
from sparsec.passes.equivalent.steps import Kind, Refused
from sparsec.reference import Reference
from tests.passes.calibrate.networks import chain, samples
from tests.passes.equivalent.networks import block, heads, made, mobile

LINEAR = ("MatMul", "Gemm", "Conv", "Gather")


def linear(model: ir.Model) -> list[ir.Node]:
    return [
        node
        for node in model.graph
        if node.op_type in LINEAR and any(v is not None and v.is_initializer() for v in node.inputs)
    ]


def follow(model: ir.Model, node: ir.Node, side: str, kind: Kind) -> Channels | str:
    """Channels on one side of a linear node, or why they end."""
    try:
        return channels_of(model, *(input_space if side == "in" else output_space)(node), kind)
    except Refused as why:
        return str(why)


def followed(network: Callable[[], ir.Model], kind: Kind) -> set[str]:
    """Names of the values whose channels can change."""
    model, found = network(), set()
    for node in linear(model):
        for side in ("in", "out"):
            if node.op_type == "Gather" and side == "in":
                continue
            if isinstance(follow(model, node, side, kind), Channels):
                value = node.inputs[0] if side == "in" else node.outputs[0]
                assert value is not None
                found.add(value.name or "")
    return found


STREAM = {"h", "o", "t", "k"}
WANTED: list[tuple[Callable[[], ir.Model], Kind, set[str]]] = [
    (mobile, "order", {"a", "r1", "d", "r2", "c", "f"}),
    (mobile, "scale", {"a", "r1", "d", "r2", "c", "f"}),
    (block, "order", {"g", "u", "m", "e", "z", *STREAM, "n1", "n2"}),
    (block, "scale", {"n1", "u", "m", "n2"}),
    (heads, "order", {"a"}),
    (heads, "scale", {"a"}),
]


@pytest.mark.parametrize(("network", "kind", "wanted"), WANTED)
def test_what_can_be_followed(network: Callable[[], ir.Model], kind: Kind, wanted: set[str]) -> None:
    assert followed(network, kind) == wanted


@pytest.mark.parametrize("kind", ["order", "scale"])
@pytest.mark.parametrize("network", [mobile, block, heads])
def test_outputs_stay(network: Callable[[], ir.Model], kind: Kind) -> None:
    rng = np.random.default_rng()
    feeds = samples(network(), 3)
    wanted = [Reference(network()).run(feed)["y"] for feed in feeds]
    together = network()
    for number, side in [(n, side) for n in range(len(linear(together))) for side in ("in", "out")]:
        for model in (network(), together):
            node = linear(model)[number]
            if node.op_type == "Gather" and side == "in":
                continue
            channels = follow(model, node, side, kind)
            if isinstance(channels, str):
                continue
            before = [_bytes(touch.value) for touch in channels.touches]
            if kind == "order":
                channels.reorder(model, np.roll(np.arange(channels.count), 1))
            else:
                channels.rescale(model, np.exp(rng.standard_normal(channels.count)))
            assert any(_bytes(t.value) != b for t, b in zip(channels.touches, before, strict=True))
            for feed, y in zip(feeds, wanted, strict=True):
                np.testing.assert_allclose(Reference(model).run(feed)["y"], y, rtol=1e-4, atol=1e-5)


def _bytes(value: ir.Value) -> bytes:
    assert value.const_value is not None
    return value.const_value.numpy().tobytes()


def test_a_constant_that_others_read_gets_a_copy() -> None:
    model = made(
        """net (float[1, 4, 6] x) => (float[1, 4, 6] y, float[1, 4, 6] z) {
            a = MatMul (x, wa)  ab = Add (a, b)  r = Relu (ab)  y = MatMul (r, wb)  c = MatMul (x, wc)  z = Add (c, b)
        }""",
        {"wa": (6, 6), "b": (6,), "wb": (6, 6), "wc": (6, 6)},
    )
    feed = samples(model, 1)[0]
    wanted = Reference(model).run(feed)
    channels = follow(model, model.graph.node("MatMul0"), "out", "order")
    assert isinstance(channels, Channels)
    channels.reorder(model, np.array([5, 4, 3, 2, 1, 0]))
    assert len(model.graph.initializers) == 5
    for name, y in Reference(model).run(feed).items():
        np.testing.assert_allclose(y, wanted[name], rtol=1e-4, atol=1e-5)


REFUSED = [
    ("a = MatMul (x, wa)  y = MatMul (a, wa)", "order", "'wa' is also read elsewhere"),
    ("a = MatMul (x, wa)  s = Clip (a, lo)  y = MatMul (s, wb)", "scale", "does not commute"),
    ("a = MatMul (x, wa)  s = Add (a, one)  y = MatMul (s, wb)", "scale", "adds one value to all channels"),
    ("a = MatMul (x, wa)  s = Mul (a, a)  y = MatMul (s, wb)", "scale", "squares the channels"),
    ("a = MatMul (x, wa)  s = Softmax (a)  y = MatMul (s, wb)", "scale", "does not commute"),
    ("a = MatMul (x, wa)  s = Add (a, x)  y = MatMul (s, wb)", "order", "'x' is an input of the model"),
    ("a = MatMul (x, wa)  s = Concat <axis = 2> (a, a)  y = MatMul (s, wide)", "order", "joins channels"),
    ("a = MatMul (x, wa)  s = CumSum (a, two)  y = MatMul (s, wb)", "order", "CumSum .* is not followed"),
]


@pytest.mark.parametrize(("body", "kind", "why"), REFUSED)
def test_where_channels_end(body: str, kind: Kind, why: str) -> None:
    model = made(
        f"net (float[1, 4, 6] x) => (float[1, 4, 6] y) {{ {body} }}",
        {"wa": (6, 6), "wb": (6, 6), "one": (1,), "lo": (), "wide": (12, 6)},
        two=[2],
    )
    found = follow(model, model.graph.node("MatMul0"), "out", kind)
    assert isinstance(found, str)
    assert re.search(why, found), found


def test_a_gate_carries_the_factors_on_the_side_that_can() -> None:
    model = block()
    channels = follow(model, next(n for n in linear(model) if n.outputs[0].name == "o"), "in", "scale")
    assert isinstance(channels, Channels)
    assert {touch.value.name for touch in channels.touches} == {"wu", "wd"}


def test_one_channel_is_none() -> None:
    model = chain(np.ones((1, 5)), np.ones((4, 1)))
    assert follow(model, linear(model)[1], "in", "order") == "there is one channel"
