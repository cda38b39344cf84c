"""`bench accuracy`: rivals answer what scores ask, points are compared the right way round, and rows say so."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from bench import accuracy, bars, scores
from bench.__main__ import main
from bench.accuracy import HEADERS, Made, Point, Turn, behind, row
from bench.answers import Answers, Questions, save_feeds
from bench.bars import BARS, RIVALS, Bar
from bench.contests import Candidate, of
from bench.environments import FAMILIES, worker_command
from bench.interleave import CannotError, Worker
from bench.scores import SAMPLES, turned
from bench.zoo import MissingData, get
from bench.zoo.base import Array, ZooModel
from bench.zoo.metrics import Accuracy
from sparsec.frontend import load_model
from sparsec.recipe import load_recipe
from sparsec.reference import Reference, onnx_bytes
from tests.models import DIGITS_MLP, digits


def test_rivals_answer_what_was_asked(tmp_path: Path) -> None:
    rng = np.random.default_rng()
    feeds = [{"a": rng.normal(size=(2, 3)), "b": np.array([i])} for i in range(4)]
    questions = Questions(lambda feed: [feed["a"] * 2])
    for feed in (*feeds, feeds[1]):
        np.testing.assert_array_equal(questions.run(feed)[0], feed["a"] * 2)
    assert len(questions.feeds) == 4
    save_feeds(tmp_path / "in.npz", list(questions.feeds.values()))
    with np.load(tmp_path / "in.npz") as asked:
        np.savez(tmp_path / "out.npz", **{"0": asked["a"] * 3, "1": asked["b"]})
    answers = Answers(questions, tmp_path / "out.npz")
    for feed in reversed(feeds):
        np.testing.assert_array_equal(answers.run(feed)[0], feed["a"] * 3)
        np.testing.assert_array_equal(answers.run(feed)[1], feed["b"])
    with pytest.raises(KeyError):
        answers.run({"a": np.zeros((2, 3)), "b": np.array([0])})


def test_onnxruntimes_quantiser_answers_for_a_compressed_model(tmp_path: Path) -> None:
    (train, _), (images, _) = digits()
    (tmp_path / "m.onnx").write_bytes(onnx_bytes(load_model(DIGITS_MLP, None, {"N": 1})))
    feeds = [{"x": x[None]} for x in images[:20].reshape(-1, 64)]
    questions = Questions(Reference(DIGITS_MLP).run)
    dense = [questions.run(feed)["logits"] for feed in feeds]
    save_feeds(tmp_path / "in.npz", feeds)
    save_feeds(tmp_path / "calibration.npz", [{"x": x[None]} for x in train[:20].reshape(-1, 64)])
    job = {
        "kind": "outputs", "onnx": str(tmp_path / "m.onnx"), "calibration": str(tmp_path / "calibration.npz"),
        "inputs": str(tmp_path / "in.npz"), "outputs": str(tmp_path / "out.npz"), "threads": 1, "transformer": False,
    }  # fmt: skip
    errors = {}
    with Worker(worker_command("ort_quantiser", 1)) as worker:
        for variant in ("rtn4-g32", "rtn2-g32", "static"):
            worker.prepare({**job, "variant": variant})
            assert 2000 < worker.stored < 30000
            answers = Answers(questions, tmp_path / "out.npz")
            found = [answers.run(feed)[0] for feed in feeds]
            errors[variant] = np.linalg.norm(np.subtract(found, dense)) / np.linalg.norm(dense)
        with pytest.raises(CannotError, match="no variant rtn4"):
            worker.prepare({**job, "variant": "rtn4"})
    assert 0 < errors["rtn4-g32"] < 0.15 < errors["rtn2-g32"] < 1
    assert 0 < errors["static"] < 0.5


def test_behind_knows_what_is_better() -> None:
    points = [Point("a", 0.9, 1), Point("b", 0.8, 1), Point("c", 0.7, 1)]
    assert behind(0.8, points, lower_is_better=False) == ["a"]
    assert behind(0.8, points, lower_is_better=True) == ["c"]
    assert behind(0.95, points, lower_is_better=False) == []


def test_a_row_shows_the_best_of_each_rival() -> None:
    points = [
        Point("ort_quantiser rtn4-g32", 4.5, 1),
        Point("ort_quantiser hqq4-g32", 4.25, 1),
        Point("data-free", 5, 1),
    ]
    result = {
        "model": "m", "recipe": "int4", "bits": 4.6, "score": "perplexity", "dense": 4.0, "sparsec": 4.3, "bar": "<= 1.1 x dense",
        "met": True, "lower_is_better": True, "behind": ["ort_quantiser hqq4-g32"], "seconds": 3.0,
        "rivals": [p.__dict__ for p in points], "lost": [-0.3],
    }  # fmt: skip
    cells = row(result)
    assert cells[4:] == [
        "4", "4.3", "<= 1.1 x dense", "met", "5", "4.25 hqq4-g32", "none", "no: ort_quantiser hqq4-g32", "3",
    ]  # fmt: skip
    assert len(cells) == len(HEADERS)


def test_several_calibrations_are_averaged() -> None:
    bar = Bar("m", "int4", "top-1 %", "lose at most", 1.0)
    made = Made(lambda feed: [], 4.0, 100, 3.0)
    turns = [
        Turn(80.0, 78.5, made, [Point("a", 77.0, 1), Point("b", 79.5, 1)]),
        Turn(82.0, 81.5, made, [Point("a", 82.0, 1)]),
    ]
    result = accuracy._result(bar, turns)
    assert (result["dense"], result["sparsec"], result["met"], result["lost"]) == (81.0, 80.0, True, [1.5, 0.5])
    assert result["rivals"] == [{"who": "a", "score": 79.5, "nbytes": 1}]  # b has no answer in the second
    assert row(result)[4:8] == ["81", "80 (0.5 to 1.5 lost)", "-1.0", "met"]


def test_each_turn_calibrates_on_others(monkeypatch: pytest.MonkeyPatch) -> None:
    items = list(range(2 * SAMPLES + 100))
    seen = [set(turned(items, turn)[-SAMPLES:]) for turn in range(3)]
    assert seen[0] == set(items[-SAMPLES:])
    assert seen[1] == set(items[-2 * SAMPLES : -SAMPLES])
    assert seen[2] == {*items[:100], *items[-(SAMPLES - 100) :]}
    assert all(sorted(turned(items, turn)) == items for turn in range(9))

    examples = [({"x": np.array([i])}, i % 10) for i in items]
    model = ZooModel("m", real=lambda: (feed for feed, _ in examples), metric=Accuracy(lambda: iter(examples), 100.0))
    monkeypatch.setattr(scores, "get", lambda name: model)
    scores.inputs.cache_clear()
    for turn in range(3):
        asked: list[int] = []

        def run(feed: Mapping[str, Array], asked: list[int] = asked) -> list[Array]:
            asked.append(int(feed["x"][0]))
            return [np.eye(10)[asked[-1] % 10]]

        assert scores.score("m", "top-1 %", run, turn) == 100
        calibrated = {int(feed["x"][0]) for feed in scores.calibration("m", turn)}
        assert calibrated == seen[turn]
        assert sorted({*asked, *calibrated}) == items
        assert len(asked) + len(calibrated) == len(items)
    scores.inputs.cache_clear()


def test_several_calibrations_need_labelled_inputs() -> None:
    try:
        get("stories_prefill")
    except (MissingData, ModuleNotFoundError) as missing:
        pytest.skip(str(missing))
    with pytest.raises(SystemExit, match="stories_prefill has one set of calibration inputs"):
        main(["accuracy", "stories_prefill", "--calibrations", "2"])
    with pytest.raises(SystemExit, match="at least one"):
        main(["accuracy", "stories_prefill", "--calibrations", "0"])


def test_bars_and_their_rivals() -> None:
    reached = {(bar.recipe, bar.targets) for bar in BARS}
    assert set(RIVALS) <= reached
    assert {rival.family for rivals in RIVALS.values() for rival in rivals} <= set(FAMILIES)
    for bar in [bar for bar in BARS if not (bar.budget or bar.reorder or bar.depthwise) and bar.scope == "layer"]:
        assert load_recipe(bar.recipe).rules[0].activations == bar.activations
    lose = Bar("m", "int4", "top-1 %", "lose at most", 0.5)
    assert (lose.met(79.5, 80), lose.met(79.4, 80), lose.words(), lose.rivals) == (
        True,
        False,
        "-0.5",
        RIVALS["int4", "*"],
    )
    assert Bar("m", "s2:4", "top-1 %", "lose at most", 0.8).met(80.0, 100 * (1616 / 2000))  # 80.80000000000001
    times = Bar("m", "s50", "perplexity", "at most times", 2)
    assert (times.met(8, 4), times.met(8.1, 4), times.lower_is_better, times.rivals) == (True, False, True, ())


@pytest.mark.slow
def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        get("kws")
    except MissingData as missing:
        pytest.skip(str(missing))
    monkeypatch.setenv("SPARSEC_BENCH", str(tmp_path))
    monkeypatch.setattr(accuracy, "BARS", [Bar("kws", "int4", "top-1 %", "lose at most", 5.0)])
    rivals = (*of("ort_quantiser", "static"), Candidate("openvino", "ptq"))
    monkeypatch.setattr(bars, "RIVALS", {("int4", "*"): rivals})
    path = tmp_path / "result.json"
    main(["accuracy", "kws", "--json", str(path)])
    (result,) = json.loads(path.read_text())["results"]
    assert result["met"]
    assert {point["who"] for point in result["rivals"]} == {"ort_quantiser static", "data-free"}
    assert "kws, openvino ptq: not set up: python -m bench setup openvino" in capsys.readouterr().out
