"""Scores by formula, and the shares they are cut by."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.passes.structure.groups import couple
from sparsec.passes.structure.moments import input_spreads
from sparsec.passes.structure.scores import chosen, fluctuations, magnitudes, squared_norms
from sparsec.reference import Reference
from tests.passes.structure.networks import build, family, feeds, residual


def test_squared_norms_add_up_over_tensors() -> None:
    rng = np.random.default_rng(0)
    one, other = rng.standard_normal((5, 3)).astype(np.float32), 100 * rng.standard_normal((4, 6)).astype(np.float32)
    units = np.array([0, -1, 1, 1, 0, 2])
    found = squared_norms([(one, 1, np.array([2, 0, 1])), (other, 1, units)], 3)
    for unit, (a, b) in enumerate((([1], [0, 4]), ([2], [2, 3]), ([0], [5]))):
        wanted = (
            np.square(one[:, a]).sum() / np.square(one).mean() + np.square(other[:, b]).sum() / np.square(other).mean()
        )
        assert found[unit] == pytest.approx(wanted, rel=1e-5)
    assert squared_norms([(np.zeros((2, 2), np.float32), 0, np.array([0, 1]))], 2).tolist() == [0, 0]


def test_shares() -> None:
    rng = np.random.default_rng(1)
    scores = [rng.random(size) for size in (1, 3, 10, 64)]
    for share in (0.0, 0.2, 0.5, 0.99):
        picked = chosen(scores, [1.0] * 4, share, together=False)
        for one, gone in zip(scores, picked, strict=True):
            assert len(gone) == min(round(share * one.size + 1e-9), one.size - 1)
            stays = np.delete(one, gone)
            assert not len(gone) or one[gone].max() <= stays.min()
    together = chosen(scores, [1.0, 1.0, 5.0, 1.0], 0.5, together=True)
    assert sum(c * len(g) for c, g in zip((1, 1, 5, 1), together, strict=True)) == pytest.approx(59, abs=5)
    assert all(len(g) < s.size for s, g in zip(scores, together, strict=True))


def test_fluctuation_is_what_a_layer_loses() -> None:
    """The score of a channel is the mean squared change of the layer that reads it, mean outputs kept."""
    model = build(
        """(float[1, 3, 4, 6] x) => (float[1, 5, 2, 6] y)
        {
            a = Conv <kernel_shape = [1, 1]> (x, w0)
            y = Conv <kernel_shape = [3, 1]> (a, w1)
        }""",
        {"w0": (7, 3, 1, 1), "w1": (5, 7, 3, 1)},
    )
    samples = feeds(model, 6)
    coupling = couple(model)
    one = family(coupling, "w0")
    spreads = input_spreads(model, [r.node for r in one.readers], samples, mask="", threads=1)
    (scores,) = fluctuations([one], spreads)
    weight = model.graph.initializers["w1"].const_value
    assert weight is not None
    array = weight.numpy()
    stem = build(
        "(float[1, 3, 4, 6] x) => (float[1, 7, 4, 6] a)\n{\na = Conv <kernel_shape = [1, 1]> (x, w0)\n}",
        {"w0": (7, 3, 1, 1)},
    )
    stem.graph.initializers["w0"].const_value = model.graph.initializers["w0"].const_value
    hidden = np.stack([Reference(stem).run(sample)["a"][0] for sample in samples])
    for channel in range(7):
        # One place of the kernel at a time: FLAP treats inputs as independent.
        lost = 0.0
        for place in range(3):
            values = hidden[:, channel, place : place + 2]
            lost += values.var() * np.square(array[:, channel, place, 0]).sum()
        assert scores[channel] == pytest.approx(lost, rel=1e-3)


def test_magnitudes_of_a_stream() -> None:
    coupling = couple(residual())
    (scores,) = magnitudes([family(coupling, "w0")])
    assert scores.shape == (7,)
    assert (scores > 0).all()
