"""`python -m bench accuracy`: what compression costs in accuracy, beside the rivals that offer the same bits.

Everyone calibrates on the same inputs (at most 256, no labels), the last of the model's real ones; scores are over the others.
Ours is portable ONNX in onnxruntime; that a program computes the same is `python -m bench exactness`'s business.

A few hundred labels tell little of one calibration: with several, everyone calibrates on others of the inputs each time, is scored
on the rest, and a row shows means.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from bench.answers import Answers, Questions, save_feeds
from bench.bars import BARS, Bar
from bench.contests import Candidate
from bench.environments import NotSetUpError, worker_command
from bench.interleave import CannotError, Worker, WorkerError
from bench.output import markdown, write_json
from bench.results import absent_text
from bench.scores import SAMPLES, calibration, dense_score, has_turns, score
from bench.zoo import Run, ZooModel, get
from sparsec.codegen.machine import cpu_count

HEADERS = (
    "model", "recipe", "bits/weight", "score", "dense", "sparsec", "bar", "", "data-free", "onnxruntime", "NNCF", "above all",
    "seconds",
)  # fmt: skip
COLUMNS = {"onnxruntime": "ort_quantiser", "NNCF": "openvino"}
TRANSFORMERS = ("minilm", "stories_prefill")


@dataclass(frozen=True)
class Point:
    """Somebody's score at one scheme, and the bytes of the compressed model."""

    who: str
    score: float
    nbytes: int


def run(
    names: Sequence[str], schemes: Sequence[str], with_rivals: bool, calibrations: int, json_path: Path | None
) -> int:
    """Print the table; 1 if a bar is missed or a rival's point lies above ours.

    Raises:
        SystemExit: not a number of calibrations, or several of a model that has one set of inputs for it.
    """
    if calibrations < 1:
        raise SystemExit(f"--calibrations {calibrations}: at least one")
    for name in names if calibrations > 1 else ():
        if not has_turns(name):
            raise SystemExit(
                f"{name} has one set of calibration inputs; --calibrations is for classifiers of labelled inputs"
            )
    absent: dict[str, str] = {}
    results = []
    for name in names:
        bars = [bar for bar in BARS if bar.model == name and (not schemes or {bar.recipe, bar.scheme} & set(schemes))]
        found: list[dict[tuple[Candidate, str], Point]] = [{} for _ in range(calibrations)]
        for turn in range(calibrations) if with_rivals and bars else ():
            with tempfile.TemporaryDirectory(prefix="sparsec-bench-") as folder:
                found[turn] = _rivals(name, bars, Path(folder), absent, turn)
        for bar in bars:
            turns = []
            for turn in range(calibrations):
                which = f", calibration {turn + 1} of {calibrations}" if calibrations > 1 else ""
                print(f"{name}, {bar.recipe}, {bar.score}{which} ...", file=sys.stderr, flush=True)
                turns.append(_turn(bar, found[turn], turn))
            results.append(_result(bar, turns))
            write_json(json_path, {"samples": SAMPLES, "results": results, "absent": absent})
    print(markdown(HEADERS, [row(result) for result in results], left=2))
    print(absent_text(absent), end="")
    return 0 if all(result["met"] and not result["behind"] for result in results) else 1


@dataclass(frozen=True)
class Turn:
    """A bar's figures with one set of calibration inputs."""

    dense: float
    ours: float
    made: Made
    points: list[Point]
    """The others'."""


def _turn(bar: Bar, rivals: dict[tuple[Candidate, str], Point], turn: int) -> Turn:
    made, free = _compressed(bar, turn), _compressed(bar, None)
    assert made is not None
    points = [rivals[rival, bar.score] for rival in bar.rivals if (rival, bar.score) in rivals]
    if free is not None:
        points.append(Point("data-free", score(bar.model, bar.score, free.run, turn), free.nbytes))
    return Turn(dense_score(bar.model, bar.score, turn), score(bar.model, bar.score, made.run, turn), made, points)


