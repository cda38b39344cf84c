"""Padding does not count in differences to the teacher."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsec.passes.recover.batches import Batch
from sparsec.passes.recover.losses import squared, without_padding


@pytest.mark.parametrize("shape", [(4, 6, 3), (4, 1, 6, 3)])
def test_results_of_layers_at_padding_do_not_count(shape: tuple[int, ...]) -> None:
    rng = torch.Generator().manual_seed(int(np.random.default_rng().integers(2**31)))
    ours, theirs = torch.randn(shape, generator=rng), torch.randn(shape, generator=rng)
    mask = torch.arange(6)[None] < torch.tensor([[6], [1], [3], [2]])
    batch = Batch({}, None, 4, mask)
    loss = squared([[("a", "b")]], {"b": 2.0})
    wanted = torch.cat(
        [(x - y)[..., : int(m.sum()), :].reshape(-1) for x, y, m in zip(ours, theirs, mask, strict=True)]
    )
    torch.testing.assert_close(loss.of({"a": ours}, {"b": theirs}, batch), wanted.square().mean() / 2)
    elsewhere = ours + torch.where(mask.reshape(4, *(1,) * (len(shape) - 3), 6, 1), 0.0, 7.0)
    torch.testing.assert_close(loss.of({"a": elsewhere}, {"b": theirs}, batch), wanted.square().mean() / 2)


@pytest.mark.parametrize("shape", [(4,), (4, 5), (4, 7, 3), (4, 3, 7)])
def test_values_without_those_positions_count_as_they_are(shape: tuple[int, ...]) -> None:
    value = torch.randn(shape)
    assert without_padding(value, torch.zeros(4, 6, dtype=torch.bool)) is value
    assert without_padding(value, None) is value
