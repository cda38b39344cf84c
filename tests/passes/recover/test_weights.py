"""Weights that learn: what they are when stored, what stays, where gradients go."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sparsec.formats import EncodedWeight, Scheme, decode, encode, kept_positions
from sparsec.passes.recover.weights import LearntWeight, Method
from sparsec.passes.sparsify.masks import mask_of_scores

SCHEMES = [
    "int4", "int4-g32", "int3-t", "uint4-g32", "int8", "ternary-g32", "binary-c", "cb4", "cb3-g32", "cb2-c", "cb4.r16-c", "cb3.i8-g32",
    "nf4-g32", "fp8", "fp4-g32", "pow2-g32", "pg4-g32", "fp16", "s50", "s50-fp16", "s2:4", "s2:4-int4-g32", "s16x1@50-cb4-g32", "s50-cb3",
    "vq2d4-c", "vq2d4.q8", "vq1d8-c", "vq2d4.x2-c", "s1x4@50-vq2d4-c", "sf50-int4",
]  # fmt: skip


def problem(scheme: str, rows: int = 37, cols: int = 45) -> tuple[EncodedWeight, np.random.Generator]:
    rng = np.random.default_rng()
    weight = rng.standard_normal((rows, cols)).astype(np.float32) * np.exp(rng.standard_normal((rows, 1))).astype(
        np.float32
    )
    parsed = Scheme.parse(scheme)
    mask = None if parsed.is_dense else mask_of_scores(np.square(weight, dtype=np.float64), parsed.structure)
    return encode(weight, parsed, mask), rng


def same(weight: LearntWeight) -> EncodedWeight:
    """What is stored, checked: same scheme, positions and bytes, and the value bit by bit."""
    stored = weight.stored()
    np.testing.assert_array_equal(decode(stored), weight.value().detach().numpy())
    assert stored.scheme == weight.start.scheme
    assert stored.nbytes == weight.start.nbytes
    assert {k: (v.dtype, v.shape) for k, v in stored.arrays().items()} == {
        k: (v.dtype, v.shape) for k, v in weight.start.arrays().items()
    }
    np.testing.assert_array_equal(kept_positions(stored), kept_positions(weight.start))
    return stored


@pytest.mark.parametrize("method", ["full", "perp"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_stored_weights_are_what_was_trained(scheme: str, method: Method) -> None:
    encoded, rng = problem(scheme)
    weight = LearntWeight(encoded, method)
    np.testing.assert_allclose(decode(same(weight)), decode(encoded), rtol=1e-6)
    for parameter in weight.parameters:
        parameter.data += torch.tensor(rng.standard_normal(tuple(parameter.shape)).astype(np.float32)) * (
            0.2 if method == "full" else 1.0
        )
    changed = decode(same(weight))
    if weight.parameters:
        assert not np.array_equal(changed, decode(encoded))
    assert not changed[~kept_positions(encoded)].any()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_every_parameter_learns(scheme: str) -> None:
    """A few steps towards another weight come nearer to it, and every parameter has moved."""
    encoded, rng = problem(scheme)
    start = decode(encoded)
    goal = torch.tensor(start * 1.2 + 0.2 * np.abs(start).mean() * rng.standard_normal(start.shape).astype(np.float32))
    weight = LearntWeight(encoded)
    optimiser = torch.optim.Adam(weight.parameters, lr=0.005)
    errors = []
    for _ in range(30):
        optimiser.zero_grad()
        error = (weight.value() - goal).square().mean()
        error.backward()
        optimiser.step()
        errors.append(float(error.detach()))
    same(weight)
    assert min(errors) < errors[0]
    assert all(parameter.abs().max() > 0 for parameter in weight.parameters)


def test_gradients_stop_outside_the_range_of_codes() -> None:
    encoded, _ = problem("int4")
    weight = LearntWeight(encoded)
    delta = weight.parameters[0]
    delta.data[0, 0], delta.data[0, 1] = 100.0, 0.01
    weight.value().sum().backward()
    assert delta.grad is not None
    assert delta.grad[0, 0] == 0
    assert delta.grad[0, 1] != 0


def test_a_mirrored_codebook_stays_mirrored() -> None:
    rng = np.random.default_rng(4)
    half = rng.standard_normal((200, 8)).astype(np.float32)
    encoded = encode(np.concatenate([half, -half]), Scheme.parse("vq2d4-c"))
    weight = LearntWeight(encoded)
    assert encoded.codebook is not None
    entries = encoded.codebook.shape[2] // 2
    if not np.array_equal(encoded.codebook[:, :, :entries], -encoded.codebook[:, :, entries:]):
        pytest.skip("the encoder found no mirrored codebook")
    for parameter in weight.parameters:
        parameter.data += torch.tensor(rng.standard_normal(tuple(parameter.shape)).astype(np.float32)) * 0.1
    book = same(weight).codebook
    assert book is not None
    np.testing.assert_array_equal(book[:, :, :entries], -book[:, :, entries:])


def test_perp_moves_values_by_a_matrix_of_its_rank_on_the_mask() -> None:
    encoded, rng = problem("s50", 24, 40)
    weight = LearntWeight(encoded, "perp", rank=3)
    weight.parameters[0].data += torch.tensor(rng.standard_normal((24, 3)).astype(np.float32))
    moved, kept = decode(same(weight)) - decode(encoded), kept_positions(encoded)
    assert not moved[~kept].any()
    update = weight._unit * (weight._left @ weight._right)  # type: ignore[operator]
    np.testing.assert_allclose(moved[kept], update.detach().numpy()[kept], atol=1e-5)
    assert np.linalg.matrix_rank(update.detach().numpy()) == 3
    assert sum(parameter.numel() for parameter in weight.parameters) == 3 * (24 + 40) + 24