def _result(bar: Bar, turns: Sequence[Turn]) -> dict[str, Any]:
    """A row's figures: means, each rival's over the turns that it has an answer for in all."""
    dense, ours = mean(turn.dense for turn in turns), mean(turn.ours for turn in turns)
    points = []
    for who in dict.fromkeys(point.who for turn in turns for point in turn.points):
        its = [point for turn in turns for point in turn.points if point.who == who]
        if len(its) == len(turns):
            points.append(Point(who, mean(point.score for point in its), its[0].nbytes))
    return {
        "model": bar.model, "recipe": bar.recipe, "targets": bar.targets, "score": bar.score, "dense": dense, "sparsec": ours,
        "limit": bar.limit, "how": bar.how, "bar": bar.words(), "met": bar.met(ours, dense),
        "lost": [turn.dense - turn.ours for turn in turns], "bits": mean(turn.made.bits for turn in turns),
        "bytes": max(turn.made.nbytes for turn in turns), "seconds": mean(turn.made.seconds for turn in turns),
        "rivals": [point.__dict__ for point in points], "behind": behind(ours, points, bar.lower_is_better),
        "lower_is_better": bar.lower_is_better,
    }  # fmt: skip


def behind(ours: float, points: Sequence[Point], lower_is_better: bool) -> list[str]:
    """Whose score is better than ours."""
    sign = -1 if lower_is_better else 1
    return [point.who for point in points if sign * point.score > sign * ours]


def row(result: dict[str, Any]) -> list[str]:
    """The cells of a result; 'none' where a rival offers nothing of that kind."""
    best = max if not result["lower_is_better"] else min
    cells = []
    for family in ("data-free", *COLUMNS.values()):
        points = [p for p in result["rivals"] if p["who"].split()[0] == family]
        chosen = best(points, key=lambda point: point["score"]) if points else None
        variant = chosen["who"].partition(" ")[2] if chosen else ""
        cells.append(f"{chosen['score']:.4g}{' ' + variant if variant else ''}" if chosen else "none")
    ours, lost = f"{result['sparsec']:.4g}", result["lost"]
    if len(lost) > 1:
        ours += f" ({min(lost):.1f} to {max(lost):.1f} lost)"
    return [
        result["model"], result["recipe"], f"{result['bits']:.2f}", result["score"], f"{result['dense']:.4g}", ours, result["bar"],
        "met" if result["met"] else "missed", *cells,
        "yes" if not result["behind"] else "no: " + ", ".join(result["behind"]), f"{result['seconds']:.0f}",
    ]  # fmt: skip


# --- ours ---


@dataclass(frozen=True)
class Made:
    run: Run
    bits: float
    """Stored bits per weight of the compressed layers, everything counted."""
    nbytes: int
    seconds: float


def _compressed(bar: Bar, turn: int | None) -> Made | None:
    """Compressed as the bar says, calibrated or (None) not; None for what cannot be had without inputs."""
    if turn is None and bar.activations == "int8-static":
        return None
    if bar.budget:
        return _within(bar.model, bar.budget, bar.program, turn)
    return _compressed_as(replace(bar, score="", how="", limit=0.0), turn)


@cache
def _compressed_as(asked: Bar, turn: int | None) -> Made:
    """A model as a bar asks, whatever score it is for."""
    rule = {"activations": asked.activations, "sparsify": {"scope": asked.scope, "reorder": asked.reorder}}
    own = [{"targets": "DepthwiseConv", "scheme": asked.depthwise}] if asked.depthwise else []
    start = time.perf_counter()
    made = compressed(asked.model, asked.targets, {"scheme": asked.scheme, **rule}, own, turn=turn)
    seconds = time.perf_counter() - start
    layers = [row.record for row in made.report.layers if row.record.rule is not None]
    bits = 8 * sum(r.nbytes for r in layers) / sum(int(np.prod(r.shape)) for r in layers)
    data = made.to_bytes()
    return Made(runner(data, get(asked.model)), bits, len(data), seconds)


