"""Segments put together compute the whole graph, each node once, and keep only what is still read."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.calibrate import stream as streams
from sparsec.passes.calibrate.segments import segments
from sparsec.passes.calibrate.stream import Stream
from sparsec.reference import Reference
from tests.passes.calibrate.networks import image_network, samples, text_network


def with_outputs(model: ir.Model, names: list[str]) -> ir.Model:
    """The model with inner values as outputs."""
    copy = model.clone()
    values = ir.convenience.create_value_mapping(copy.graph)
    copy.graph.outputs[:] = [values[name] for name in names]
    return copy


@pytest.mark.parametrize("in_memory", [True, False])
@pytest.mark.parametrize("network", [image_network, text_network])
def test_values_at_every_cut(network: object, in_memory: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not in_memory:
        monkeypatch.setattr(streams, "IN_MEMORY_BYTES", 0)
    model: ir.Model = network()  # type: ignore[operator]
    nodes = list(model.graph)
    read = [next(v.name or "" for v in node.inputs if v is not None and v.const_value is None) for node in nodes]
    feeds = samples(model, 3)
    wanted = [Reference(with_outputs(model, sorted(set(read) - {"x"}))).run(feed) | feed for feed in feeds]
    plan = segments(model.graph, list(range(len(nodes))), [[name] for name in read])
    stream = Stream(model, feeds, 1)
    for name, segment in zip(read, plan, strict=True):
        stream.advance(segment)
        for index in range(3):
            np.testing.assert_allclose(stream.value(name, index), wanted[index][name], rtol=1e-5, atol=1e-6)
    stream.close()


def test_what_nobody_reads_any_more_is_dropped() -> None:
    model = text_network()
    plan = segments(model.graph, [0, 8], [["x"], ["u"]])
    assert plan[0].makes == ()
    assert plan[0].model(model) is None
    assert plan[1].reads == ("x",)
    assert plan[1].makes == ("u",)
    assert plan[1].drops == ("x",)


def test_a_wanted_value_outlives_its_readers() -> None:
    model = text_network()
    plan = segments(model.graph, [8, 9], [["u"], ["q"]])
    assert plan[0].makes == ("q", "u")
    assert plan[0].drops == ("x",)
    assert plan[1].drops == ("u",)
