"""Codes and codebooks learned together: never worse than the start, near the best codes of tiny weights, parts by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Scheme, codes_of, decode, encode, with_codes
from sparsec.passes.quantise import learn_jointly, on_support
from sparsec.passes.quantise.products import damped, error
from tests.passes.quantise.problems import layer, loss, mask_of, raw

SCHEMES = [
    "cb3",
    "cb3.r4-c",
    "cb2.i8",
    "int3",
    "int2-g8",
    "uint3-g16",
    "ternary",
    "pg3",
    "vq2d4",
    "vq1d4.r8",
    "s50-cb3",
]


@pytest.mark.parametrize("token", SCHEMES)
def test_it_beats_rounding(token: str) -> None:
    rng = np.random.default_rng(2)
    weight, moment = layer(24, 64, rng)
    scheme = Scheme.parse(token)
    mask = mask_of(scheme, weight, rng)
    kept = weight if mask is None else on_support(weight, moment, mask)
    start = encode(kept, scheme, mask, damped(moment, 0.01, *weight.shape).diagonal())
    found = learn_jointly(weight, moment, scheme, mask, start=kept)
    assert loss(weight, moment, found) < 0.99 * loss(weight, moment, start)
    assert raw(found) == raw(learn_jointly(weight, moment, scheme, mask, start=kept))
    assert raw(learn_jointly(weight, moment, scheme, mask, start=kept, steps=0)) == raw(start)


def test_codes_are_near_the_best_of_all() -> None:
    found = best = start = 0.0
    for seed in range(12):
        weight, moment = layer(2, 4, np.random.default_rng(seed))
        hessian = damped(moment, 0.01, 2, 4)
        encoded = learn_jointly(weight, moment, Scheme.parse("int2"))
        start += error(weight, decode(encode(weight, Scheme.parse("int2"), None, hessian.diagonal())), hessian)
        found += error(weight, decode(encoded), hessian)
        lowest = np.inf * np.ones(2)
        for number in range(4**4):
            codes = np.broadcast_to([number >> (2 * k) & 3 for k in range(4)], (2, 4)).astype(codes_of(encoded).dtype)
            off = weight - decode(with_codes(encoded, codes)).astype(np.float64)
            lowest = np.minimum(lowest, np.einsum("nk,kl,nl->n", off, hessian, off))
        best += lowest.sum()
    assert best <= found * (1 + 1e-6)
    assert found < 1.2 * best
    assert found < start


def test_parts_are_learned_by_themselves() -> None:
    weight, _ = layer(12, 20, np.random.default_rng(3))
    moments = np.stack([layer(4, 20, np.random.default_rng(seed))[1] for seed in range(3)])
    moments *= 1.5 / np.trace(moments, axis1=1, axis2=2)[:, None, None]
    together = decode(learn_jointly(weight, moments, Scheme.parse("int3")))
    for number, moment in enumerate(moments):
        rows = slice(4 * number, 4 * number + 4)
        alone = learn_jointly(weight[rows], moment, Scheme.parse("int3"), steps=64)
        hessian = damped(moment, 0.01, 4, 20)
        assert error(weight[rows], together[rows], hessian) < 1.3 * error(weight[rows], decode(alone), hessian)