def compressed(
    name: str, targets: str, rule: dict[str, Any], others: Sequence[dict[str, Any]] = (), *, turn: int | None
) -> Any:
    """A model of the zoo, compressed by a rule for `targets` and by `others`; lookup tables, tied ones too, stay as they are.

    turn: which inputs calibrate; None: none do.
    """
    import sparsec

    model = get(name)
    rules = [{"targets": targets, "ignore": "Gather", "optional": True, **rule}, *others]
    return sparsec.compress(
        model.onnx_file(), {"version": 1, "rules": rules}, input_shapes=model.input_shapes,
        input_values=model.input_values, verify=False, calibration=None if turn is None else calibration(name, turn),
    )  # fmt: skip


@cache
def _within(name: str, budget: str, program: bool, turn: int | None) -> Made:
    """A model within a budget."""
    import sparsec

    model = get(name)
    bound: dict[str, Any] = {"input_shapes": model.input_shapes, "input_values": model.input_values, "verify": False}
    given = None if turn is None else calibration(name, turn)
    start = time.perf_counter()
    made: Any = (sparsec.compile if program else sparsec.compress)(
        model.onnx_file(), budget=budget, calibration=given, **bound
    )
    seconds = time.perf_counter() - start
    bits = made.report.front.chosen.bits
    if program:
        return Made(lambda feed: list(made.run(feed).values()), bits, made.weights_bytes, seconds)
    data = made.to_bytes()
    return Made(runner(data, model), bits, len(data), seconds)


def runner(data: bytes, model: ZooModel) -> Run:
    """Portable ONNX in onnxruntime; inputs that the model has fixed are added."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = cpu_count()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # beside others it stands still
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options)
    names = {value.name for value in session.get_inputs()}
    return lambda feed: session.run(None, {k: v for k, v in {**feed, **model.input_values}.items() if k in names})


# --- rivals ---


def _rivals(
    name: str, bars: Sequence[Bar], folder: Path, absent: dict[str, str], turn: int
) -> dict[tuple[Candidate, str], Point]:
    """Scores of all rivals of these rows; who has none, and why, goes to `absent`."""
    model, wanted = get(name), list(dict.fromkeys(bar.score for bar in bars))
    questions = Questions(model.reference_run(cpu_count()))
    for what in wanted:
        score(name, what, questions.run, turn)
    fixed = model.input_values
    save_feeds(folder / "inputs.npz", [{**feed, **fixed} for feed in questions.feeds.values()])
    save_feeds(folder / "calibration.npz", [{**feed, **fixed} for feed in calibration(name, turn)])
    job = {
        "kind": "outputs", "onnx": str(model.onnx_file()), "calibration": str(folder / "calibration.npz"), "threads": cpu_count(),
        "inputs": str(folder / "inputs.npz"), "outputs": str(folder / "outputs.npz"), "transformer": name in TRANSFORMERS,
    }  # fmt: skip
    found = {}
    for rival in dict.fromkeys(rival for bar in bars for rival in bar.rivals):
        print(f"{name}, {rival} ...", file=sys.stderr, flush=True)
        try:
            with Worker(worker_command(rival.family, cpu_count())) as worker:
                worker.prepare({**job, "variant": rival.variant})
                stored = worker.stored
        except (NotSetUpError, CannotError) as reason:
            absent[f"{name}, {rival}"] = str(reason)
            continue
        except WorkerError as error:
            absent[f"{name}, {rival}"] = f"failed: {str(error).splitlines()[0][:200] if str(error) else 'no message'}"
            continue
        answers = Answers(questions, folder / "outputs.npz")
        for what in wanted:
            found[rival, what] = Point(str(rival), score(name, what, answers.run, turn), stored)
    return found
