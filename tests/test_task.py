"""Budgets on the task: what labelled examples or a metric say about the result decides, and the report tells how sure that is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import sparsec
from sparsec.cli import main
from sparsec.codegen.choice import Policy
from sparsec.costs import ProgramCosts
from sparsec.errors import SparsecError
from sparsec.frontend import load_model
from sparsec.passes import compress as compress_graph
from sparsec.target import resolve_target
from tests.models import DIGITS, DIGITS_MLP, digits, held_out

SCHEMES = "int8,cb4,cb2-c,ternary-c,binary-c,s80,s90,s95"
N1: dict[str, Any] = {"input_shapes": {"N": 1}, "verify": False}
TRAINED = digits()[0][0][:100].reshape(-1, 64)


def noisy(seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Held-out digits so noisy that the network is right on four of five: small changes of it show."""
    images, labels = held_out()
    x = images.reshape(-1, 64) + np.random.default_rng(seed).normal(0, 0.3, (360, 64))
    return x.astype(np.float32), labels


X, Y = noisy()
DECIDED: dict[str, Any] = {
    "calibration": {"x": TRAINED},
    "validation": {"x": X},
    "labels": Y,
    "candidates": SCHEMES,
    **N1,
}


def loss_of(result: Any, x: NDArray[np.float32] = X, y: NDArray[np.int64] = Y) -> float:
    """What the result loses of top-1."""
    found = sparsec.validate(DIGITS_MLP, result.to_bytes(), {"x": x}, y, input_values=None, input_shapes={}).score
    assert found is not None
    return -found.difference


@pytest.fixture(scope="module")
def within() -> dict[float, Any]:
    return {p: sparsec.compress(DIGITS_MLP, budget=f"{p} points", **DECIDED) for p in (0.5, 3.0, 30.0)}


def test_the_limit_is_kept_and_used(within: dict[float, Any]) -> None:
    for points, result in within.items():
        front = result.report.front
        assert front.task.score.examples == 360
        assert -front.task.score.difference == pytest.approx(loss_of(result))
        assert loss_of(result) <= points / 100 + 1e-9
        low, high = front.task.score.interval
        assert low <= front.task.score.difference <= high
        assert "360 validation samples" in front.summary()
        assert f"{front.task.score.difference:+.4f}" in front.summary()
    sizes = [len(result.to_bytes()) for result in within.values()]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] > sizes[-1]
    plain = sparsec.compress(DIGITS_MLP, "int8", **N1)
    assert sizes[0] < len(plain.to_bytes())


def test_few_examples_are_said_to_be_few(within: dict[float, Any]) -> None:
    assert any("too few to be sure" in note for note in within[0.5].report.front.notes)  # 3 of 360 are 0.83 points
    assert not any("too few to be sure" in note for note in within[30.0].report.front.notes)


def test_the_recipe_makes_it_again(within: dict[float, Any]) -> None:
    result = within[3.0]
    again = sparsec.compress(DIGITS_MLP, result.recipe, calibration={"x": TRAINED}, **N1)
    assert again.to_bytes() == result.to_bytes()
    search = sparsec.compress(DIGITS_MLP, budget="3 points", **DECIDED)
    assert search.to_bytes() == result.to_bytes()
    assert search.report.to_json() == result.report.to_json()


def test_labelled_calibration_samples_are_shared_out() -> None:
    given = {"x": X, "labels": Y}
    result = sparsec.compress(DIGITS_MLP, budget="2 points", calibration=given, candidates=SCHEMES, **N1)
    front = result.report.front
    assert front is not None
    assert front.task is not None
    assert front.task.samples == 180
    assert front.examples == "180 samples that calibration has not seen"
    assert front.inputs == "180 calibration samples"
    assert loss_of(result, X[180:], Y[180:]) <= 0.02 + 1e-9
    again = sparsec.compress(DIGITS_MLP, result.recipe, calibration=given, **N1)
    assert again.to_bytes() == result.to_bytes()
    listed = [{"x": row[None]} for row in X]
    other = sparsec.compress(DIGITS_MLP, budget="2 points", calibration=listed, labels=Y, candidates=SCHEMES, **N1)
    assert other.to_bytes() == result.to_bytes()
    recipe = {"version": 1, "calibrate": {"samples": 64}}
    most = sparsec.compress(DIGITS_MLP, recipe, budget="2 points", calibration=given, candidates=SCHEMES, **N1)
    assert most.report.front is not None
    assert most.report.front.examples == "296 samples that calibration has not seen"


