"""Inputs apart from the codes: fewer errors where some inputs carry much, nothing lost of what stands beside."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest

from sparsec.errors import RecipeError
from sparsec.formats import EncodedWeight, Scheme, decode, encode
from sparsec.passes.factor.form import Factored
from sparsec.passes.factor.outliers import beside_outliers, outlier_inputs
from sparsec.passes.factor.solve import factored
from sparsec.passes.quantise import quantise
from sparsec.recipe import Rule, load_recipe
from tests.passes.factor.problems import output_error, second_moment


def made(weight: np.ndarray, moment: np.ndarray | None, scheme: str, **rule: Any) -> Factored:
    parsed = Scheme.parse(scheme)

    def coder(target: np.ndarray, second: Any, mask: np.ndarray | None) -> EncodedWeight:
        return encode(target, parsed, mask) if second is None else quantise(target, second, parsed, mask)

    return factored(weight, moment, parsed.structure, Rule(scheme=scheme, **rule), coder)


def with_outliers(rows: int, cols: int, loud: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A weight, a second moment, and which inputs are ten times as large and have weights four times as large."""
    rng = np.random.default_rng()
    size = np.ones(cols)
    chosen = np.sort(rng.choice(cols, loud, replace=False))
    size[chosen] = 10
    moment = second_moment(cols, int(rng.integers(1 << 30)), decay=0.3) * np.outer(size, size)
    weight = rng.standard_normal((rows, cols))
    weight[:, chosen] *= 4
    return weight.astype(np.float32), moment, chosen


@pytest.mark.parametrize("scheme", ["vq2d4", "int2-g32", "cb2-c"])
@pytest.mark.parametrize("data", [True, False])
def test_outliers_apart_beat_everything_in_one_code(scheme: str, data: bool) -> None:
    weight, moment, chosen = with_outliers(128, 96, 4)
    used = moment if data else None
    parsed = Scheme.parse(scheme)
    plain = encode(weight, parsed) if used is None else quantise(weight, used, parsed)
    form = made(weight, used, scheme, outliers={"share": "4%", "codec": "int8"})
    assert np.array_equal(np.flatnonzero(form.branch[0].matrix().any(axis=0)), chosen)
    assert output_error(weight, form.decoded(), moment) < 0.7 * output_error(weight, decode(plain), moment)


def test_what_is_stored_apart_is_the_best_there_is() -> None:
    """In fp16 nothing is rounded to speak of: no other values of those inputs come nearer."""
    weight, moment, chosen = with_outliers(17, 23, 2)
    form = made(weight, moment, "int2", outliers={"share": "9%", "codec": "fp16"})
    main, beside = form.main[0].matrix(), form.branch[0].matrix()
    left, own = weight - main, np.ix_(chosen, chosen)
    best = np.linalg.solve(moment[own], moment[chosen] @ left.T).T
    np.testing.assert_allclose(beside[:, chosen], best, rtol=5e-2, atol=5e-2 * np.abs(best).max())


def test_chosen_are_the_inputs_that_carry_most() -> None:
    rng = np.random.default_rng()
    weight, moment = rng.standard_normal((5, 8)), np.diag(rng.random(8) + 0.1)
    carried = {pair: sum(moment[i, i] * (weight[:, i] ** 2).sum() for i in pair) for pair in combinations(range(8), 2)}
    assert tuple(outlier_inputs(weight, moment, 2)) == max(carried, key=lambda pair: carried[pair])


def test_others_errors_count_as_far_as_outliers_cannot_mend_them() -> None:
    """The moment for the others: the least of the whole error over all values of the outliers."""
    weight, moment, chosen = with_outliers(4, 9, 2)
    _, rest, _ = beside_outliers(weight.astype(np.float64), moment, chosen)
    assert rest is not None
    error = np.random.default_rng().standard_normal((4, 9))
    error[:, chosen] = 0
    best = error.copy()
    best[:, chosen] = -np.linalg.solve(moment[np.ix_(chosen, chosen)], moment[chosen] @ error.T).T
    assert np.trace(error @ rest @ error.T) == pytest.approx(np.trace(best @ moment @ best.T), rel=1e-4)


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        ({"outliers": {"share": "60%"}}, "at most 50 %"),
        ({"outliers": {"share": 2}}, "share"),
        ({"outliers": {"codec": "s50-int8"}}, "without zeros"),
        ({"outliers": {}, "low_rank": {"rank": 2}}, "leave one out"),
    ],
)
def test_rules_that_make_no_sense(rule: dict[str, Any], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        load_recipe({"version": 1, "rules": [{"scheme": "vq2d4", **rule}]})
