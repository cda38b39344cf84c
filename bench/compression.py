"""`python -m bench compression`: how much accuracy a scheme costs, without data and calibrated, on real models.

Calibration inputs (at most 256, no labels) are the last of the model's real inputs; scores are over the others. Portable ONNX files
are scored in onnxruntime: what a compiled program computes is `python -m bench accuracy`'s business.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench.output import markdown, write_json
from bench.zoo import Run, ZooModel, get
from bench.zoo.base import Feed, in_order
from bench.zoo.models import story_windows

HEADERS = ("model", "recipe", "bits/weight", "score", "dense", "data-free", "calibrated", "bar", "", "seconds")
SAMPLES = 256


@dataclass(frozen=True)
class Bar:
    """One row: a scheme for some of a model's weights and the score it must reach; `how` compares score, dense and limit."""

    model: str
    scheme: str
    score: str
    how: str
    limit: float
    targets: str = "*"

    def met(self, found: float, dense: float) -> bool:
        """Whether the calibrated score is good enough."""
        match self.how:
            case "at least":
                return found >= self.limit
            case "lose at most":
                return found >= dense - self.limit
            case _:
                return found <= dense * self.limit

    def words(self) -> str:
        """The bar as the table shows it."""
        return {"at least": f">= {self.limit}", "lose at most": f"-{self.limit}"}.get(
            self.how, f"<= {self.limit} x dense"
        )


def _minilm(scheme: str, cosine: float, spearman: float | None = None) -> list[Bar]:
    rows = [Bar("minilm", scheme, "cosine", "at least", cosine, "MatMul")]
    return rows if spearman is None else [*rows, Bar("minilm", scheme, "Spearman", "lose at most", spearman, "MatMul")]


def _stories(scheme: str, limit: float) -> list[Bar]:
    return [Bar("stories_prefill", scheme, "perplexity", "at most times", limit, "MatMul")]


def _top1(model: str, scheme: str, limit: float) -> list[Bar]:
    return [Bar(model, scheme, "top-1 %", "lose at most", limit)]


BARS = [
    *_minilm("int4-g32", 0.994, 0.002),
    *_minilm("int3-g32", 0.973),
    *_minilm("cb3-c", 0.955),
    *_minilm("int2-g32", 0.90),
    *_minilm("vq2d4-c", 0.89),
    *_minilm("s50", 0.935, 0.003),
    *_minilm("s2:4", 0.89, 0.004),
    *_minilm("s16x1@50-cb4-g32", 0.82, 0.015),
    *_stories("int4-g32", 1.03),
    *_stories("int3-g32", 1.20),
    *_stories("vq2d4-c", 2.8),
    *_stories("s50", 2.4),
    *_stories("s2:4", 3.5),
    *_top1("resnet20", "int4", 0.2),
    *_top1("resnet20", "cb4", 0.2),
    *_top1("resnet20", "int3", 0.4),
    *_top1("resnet20", "cb3", 0.4),
    *_top1("resnet20", "int2-g32", 1.6),
    *_top1("resnet20", "s50", 0.9),
    *_top1("resnet20", "s2:4", 1.9),
    *_top1("resnet20", "s16x1@50-cb4-g32", 5.0),
    *_top1("mobilenet_v2", "cb4", 1.0),
]
"""What post-training compression without labels must keep."""


def run(names: Sequence[str], schemes: Sequence[str], json_path: Path | None) -> int:
    """Print the table; 1 if a bar is missed."""
    rows, results = [], []
    for bar in BARS:
        if bar.model not in names or (schemes and bar.scheme not in schemes):
            continue
        print(f"{bar.model}, {bar.scheme}, {bar.score} ...", file=sys.stderr, flush=True)
        dense = _score(bar.model, bar.score, None)
        free = _score(bar.model, bar.score, (bar.scheme, bar.targets, False))
        found = _score(bar.model, bar.score, (bar.scheme, bar.targets, True))
        made = _compressed(bar.model, bar.scheme, bar.targets, True)
        met = bar.met(found, dense)
        rows.append(
            [bar.model, bar.scheme, f"{made.bits:.2f}", bar.score, *(f"{v:.4g}" for v in (dense, free, found)), bar.words(),
             "met" if met else "missed", f"{made.seconds:.0f}"]
        )  # fmt: skip
        results.append(
            {"model": bar.model, "scheme": bar.scheme, "targets": bar.targets, "score": bar.score, "dense": dense,
             "data_free": free, "calibrated": found, "limit": bar.limit, "how": bar.how, "met": met, "bits": made.bits,
             "seconds": made.seconds}
        )  # fmt: skip
    print(markdown(HEADERS, rows, left=2))
    write_json(json_path, {"samples": SAMPLES, "results": results})
    return 0 if all(result["met"] for result in results) else 1


@dataclass(frozen=True)
class _Made:
    run: Run
    bits: float
    """Stored bits per weight of the compressed layers, everything counted."""
    seconds: float


@cache
def _inputs(name: str) -> list[Feed]:
    """The real inputs of a model in order."""
    model = get(name)
    assert model.real is not None
    return list(model.real())


def _calibration(name: str) -> list[Feed]:
    return story_windows(SAMPLES) if name == "stories_prefill" else _inputs(name)[-SAMPLES:]


def _examples(name: str) -> int:
    """How many examples are scored: those that calibration has not seen."""
    return 60 if name == "stories_prefill" else len(_inputs(name)) - SAMPLES


@cache
def _compressed(name: str, scheme: str, targets: str, calibrated: bool) -> _Made:
    import sparsec

    model = get(name)
    rule = {
        "targets": targets,
        "ignore": "Gather",
        "scheme": scheme,
        "optional": True,
    }  # tied tables too stay as they are
    recipe = {"version": 1, "rules": [rule]}
    start = time.perf_counter()
    made = sparsec.compress(
        model.onnx_file(), recipe, input_shapes=model.input_shapes, input_values=model.input_values, verify=False,
        calibration=_calibration(name) if calibrated else None,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    layers = [row.record for row in made.report.layers if row.record.rule is not None]
    bits = 8 * sum(r.nbytes for r in layers) / sum(int(np.prod(r.shape)) for r in layers)
    return _Made(_runner(made.to_bytes(), model), bits, seconds)


def _runner(data: bytes, model: ZooModel) -> Run:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(data, options)
    names = {value.name for value in session.get_inputs()}
    return lambda feed: session.run(None, {k: v for k, v in {**feed, **model.input_values}.items() if k in names})


@cache
def _score(name: str, score: str, what: tuple[str, str, bool] | None) -> float:
    model = get(name)
    runner = model.reference_run(4) if what is None else _compressed(name, *what).run
    if score == "cosine":
        return _cosine(name, runner)
    assert model.metric is not None
    return float(model.metric(runner, _examples(name)))


def _cosine(name: str, runner: Run) -> float:
    """Mean cosine of the first output to the dense model's."""
    reference = _reference_outputs(name)
    values = []
    for feed, wanted in zip(islice(_inputs(name), len(reference)), reference, strict=True):
        found = in_order(runner(feed))[0].ravel()
        values.append(found @ wanted / (np.linalg.norm(found) * np.linalg.norm(wanted)))
    return float(np.mean(values))


@cache
def _reference_outputs(name: str) -> list[Any]:
    runner: Callable[[Mapping[str, Any]], Any] = get(name).reference_run(4)
    return [in_order(runner(feed))[0].ravel() for feed in islice(_inputs(name), _examples(name))]
