"""Constant channels are found wherever they arise, and go without a trace."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.structure.constants import constant_channels
from sparsec.passes.structure.dead import dead_units
from sparsec.passes.structure.groups import couple
from sparsec.reference import Reference
from tests.passes.structure.networks import Array, branching, build, feeds, residual, transformer
from tests.passes.test_restructure import shrink


def edit(model: ir.Model, name: str, index: object, number: float = 0.0) -> None:
    value = model.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[index] = number  # type: ignore[index]
    value.const_value = ir.tensor(array, name=name)


def assert_same(model: ir.Model, small: ir.Model, seed: int = 3) -> None:
    for feed in feeds(model, 3, seed):
        wanted, found = Reference(model).run(feed), Reference(small).run(feed)
        for name, array in wanted.items():
            assert np.abs(found[name] - array).max() <= 3e-6 * max(1, np.abs(array).max())


def removed(model: ir.Model) -> dict[str, int]:
    made = shrink(model, zero_channels=True)
    assert_same(model, made.model)
    return {r.name: r.removed for r in made.removed if r.removed}


def test_nothing_is_found_where_nothing_is() -> None:
    for network in (residual, branching, transformer):
        made = shrink(network(), zero_channels=True)
        assert [(r.removed, r.reason) for r in made.removed] == [(0, "there are none")]


def test_constant_rows_are_folded_into_what_follows() -> None:
    model = residual()
    edit(model, "w1", [1, 4])
    edit(model, "b1", 1, -2.0)  # Relu makes it 0
    edit(model, "b1", 4, 0.7)  # w2 has no padding: its bias takes 0.7 times its column
    assert removed(model) == {"w1": 2}


def test_padding_keeps_a_constant_that_is_not_zero() -> None:
    model = residual()
    for channel, number in ((0, -1.0), (3, 0.5)):
        edit(model, "w3", channel)
        edit(model, "b3", channel, number)
    assert removed(model) == {"w3": 1}


def test_a_residual_channel_needs_all_its_writers() -> None:
    model = residual()
    edit(model, "w0", 2)
    edit(model, "b0", 2, 0.0)
    assert removed(model) == {}  # w2 writes it too
    edit(model, "w2", 2)
    edit(model, "b2", 2, 0.0)
    assert removed(model) == {}  # the shortcut adds it to the fourth channel of w4
    edit(model, "w4", 4)
    assert removed(model) == {"w0": 1}


def test_what_nobody_reads_goes() -> None:
    model = residual()
    edit(model, "w2", (slice(None), 5))
    assert removed(model) == {"w1": 1}


def test_chains_of_dead_channels_go_together() -> None:
    """w3's output 1 is never read, and w1 was read for it alone... through w2's column and the stream."""
    model = build(
        """(float[1, 3, 4, 4] x) => (float[1, 2, 4, 4] y)
        {
            a0 = Conv <kernel_shape = [1, 1]> (x, w0, b0)
            a = Sigmoid (a0)
            b0_ = Conv <kernel_shape = [1, 1]> (a, w1)
            b = Tanh (b0_)
            y = Conv <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (b, w2)
        }""",
        {"w0": (5, 3, 1, 1), "b0": (5,), "w1": (6, 5, 1, 1), "w2": (2, 6, 3, 3)},
    )
    edit(model, "w2", (slice(None), 3))  # channel 3 of w1 goes
    edit(model, "w1", ([0, 1, 2, 4, 5], 2))  # channel 2 of w0 was read by it alone
    assert removed(model) == {"w0": 1, "w1": 1}


def test_depthwise_groups_concat_and_gates() -> None:
    model = branching()
    edit(model, "w0", 3)
    edit(model, "b0", 3, 0.25)  # clipped to 0.25; depthwise with padding: not constant
    assert removed(model) == {}
    edit(model, "b0", 3, 0.0)  # now the depthwise results are bias and 0.5
    assert removed(model) == {"w0": 1}
    gated = transformer()
    edit(gated, "uw0", (slice(None), [2, 7]))  # 0 times anything
    assert removed(gated) == {"uw0": 2}


def test_heads_of_zeros_go() -> None:
    model = transformer()
    edit(model, "vw1", (slice(None), slice(4, 8)))
    edit(model, "vb1", slice(4, 8))
    edit(model, "ow0", slice(8, 12))
    assert removed(model) == {"qw0": 1}  # a head nobody reads; one whose values are 0 is not looked through attention


def test_one_channel_always_stays() -> None:
    model = residual()
    edit(model, "w3", slice(None))
    edit(model, "b3", slice(None), -1.0)
    made = shrink(model, zero_channels=True)
    assert_same(model, made.model)
    said = "all of them could go; one stays"  # of w3, and of those of w4 that no shortcut reaches: biases
    assert [(r.name, r.units, r.removed, r.reason) for r in made.removed] == [("w3", 6, 5, said), ("w4", 4, 3, said)]


@pytest.mark.parametrize("seed", range(3))
def test_what_is_called_constant_is(seed: int) -> None:
    """Against runs: a channel that is known has that number everywhere."""
    model = branching(seed)
    rng = np.random.default_rng(seed)
    for name, bias in (("w0", "b0"), ("wd", "bd"), ("wg", "bg")):
        rows = rng.permutation(9)[:4]
        edit(model, name, rows)
        edit(model, bias, rows[:2])
    known = constant_channels(model)
    assert len(known) > 6
    extra = model.clone()
    by_name = {value.name: value for node in extra.graph for value in node.outputs}
    for value in known:
        if not value.is_graph_output():
            extra.graph.outputs.append(by_name[value.name])
    found: dict[str, Array] = Reference(extra).run(feeds(model, 1, seed)[0])
    for value, (axis, numbers) in known.items():
        array = np.moveaxis(found[value.name or ""], axis, 0).reshape(len(numbers), -1)
        for row, number in zip(array, numbers, strict=True):
            if not np.isnan(number):
                assert np.allclose(row, number, atol=1e-6)


def test_all_ways_of_being_dead_at_once() -> None:
    model = residual()
    edit(model, "w1", 0)
    edit(model, "w2", (slice(None), 0), 1.0)
    found = dead_units(model, couple(model))
    ((family, units),) = found.gone
    assert (family.name, units.tolist()) == ("w1", [0])
    bias = model.graph.initializers["b1"].const_value
    assert bias is not None
    assert np.allclose(next(iter(found.shifts.values())), max(0.0, float(bias.numpy()[0])))