def test_where_there_are_too_few_all_of_them_decide() -> None:
    given = {"x": X[:40], "labels": Y[:40]}
    front = sparsec.compress(DIGITS_MLP, budget="9% task", calibration=given, candidates=SCHEMES, **N1).report.front
    assert front is not None
    assert front.task is not None
    assert front.task.samples == 40
    assert any("too few to keep some" in note for note in front.notes)


def margin(outputs: dict[str, NDArray[Any]], labels: Any) -> NDArray[Any]:
    """How far the right logit is ahead of the mean."""
    logits = outputs["logits"]
    return logits[np.arange(len(labels)), labels] - logits.mean(axis=1)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_metric_may_move_neither_way(sign: int) -> None:
    def score(outputs: dict[str, NDArray[Any]], labels: Any) -> NDArray[Any]:
        return sign * margin(outputs, labels)

    results = [sparsec.compress(DIGITS_MLP, budget=f"{p}% task", metric=score, **DECIDED) for p in (0.2, 10)]
    for percent, result in zip((0.2, 10), results, strict=True):
        found = result.report.front.task.score  # type: ignore[union-attr]
        assert found.name == "score"
        assert abs(found.difference) <= percent / 100 * abs(found.dense) * (1 + 1e-6)
    assert len(results[0].to_bytes()) > len(results[1].to_bytes())
    whole = sparsec.compress(DIGITS_MLP, budget="10% task", metric=score, aggregate=np.median, **DECIDED)
    assert whole.report.front.task.score.dense != results[1].report.front.task.score.dense  # type: ignore[union-attr]


def test_with_size_or_time_all_hold(within: dict[float, Any]) -> None:
    limit = len(within[3.0].to_bytes()) + 500
    result = sparsec.compress(DIGITS_MLP, budget=f"{limit}B,3 points", **DECIDED)
    assert len(result.to_bytes()) <= limit
    assert loss_of(result) <= 0.03 + 1e-9
    timed = sparsec.compress(DIGITS_MLP, budget="1s,3 points", target="x86-avx2", **DECIDED)
    assert timed.to_bytes() == within[3.0].to_bytes()
    both = sparsec.compress(DIGITS_MLP, budget="1%,30 points", **DECIDED)
    assert both.report.front.error <= 0.01  # type: ignore[union-attr]
    program = sparsec.compile(DIGITS_MLP, budget="3 points", **DECIDED)
    assert program.report.front.task is not None  # type: ignore[union-attr]
    found = sparsec.validate(DIGITS_MLP, program, {"x": X}, Y).score
    assert found is not None
    assert -found.difference <= 0.03 + 2 / 360  # the program rounds otherwise, now and then


