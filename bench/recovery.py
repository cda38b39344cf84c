"""`python -m bench recovery`: what training on in the compressed format gives back, on ResNet-20.

The first images are scored; the others train, against the uncompressed model's outputs (no labels), mirrored and moved, and the last 256
of them calibrate. No image does both.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from bench.accuracy import runner
from bench.bars import kept
from bench.output import markdown, write_json
from bench.scores import SAMPLES, inputs
from bench.zoo import Run, get

HEADERS = ("recipe", "bits/weight", "dense", "calibrated", "recovered", "bar", "", "seconds")
MODEL = "resnet20"
SCORED = 2000
LIMITS = {"s16x1@50-cb4-g32": 2.0, "s2:4": 0.8}
"""By scheme: the most points of top-1 that recovery may leave lost."""
RECOVER = {"loss": "layers", "epochs": 20, "lr": 0.005, "held_out": 0.03, "augment": {"flip": True, "shift": 4}}


def run(schemes: Sequence[str], epochs: int | None, json_path: Path | None) -> int:
    """Print the table; 1 if a bar is missed."""
    model = get(MODEL)
    settings = RECOVER if epochs is None else {**RECOVER, "epochs": epochs}
    dense = _score(model.reference_run(4))
    rows, results = [], []
    for scheme in schemes or LIMITS:
        limit = LIMITS.get(scheme)
        before, _, _ = _made(scheme, None)
        after, bits, seconds = _made(scheme, settings)
        met = limit is None or kept(after, dense, limit)
        words = ("", "") if limit is None else (f"-{limit}", "met" if met else "missed")
        rows.append([scheme, f"{bits:.2f}", f"{dense:.1f}", f"{before:.1f}", f"{after:.1f}", *words, f"{seconds:.0f}"])
        results.append(
            {"recipe": scheme, "bits": bits, "dense": dense, "calibrated": before, "recovered": after, "limit": limit, "met": met,
             "seconds": seconds}
        )  # fmt: skip
    print(markdown(HEADERS, rows, left=1))
    write_json(json_path, {"model": MODEL, "scored": SCORED, "recover": settings, "results": results})
    return 0 if all(result["met"] for result in results) else 1


def _made(scheme: str, recover: dict[str, Any] | None) -> tuple[float, float, float]:
    """(score, bits a weight, seconds) of the model calibrated and, if asked for, trained on."""
    import sparsec

    model, others = get(MODEL), inputs(MODEL)[SCORED:]
    recipe = {"version": 1, "rules": [{"scheme": scheme, "optional": True}]}
    say = partial(print, f"{MODEL}, {scheme}:", file=sys.stderr, flush=True)
    start = time.perf_counter()
    made = sparsec.compress(
        model.onnx_file(), recipe, calibration=[*others[-SAMPLES:], *others[:-SAMPLES]], recover=recover, verify=False,
        progress=lambda stage, done, total, detail: say(f"epoch {done} of {total}, {detail}") if stage == "recover" else None,
    )  # fmt: skip
    seconds = time.perf_counter() - start
    layers = [row.record for row in made.report.layers if row.record.rule is not None]
    elements = sum(math.prod(row.shape) for row in layers)
    return _score(runner(made.to_bytes(), model)), 8 * sum(row.nbytes for row in layers) / elements, seconds


def _score(run: Run) -> float:
    metric = get(MODEL).metric
    assert metric is not None
    return float(metric(run, SCORED))
