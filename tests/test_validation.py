"""Validation of compressed models: labels, metrics, outputs alone, bad input, the command."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

import sparsec
from sparsec.cli import main
from sparsec.errors import InputError, SparsecError, VerificationError
from tests.models import DIGITS_MLP, held_out

N1 = {"N": 1}


def classifier(weight: np.ndarray, rows: int = 1, tail: tuple[int, ...] = ()) -> bytes:
    """x [rows, K] -> y = x @ weight, [rows, C], or reshaped to [rows, C, *tail]."""
    k, classes = weight.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["m"]), helper.make_node("Reshape", ["m", "shape"], ["y"])]
    shape = [rows, classes, *tail]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
        [
            numpy_helper.from_array(weight.astype(np.float32), "w"),
            numpy_helper.from_array(np.array(shape, np.int64), "shape"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.checker.check_model(model)
    data: bytes = model.SerializeToString()
    return data


def planted(rows: int = 1, tail: tuple[int, ...] = ()) -> tuple[bytes, bytes, np.ndarray, np.ndarray]:
    """(right, worse, x [N, 4], labels): one model is always right, the other takes every second 3 for a 0."""
    rng = np.random.default_rng()
    labels = rng.permutation(np.repeat(np.arange(4), 10))
    x = np.eye(5)[labels] + rng.normal(0, 0.01, (40, 5))
    x[:, 4] = 0
    x[np.flatnonzero(labels == 3)[::2], 4] = 1
    right, worse = np.eye(5)[:, :4], np.eye(5)[:, :4]
    worse[4, 0] = 9.0
    return classifier(right, rows, tail), classifier(worse, rows, tail), x.astype(np.float32), labels


@pytest.mark.parametrize(("rows", "tail"), [(1, ()), (4, ()), (1, (1, 1))])
def test_finds_the_class_and_the_examples_that_compression_lost(rows: int, tail: tuple[int, ...]) -> None:
    right, worse, x, labels = planted(rows, tail)
    found = sparsec.validate(right, worse, {"x": x}, labels)
    assert found.score is not None
    assert (found.score.dense, found.score.compressed) == (1, pytest.approx(1 - 5 / 40))
    low, high = found.score.interval
    assert low < found.score.difference < high <= 0
    assert (found.score.p_value is None) == (rows > 1)
    assert found.classes[0].label == 3
    assert (found.classes[0].decisions, found.classes[0].difference) == (10, -0.5)
    places = [c.example * rows + c.decision for c in found.changed]
    assert places == list(np.flatnonzero(labels == 3)[::2])
    assert {(c.kind, c.label, c.dense, c.compressed) for c in found.changed} == {("lost", 3, 3, 0)}
    assert found.outputs[0].agreement == pytest.approx(1 - 5 / 40)
    back = sparsec.validate(worse, right, {"x": x}, labels)
    assert {c.kind for c in back.changed} == {"gained"}
    again = sparsec.validate(right, worse, {"x": x, "labels": labels}, "labels")
    assert again.to_json() == found.to_json()


def test_every_form_of_a_candidate(tmp_path: Path) -> None:
    x, labels = held_out()
    feeds = x[:40].reshape(-1, 64)
    small = sparsec.compress(DIGITS_MLP, "int2", input_shapes=N1, verify=False)
    program = sparsec.compile(DIGITS_MLP, recipe="int2", input_shapes=N1, verify=False)
    forms = (small, small.save(tmp_path / "small.onnx"), program, program.save(tmp_path / "bundle"))
    scores = [sparsec.validate(DIGITS_MLP, form, {"x": feeds}, labels[:40]).score for form in forms]
    assert Counter(scores) == Counter([scores[0]] * 4)
    plain = sparsec.validate(DIGITS_MLP, small, [{"x": row[None]} for row in feeds])
    assert plain.score is None
    assert plain.changed == []
    assert 0 < plain.outputs[0].error < 1
    assert plain.outputs[0].kl is None
    assert sparsec.validate(DIGITS_MLP, small, {"x": feeds}, logits=True).outputs[0].kl > 0


def _errors(outputs: dict[str, np.ndarray], labels: Any) -> np.ndarray:
    return np.abs(outputs["y"].argmax(1) - labels)


def test_metric_of_each_example_has_an_interval() -> None:
    right, worse, x, labels = planted()
    found = sparsec.validate(right, worse, {"x": x}, labels, metric=_errors)
    assert found.score is not None
    assert found.score.name == "_errors"
    assert (found.score.dense, found.score.compressed) == (0, pytest.approx(15 / 40))
    assert found.score.interval[0] > 0
    total = sparsec.validate(right, worse, {"x": x}, labels, metric=_errors, aggregate=np.max)
    assert (total.score.compressed, total.score.interval) == (3, (3, 3))
    whole = sparsec.validate(right, worse, {"x": x}, metric=lambda outputs, _: outputs["y"].sum())
    assert whole.score.interval is None
    assert whole.tables()[0].rows[0][5:] == ("-", "-")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": np.arange(39) % 4}, "39 labels for 40 samples .*; 40 are needed"),
        ({"labels": np.arange(40) % 5}, r"label 4 is 4; output 'y' \[1, 4\] has the classes 0 to 3"),
        ({"labels": np.arange(40) - 1}, "label 0 is -1"),
        ({"labels": np.full(40, np.nan)}, "labels hold NaN"),
        ({"labels": np.zeros(40)}, "labels are float64"),
        ({"labels": np.array(["cat"] * 40)}, "whole numbers"),
        ({"labels": np.zeros(0, int)}, "there are no labels"),
        ({"labels": "klass"}, "no array 'klass' to hold the labels; there are: x"),
        ({"samples": {"z": np.zeros((40, 5), np.float32)}}, "'x' is missing"),
        ({"samples": {"x": np.full((40, 5), np.nan, np.float32)}}, "sample 0: 'x' holds NaN"),
        ({"samples": {"x": np.zeros((40, 6), np.float32)}}, "side by side"),
        ({"samples": []}, "there is no sample"),
        ({"samples": 7}, "validation inputs are an .npz file"),
        ({"samples": "no.npz"}, "no such file"),
        ({"output": "z"}, "no output 'z'; it has: y"),
        ({"aggregate": np.max}, "aggregate belongs to metric"),
        ({"metric": lambda o, _: np.nan}, "not NaN"),
        ({"metric": lambda o, _: o["y"].sum(), "aggregate": np.max}, "gives one number"),
        ({"resamples": 1}, "resamples=1"),
    ],
    ids=lambda v: None if isinstance(v, dict) else v[:20],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    right, worse, x, labels = planted()
    arguments: dict[str, Any] = {"samples": {"x": x}, "labels": labels} | change
    with pytest.raises(InputError, match=message):
        sparsec.validate(right, worse, **arguments)


def test_models_that_do_not_belong_together() -> None:
    right, _, x, labels = planted()
    with pytest.raises(VerificationError, match="is it made from this model"):
        sparsec.validate(right, classifier(np.eye(5)), {"x": x}, labels)
    broken = np.eye(5)[:, :4]
    broken[0, 0] = np.nan
    with pytest.raises(VerificationError, match="sample 0: the compressed model gives NaN"):
        sparsec.validate(right, classifier(broken), {"x": x})
    with pytest.raises(InputError, match="the original gives NaN"):
        sparsec.validate(classifier(broken), right, {"x": x})
    regression = classifier(np.ones((5, 1)))
    with pytest.raises(InputError, match="one value a decision"):
        sparsec.validate(regression, regression, {"x": x}, labels)
    with pytest.raises(SparsecError, match="no such file"):
        sparsec.validate(right, "no.onnx", {"x": x})


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    right, worse, x, labels = planted()
    Path("a.onnx").write_bytes(right)
    Path("b.onnx").write_bytes(worse)
    np.savez("set.npz", x=x, labels=labels)
    np.savez("plain.npz", x=x)
    np.savez("more.npz", x=x, z=x)

    def run(*arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main(["verify", "a.onnx", "b.onnx", *arguments]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    text = run("--labels", "set.npz", "--worst", "2")
    assert "5 lost, 0 gained, 0 other" in text
    assert "worst classes (1 of 4 lost something)" in text
    assert sum(line.split()[1:2] == ["lost"] for line in text.splitlines()) == 2
    data = json.loads(run("--labels", "set.npz", "--json"))
    assert data["score"]["difference"] == -0.125
    assert len(data["changed"]) == 5
    assert data["seed"] == 0
    assert json.loads(run("--labels", "set.npz", "--json")) == data
    assert json.loads(run("--samples", "plain.npz", "--json"))["score"] is None
    assert "no array 'labels'" in run("--labels", "plain.npz", code=1)
    assert "'z' is no input" in run("--samples", "more.npz", code=1)
    assert "exclude each other" in run("--labels", "set.npz", "--tolerance", "1", code=2)