def test_what_cannot_be_met_says_what_is_nearest(within: dict[float, Any]) -> None:
    least = len(within[30.0].to_bytes())
    with pytest.raises(SparsecError, match=r"the nearest has 0\.\d+ MB, error .* %, top-1 0\.\d+ instead of 0\.\d+"):
        sparsec.compress(DIGITS_MLP, budget=f"{least}B,0.01 points", **DECIDED)
    rule = {"version": 1, "min_elements": 128, "rules": [{"targets": "hidden.weight", "scheme": "s98-binary-c"}]}
    with pytest.raises(SparsecError, match=r"cannot be met: after .* top-1"):
        sparsec.compress(DIGITS_MLP, rule, budget="0.01 points", **DECIDED)
    with pytest.raises(SparsecError, match="time: the nearest that the candidates reach"):
        sparsec.compress(DIGITS_MLP, budget="1e-6us,3 points", target="x86-avx2", **DECIDED)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, r"no labels for the validation samples.*--labels set.npz"),
        ({"validation": None, "labels": None}, "no labels for the calibration samples"),
        ({"validation": None, "calibration": None}, "no examples to measure"),
        ({"labels": Y[:-1]}, "359 labels for 360 samples"),
        ({"validation": None}, "360 labels for 100 samples"),
        ({"labels": Y + 1}, "has the classes 0 to 9"),
        ({"labels": "klass"}, "no array 'klass'"),
        ({"validation": {"z": X}}, "'x' is missing"),
        ({"budget": "0.5%"}, "validation: that is for a budget on the task.*the budget is 0.5 %"),
        ({"budget": None, "validation": None, "metric": margin}, "metric: that is for a budget on the task.*no budget"),
        ({"metric": lambda outputs, labels: np.nan}, "must give numbers"),
        ({"aggregate": np.median}, "aggregate belongs to metric"),
    ],
)
def test_bad_input(change: dict[str, Any], message: str) -> None:
    arguments: dict[str, Any] = {"budget": "1 point", **DECIDED} | change
    if arguments["budget"] is None:
        del arguments["candidates"]
    with pytest.raises(SparsecError, match=message):
        sparsec.compress(DIGITS_MLP, **arguments)


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez("set.npz", x=X, labels=Y)
    np.savez("plain.npz", x=TRAINED)

    def run(command: str, *arguments: str, code: int = 0) -> str:
        capsys.readouterr()
        assert main([command, str(DIGITS_MLP), *arguments, "--input-shapes", "N=1", "--no-verify", "--force"]) == code
        captured = capsys.readouterr()
        return captured.err if code else captured.out

    budget = ("--budget", "3 points", "--candidates", SCHEMES)
    text = run("compress", "a.onnx", *budget, "--labels", "set.npz")
    assert "on 180 samples that calibration has not seen" in text
    split = sparsec.compress(DIGITS_MLP, budget="3 points", calibration={"x": X, "labels": Y}, candidates=SCHEMES, **N1)
    assert Path("a.onnx").read_bytes() == split.to_bytes()
    apart = ("--labels", "set.npz", "--calibration", "plain.npz")
    data = json.loads(run("compress", "b.onnx", *budget, *apart, "--json"))
    assert data["front"]["task"]["score"]["examples"] == 360
    assert data["front"]["task"]["score"]["interval"][0] <= data["front"]["task"]["score"]["difference"]
    assert data["front"]["examples"] == "360 validation samples"
    assert Path("b.onnx").read_bytes() == sparsec.compress(DIGITS_MLP, budget="3 points", **DECIDED).to_bytes()
    data = json.loads(run("compile", "-o", "bundle", *budget, "--calibration", "set.npz", "--json"))
    assert data["front"]["examples"] == "180 samples that calibration has not seen"
    assert "no labels for the plain.npz samples" in run("compress", "c.onnx", *budget, "--labels", "plain.npz", code=1)
    assert "budget on the task" in run("compress", "c.onnx", "--budget", "1%", "--labels", "set.npz", code=2)
    assert "budget on the task" in run("compress", "c.onnx", "--labels", "set.npz", code=2)


def test_a_time_that_only_large_errors_keep() -> None:
    """The search begins with a small error; no choice has that within the time."""
    target = resolve_target("x86-avx2")
    dense = ProgramCosts(target, Policy())(compress_graph(load_model(DIGITS, input_shapes={"N": 1}))).seconds
    assert dense is not None
    images, labels = held_out()
    given: dict[str, Any] = {
        "validation": {"x": images}, "labels": labels, "target": "x86-avx2", "candidates": "int8,s50,s90,s2x1@75", **N1
    }  # fmt: skip
    front = sparsec.compress(DIGITS, budget=f"{0.9e3 * dense}ms,80 points", **given).report.front
    assert front is not None
    assert front.seconds is not None
    assert front.seconds <= 0.9 * dense
    assert front.error > 0.05
    assert front.inputs == "random inputs"
    with pytest.raises(SparsecError, match=r"cannot be met: .*the nearest has .* ms"):
        sparsec.compress(DIGITS, budget=f"{0.9e3 * dense}ms,0.01 points", **given)
