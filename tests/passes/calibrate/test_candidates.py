"""Candidates of a budget: their errors are those of the model with the weight replaced, and add up as predicted."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from sparsec.passes.budget.sensitivity import probed
from sparsec.passes.calibrate.biases import add_to_bias, own_bias
from sparsec.passes.calibrate.candidates import Candidates, candidates, relative_error
from sparsec.recipe import Calibrate
from sparsec.reference import Reference
from tests.passes.calibrate.networks import choices, image_network, samples, text_network

SCHEMES = ["int8", "int5", "cb4", "int3", "cb2-c"]


def tried(model: ir.Model, feeds: list[dict[str, Any]], calibrated: bool, workers: int = 2) -> list[Candidates]:
    with ThreadPoolExecutor(workers) as executor:
        return candidates(
            model, choices(model, "int8"), SCHEMES, feeds, executor, settings=Calibrate(), calibrated=calibrated
        )


def replaced(model: ir.Model, found: list[Candidates], picked: dict[str, int]) -> ir.Model:
    """A model with some weights, by name, as candidates have them."""
    made = model.clone()
    for choice, entry in zip(choices(made, "int8"), found, strict=True):
        if entry.name not in picked:
            continue
        solved = entry.solved[picked[entry.name]]
        weight = choice.weight
        if solved.shift is not None:
            add_to_bias(made, own_bias(made, weight.uses[0], weight.rows), solved.shift)
        array = solved.decoded().T if weight.flipped else solved.decoded()
        weight.value.const_value = ir.tensor(np.ascontiguousarray(array).reshape(weight.shape), name=weight.name)
    return made


def error(model: ir.Model, original: ir.Model, feeds: list[dict[str, Any]]) -> float:
    ours, theirs = Reference(model), Reference(original)
    return relative_error([ours.run(f) for f in feeds], [theirs.run(f) for f in feeds])


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("network", [image_network, text_network])
def test_measured_errors_are_those_of_the_changed_model(network: Any, calibrated: bool) -> None:
    model, feeds = network(), samples(network(), 8)
    found = tried(model.clone(), feeds, calibrated)
    held_out = [feeds[0], feeds[-1]]  # every fourth of eight, ends included
    for entry in found:
        assert entry.schemes == SCHEMES
        for number in probed(entry.layer_errors):
            true = error(replaced(model, found, {entry.name: number}), model, held_out)
            assert entry.errors[number] == pytest.approx(true, rel=1e-3)
        assert (np.diff(entry.errors[np.argsort(entry.layer_errors)]) > -0.3 * entry.errors.max()).all()


def test_errors_of_layers_add_up() -> None:
    """Over all combinations of coarse and fine layers the sum of the table predicts the error of the whole within a factor of two."""
    model, feeds = text_network(width=24), samples(text_network(width=24), 24)
    found = tried(model.clone(), feeds, calibrated=True)
    predicted, true = [], []
    for picked in itertools.product((0, 2, 4), repeat=len(found)):
        predicted.append(sum(float(e.errors[p]) for e, p in zip(found, picked, strict=True)))
        names = {e.name: p for e, p in zip(found, picked, strict=True)}
        true.append(error(replaced(model, found, names), model, feeds))
    ratio = np.array(true) / predicted
    assert ratio.min() > 0.5
    assert ratio.max() < 2
    assert np.corrcoef(np.log(true), np.log(predicted))[0, 1] > 0.98


def test_workers_change_nothing_and_refusals_are_kept() -> None:
    feeds = samples(text_network(), 5)
    one, three = (tried(text_network(), feeds, True, workers) for workers in (1, 3))
    for a, b in zip(one, three, strict=True):
        assert np.array_equal(a.errors, b.errors)
        assert a.layer_errors == b.layer_errors


def test_relative_error_of_outputs() -> None:
    wanted = [{"a": np.array([3.0, 4.0]), "b": np.zeros(2)}, {"a": np.array([0.0, 5.0]), "b": np.zeros(2)}]
    found = [{"a": np.array([3.0, 3.0]), "b": np.zeros(2)}, {"a": np.array([2.0, 5.0]), "b": np.zeros(2)}]
    assert relative_error(found, wanted) == pytest.approx((5 / 50 + 0) / 2)
    assert relative_error([{"a": f["a"]} for f in found], wanted) == pytest.approx(5 / 50 / 2)
    found[0]["b"] = np.ones(2)
    assert relative_error(found, wanted) == np.inf
