"""The ledger: sums of its table, corrected until the real model keeps the limits; against trying everything."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sparsec.costs import Cost
from sparsec.errors import BudgetError
from sparsec.frontend import load_model
from sparsec.ledger import BYTES, ERROR, SECONDS, Ledger
from sparsec.passes import Compressed
from sparsec.passes.trials import trials
from sparsec.recipe import Recipe
from sparsec.samples import random_inputs
from tests.models import DIGITS

SCHEMES = ["int8", "cb4", "cb2-c"]


def costs(compressed: Compressed) -> Cost:
    """Schemes have a price that all layers share, as functions of a file do; wide codes take time."""
    sizes = {r.name: float(r.nbytes) for r in compressed.layers}
    seconds = {r.name: 1e-9 * r.nbytes**0.5 * len(r.scheme) for r in compressed.layers}
    shared = 450 * len({r.scheme for r in compressed.layers})
    return Cost(round(sum(sizes.values())) + shared + 1000, sum(seconds.values()) + 1e-8, sizes, seconds)


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    source, recipe = load_model(DIGITS, input_shapes={"N": 1}), Recipe(min_elements=1)
    with ThreadPoolExecutor(2) as executor:
        found = trials(
            source, recipe, SCHEMES, [random_inputs(source, s) for s in range(3)], executor, calibrated=False
        )
    return Ledger(source, recipe, found, costs)


def every(ledger: Ledger) -> list[np.ndarray]:
    """Real sums of a part of all choices: the first three layers agree."""
    ranges = [range(len(options)) for options in ledger.options]
    picks = [c for c in itertools.product(*ranges) if c[0] == c[1] == c[2]]
    return [ledger.real(choice) for choice in picks]


def test_uniform_choices_cost_what_the_table_says(ledger: Ledger) -> None:
    for option in range(len(SCHEMES) + 1):
        choice = [option] * len(ledger.options)
        np.testing.assert_allclose(ledger.predicted(choice), ledger.real(choice), rtol=1e-9)
    assert ledger.schemes([1] * len(ledger.options)) == dict.fromkeys((e.name for e in ledger.found), "int8")
    assert ledger.bits([0] * len(ledger.options)) == 32


@pytest.mark.parametrize("share", [0.1, 0.4, 0.8])
def test_limits_hold_in_the_real_model_and_are_used(ledger: Ledger, share: float) -> None:
    low, high = (ledger.real([o] * len(ledger.options))[BYTES] for o in (3, 1))
    limit = float(low + share * (high - low))
    found = ledger.real(ledger.fitted(ERROR, {BYTES: limit}))
    assert found[BYTES] <= limit
    best = min(sums[ERROR] for sums in every(ledger) if sums[BYTES] <= limit)
    assert found[ERROR] <= 1.2 * best


@pytest.mark.parametrize("option", range(1, len(SCHEMES) + 1))
def test_no_uniform_scheme_is_better_at_its_size(ledger: Ledger, option: int) -> None:
    uniform = ledger.real([option] * len(ledger.options))
    found = ledger.real(ledger.fitted(ERROR, {BYTES: float(uniform[BYTES])}))
    assert found[BYTES] <= uniform[BYTES]
    assert found[ERROR] <= uniform[ERROR]
    within = ledger.real(ledger.fitted(BYTES, {ERROR: float(uniform[ERROR])}))
    assert within[BYTES] <= uniform[BYTES]


def test_the_margin_is_kept_free(ledger: Ledger) -> None:
    limit = float(ledger.real([1] * len(ledger.options))[BYTES])
    assert ledger.real(ledger.fitted(ERROR, {BYTES: limit}, {BYTES: 500.0}))[BYTES] <= limit - 500


def test_least_bytes_within_an_error_and_a_time(ledger: Ledger) -> None:
    error = float(ledger.predicted([2] * len(ledger.options))[ERROR])
    time = float(ledger.real([2] * len(ledger.options))[SECONDS]) * 1.1
    found = ledger.real(ledger.fitted(BYTES, {ERROR: error, SECONDS: time}))
    assert found[ERROR] <= error * (1 + 1e-9)
    assert found[SECONDS] <= time
    best = min(sums[BYTES] for sums in every(ledger) if sums[ERROR] <= error and sums[SECONDS] <= time)
    assert found[BYTES] <= 1.1 * best


def test_what_cannot_be_met_says_what_binds(ledger: Ledger) -> None:
    least = ledger.real([3] * len(ledger.options))[BYTES]
    with pytest.raises(BudgetError, match="size: the nearest that the candidates reach") as caught:
        ledger.fitted(ERROR, {BYTES: 0.5 * least})
    assert f"{least / 1e3:.2f} KB" in str(caught.value)
    with pytest.raises(BudgetError, match=r"with size .* the least error is"):
        ledger.fitted(ERROR, {BYTES: 1.05 * least, ERROR: 1e-9})
