"""What a rule makes of one weight: branches correct what coding left, factors take up each other's rounding."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.passes.factor.coding import coded_pair
from sparsec.passes.factor.fit import least_squares
from sparsec.passes.factor.form import Factor, Factored, block_diagonal, shuffled
from sparsec.passes.factor.solve import factored
from sparsec.passes.factor.whitened import whitened
from sparsec.passes.sparsify.masks import mask_of_scores
from sparsec.recipe import Quantize, Rule
from tests.passes.factor.problems import output_error, second_moment


def made(weight: np.ndarray, moment: np.ndarray | None, scheme: str, **rule: Any) -> Factored:
    """The form with plain rounding of magnitude's survivors as the coder."""
    parsed = Scheme.parse(scheme)

    def coder(target: np.ndarray, second: object, mask: np.ndarray | None) -> EncodedWeight:
        if mask is None and not parsed.is_dense:
            mask = mask_of_scores(np.square(target), parsed.structure)
        return encode(target, parsed, mask)

    return factored(weight, moment, parsed.structure, Rule(scheme=scheme, **rule), coder)


def problem(rows: int = 40, cols: int = 36, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, cols)).astype(np.float32), second_moment(cols, seed, decay=0.5)


@pytest.mark.parametrize("scheme", ["int2", "s2:4", "s50-int4"])
def test_eora_beats_lorc_beats_none(scheme: str) -> None:
    weight, moment = problem()
    low_rank = {"rank": 4, "scheme": "int8"}
    alone = made(weight, moment, scheme, low_rank={**low_rank, "rank": 1, "algorithm": "lorc"}).main[0].matrix()
    errors = [output_error(weight, alone, moment)]
    for algorithm in ("lorc", "eora"):
        form = made(weight, moment, scheme, low_rank={**low_rank, "algorithm": algorithm})
        errors.append(output_error(weight, form.decoded(), moment))
        assert form.words == f"{scheme} + rank 4 int8"
        assert [factor.label for factor in form.factors()] == ["", "v", "u"]
    assert errors[2] < 0.7 * errors[1] < 0.7 * errors[0]


def test_a_branch_of_full_rank_corrects_everything() -> None:
    weight, moment = problem(9, 7)
    form = made(weight, moment, "int2", low_rank={"rank": 7, "scheme": "fp16"})
    np.testing.assert_allclose(form.decoded(), weight, atol=2e-2)
    assert output_error(weight, form.decoded(), moment) < 1e-6


def test_rounds_do_not_hurt() -> None:
    weight, moment = problem()
    errors = [
        output_error(weight, made(weight, moment, "int2", low_rank={"rank": 4, "rounds": rounds}).decoded(), moment)
        for rounds in (1, 2, 6)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.97 * errors[0]


@pytest.mark.parametrize("data", [False, True])
def test_oats_beats_correcting_afterwards(data: bool) -> None:
    """Outliers on a low rank: the order in which they are found matters."""
    weight, moment = problem(48, 40, 1)
    rng = np.random.default_rng(2)
    weight = (rng.standard_normal((48, 3)) @ rng.standard_normal((3, 40))).astype(np.float32) + 0.1 * weight
    weight += np.where(rng.random(weight.shape) < 0.08, rng.choice([-8, 8], weight.shape), 0).astype(np.float32)
    used = moment if data else None
    errors = [
        output_error(weight, made(weight, used, "s90", low_rank={"rank": 3, "algorithm": a}).decoded(), moment)
        for a in ("oats", "auto")
    ]
    assert errors[0] < 0.7 * errors[1]


@pytest.mark.parametrize(("algorithm", "better"), [("svd", "asvd"), ("asvd", "svd_llm")])
def test_pure_factors_get_better_with_what_they_know(algorithm: str, better: str) -> None:
    weight, moment = problem()
    scale = np.exp(np.random.default_rng(1).standard_normal(36))
    moment = moment * np.outer(scale, scale)
    forms = [made(weight, moment, "int8", factor={"algorithm": a, "rank": 6}) for a in (algorithm, better)]
    errors = [output_error(weight, form.decoded(), moment) for form in forms]
    assert errors[1] < 0.95 * errors[0]
    assert forms[0].words == "rank 6 int8"
    assert forms[0].nbytes == sum(a.nbytes for f in forms[0].factors() for a in f.coded.arrays().values())


def test_coding_costs_little_at_8_bits_and_is_compensated_at_4() -> None:
    weight, moment = problem()
    left, right = whitened(weight, moment, 6)
    exact = output_error(weight, left @ right, moment)

    def cost(scheme: str) -> float:
        form = made(weight, moment, scheme, factor={"algorithm": "low_rank", "rank": 6})
        return output_error(weight, form.decoded(), moment) - exact

    assert 0 < cost("int8") < 0.001 * exact
    factors = ((left, "int4-t"), (right, "int4"))  # six values a row share a scale
    u, v = (decode(encode(np.ascontiguousarray(f, np.float32), Scheme.parse(scheme))) for f, scheme in factors)
    assert cost("int4") < 0.9 * (output_error(weight, u @ v, moment) - exact)


def test_the_second_factor_is_the_best_for_the_first() -> None:
    weight, moment = problem(8, 11)
    inner = np.random.default_rng(0).standard_normal((3, 11))
    found, inside = least_squares(weight.astype(np.float64), inner, moment)
    values, vectors = np.linalg.eigh(moment)
    root = vectors * np.sqrt(np.maximum(values, 0))
    wanted = np.linalg.lstsq((inner @ root).T, (weight @ root).T, rcond=None)[0].T
    np.testing.assert_allclose(found, wanted, atol=1e-4)
    np.testing.assert_allclose(inside, inner @ moment @ inner.T)


def test_nothing_to_correct() -> None:
    pair = coded_pair(np.zeros((5, 6)), np.eye(5)[:, :2], np.zeros((2, 6)), np.eye(6), Scheme.parse("int8"), Quantize())
    assert not (pair[1].matrix() @ pair[0].matrix()).any()


def test_block_diagonal_factors_and_their_shuffle() -> None:
    """As the products of the blocks, one after the other, on one vector."""
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((6, 4)).astype(np.float32)
    x = rng.standard_normal(12)
    np.testing.assert_allclose(
        block_diagonal(blocks, 3) @ x,
        np.concatenate([blocks[2 * g : 2 * g + 2] @ x[4 * g : 4 * g + 4] for g in range(3)]),
    )
    coded = encode(rng.standard_normal((6, 4)).astype(np.float32), Scheme.parse("fp32"))
    factor = Factor("l", coded, groups=3, shuffle=2)
    came = x.reshape(2, 3, 2).transpose(1, 0, 2).reshape(-1)  # [shuffle, groups, r] to [groups, shuffle, r]
    np.testing.assert_allclose(factor.matrix() @ x, block_diagonal(decode(coded), 3) @ came, rtol=1e-6)
    assert sorted(shuffled(12, 3, 2)) == list(range(12))
