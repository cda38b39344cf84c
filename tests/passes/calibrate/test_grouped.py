"""A grouped convolution's weight: every part is compensated by its own inputs."""

from __future__ import annotations

import numpy as np
import pytest

from sparsec.formats import Scheme
from sparsec.passes.calibrate.solve import Layer, Solved, solve
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Calibrate, Quantize, Rule
from tests.passes.quantise.problems import layer


@pytest.mark.parametrize("scheme", ["int3", "cb2", "s50-int4", "vq1d4"])
def test_compensated_beats_nearest(scheme: str) -> None:
    rng = np.random.default_rng(4)
    weight, _ = layer(32, 9, rng)
    statistics = []
    for _ in range(8):
        inputs = rng.standard_normal((200, 9)) @ rng.standard_normal((9, 9))
        moment = (inputs.T @ inputs / 200).astype(np.float32)
        statistics.append(Statistics(200, moment, np.zeros(9, np.float32), np.zeros(9, np.float32), None, False))

    def solved(algorithm: str) -> Solved:
        rule = Rule(scheme=scheme, quantize=Quantize(algorithm=algorithm))  # type: ignore[arg-type]
        return solve(Layer("w", weight, scheme, Scheme.parse(scheme).structure, rule, Calibrate(), statistics))

    errors = [solved(algorithm).output_error for algorithm in ("nearest", "auto")]
    assert errors[1] < (1.0 if scheme.startswith("s") else 0.8) * errors[0]
