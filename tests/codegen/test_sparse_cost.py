"""Predicted times of sparse products follow what they do: stored weights, and vectors of activations however full."""

from __future__ import annotations

import pytest

from sparsec.codegen.cost import step_seconds
from sparsec.codegen.machine import nominal
from sparsec.target import host_target
from tests.kernels.test_shared_kernels import two_layers


def seconds(scheme: str, tokens: int) -> float:
    program = two_layers(scheme, tokens)
    return step_seconds(program.steps[0], program.target, nominal(program.target))


def test_few_rows() -> None:
    families = [two_layers("s80", tokens).steps[0].spec.family for tokens in (1, 8)]
    assert families == ["spmv", "spmm"]
    assert seconds("s80", 1) < seconds("s80", 2)


def test_a_vector_costs_the_same_however_full() -> None:
    lanes = host_target().lanes
    # the results themselves are a little more
    assert seconds("s80", lanes // 2) == pytest.approx(seconds("s80", lanes), rel=0.25)
    # a wide tile shares what a stored weight costs beside its multiplications
    assert seconds("s80", 8 * lanes) < 8 * seconds("s80", lanes)
