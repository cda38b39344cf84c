"""What a compressed graph costs, against the files and programs that are made of it."""

from __future__ import annotations

import pytest

import sparsec
from sparsec.codegen.choice import Policy
from sparsec.costs import FileCosts, ProgramCosts
from sparsec.frontend import load_model
from sparsec.passes import compress
from sparsec.reference import onnx_bytes
from sparsec.samples import random_inputs
from sparsec.target import host_target, resolve_target
from tests.models import DIGITS, DIGITS_MLP

N1 = {"N": 1}


@pytest.mark.parametrize("scheme", ["int8", "s50-cb4-g32"])
def test_bytes_are_those_of_the_file_and_of_weights_bin(scheme: str) -> None:
    graph = compress(load_model(DIGITS, input_shapes=N1), scheme)
    file = FileCosts()(graph)
    assert file.nbytes == len(onnx_bytes(graph.model))
    assert file.seconds is None
    assert file.layer_nbytes == {r.name: r.nbytes for r in graph.layers}
    program = ProgramCosts(host_target(), Policy(), timed=False)(graph)
    made = sparsec.compile(DIGITS, recipe=scheme, input_shapes=N1, verify=False)
    assert program.nbytes == made.weights_bytes
    assert program.layer_nbytes.keys() == {r.name for r in graph.layers}
    assert sum(program.layer_nbytes.values()) <= program.nbytes


def test_predicted_time_is_that_of_all_steps_and_sparse_layers_take_less() -> None:
    costs = ProgramCosts(resolve_target("x86-avx2"), Policy())
    source = load_model(DIGITS, input_shapes=N1)
    dense, sparse = (
        costs(compress(source, {"version": 1, "rules": [{"scheme": s}], "min_elements": 1})) for s in ("fp32", "s90")
    )
    assert dense.seconds is not None
    assert sparse.seconds is not None
    assert sum(dense.layer_seconds.values()) < dense.seconds
    assert sparse.layer_seconds["residual.weight"] < dense.layer_seconds["residual.weight"]
    assert FileCosts(costs)(compress(source)).seconds == pytest.approx(dense.seconds)


def test_tuning_measures() -> None:
    source = load_model(DIGITS_MLP, input_shapes=N1)
    costs = ProgramCosts(host_target(), Policy(tune=True), random_inputs(source))
    found = costs(compress(source, "int8"))
    assert found.seconds is not None
    assert 1e-8 < found.seconds < 1
    assert all(seconds > 0 for seconds in found.layer_seconds.values())
