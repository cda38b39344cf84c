"""A grouped convolution's weight: every part is pruned and compensated by its own inputs, with the algorithms of the rule."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sparsec.formats import Scheme
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Calibrate, Rule
from tests.passes.quantise.problems import layer


def problem(rows: int, cols: int, groups: int, rng: np.random.Generator) -> tuple[np.ndarray, list[Statistics]]:
    """A weight [rows, cols], and inputs of unequal size, correlated, for each of its groups."""
    weight, _ = layer(rows, cols, rng)
    statistics, mean = [], np.zeros(cols, np.float32)
    for _ in range(groups):
        mixed = (np.eye(cols) + rng.standard_normal((cols, cols)) / 3) * np.exp(rng.standard_normal(cols) / 2)
        statistics.append(Statistics(10**4, (mixed.T @ mixed).astype(np.float32), mean, mean, None, False))
    return weight, statistics


def solved(weight: np.ndarray, statistics: list[Statistics], scheme: str, **rule: Any) -> Solved:
    structure, gradients = Scheme.parse(scheme).structure, np.square(weight[::-1]).astype(np.float64)
    made = Rule(scheme=scheme, **rule)
    return solve(Layer("w", weight, scheme, structure, made, Calibrate(), statistics, gradients))


@pytest.mark.parametrize("scheme", ["int3", "cb2", "s50-int4", "vq1d4"])
def test_compensated_beats_nearest(scheme: str) -> None:
    given = problem(32, 9, 8, np.random.default_rng(4))
    errors = [
        solved(*given, scheme, quantize={"algorithm": algorithm}).output_error for algorithm in ("nearest", "auto")
    ]
    assert errors[1] < (1.0 if scheme.startswith("s") else 0.8) * errors[0]


@pytest.mark.parametrize("groups", [8, 64])
@pytest.mark.parametrize("scheme", ["s50", "s2:4", "s16x1@50", "s4x1@50"])
def test_masks_are_those_of_the_algorithm(scheme: str, groups: int) -> None:
    """64 rows; 64 groups: depthwise, where blocks of several outputs span groups."""
    rng = np.random.default_rng()
    problems = [problem(64, 16, groups, rng) for _ in range(5)]
    names = ["magnitude", "wanda", "gblm", "sparsegpt", "obs"]
    names += ["dsnot"] if Scheme.parse(scheme).structure.block == (1, 1) else []
    for nearest in (False, True):
        rule = {"quantize": {"algorithm": "nearest" if nearest else "auto"}}
        found = {
            name: [solved(*given, scheme, sparsify={"algorithm": name}, **rule) for given in problems] for name in names
        }
        errors = {name: np.mean(np.log([one.output_error for one in solutions])) for name, solutions in found.items()}
        masks = {b"".join((one.decoded() != 0).tobytes() for one in solutions) for solutions in found.values()}
        assert len(masks) == len(names)
        assert errors["wanda"] < errors["magnitude"]
        if "dsnot" in errors:
            assert errors["dsnot"] < errors["wanda"]
        if nearest:  # Wanda's weights stay as they are
            assert errors["sparsegpt"] < errors["wanda"]
        if nearest or "dsnot" in errors:  # with values solved for, blocks leave greed little to choose
            assert errors["obs"] < errors["wanda"]
