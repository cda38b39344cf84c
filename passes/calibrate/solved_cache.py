"""Solved layers in the cache on disk: a calibration that was stopped goes on where it was, one that is repeated is not solved again.

Keys cover the weight, the statistics of its inputs, everything of rule and settings that steers the solution, the sources of the
passes and formats, and the versions of numpy and scipy.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import scipy

import sparsec.formats
from sparsec.cache import digest, load, source_digest, store
from sparsec.errors import SchemeError, WeightError
from sparsec.passes.calibrate.solve import Layer, Solved
from sparsec.passes.factor.form import Factor, Factored

__all__ = ["key_of", "load_solved", "store_solved"]

Array = np.ndarray[Any, Any]
_KIND = "layers"


@cache
def _sources() -> str:
    passes, formats = Path(__file__).parents[1], Path(sparsec.formats.__file__).parent
    return digest(np.__version__, scipy.__version__, source_digest(*passes.rglob("*.py"), *formats.rglob("*.py")))


def key_of(layer: Layer) -> str:
    """The name of a layer's entry: equal for equal work."""
    parts: list[str | Array] = [
        _sources(), layer.scheme, str(layer.structure), layer.settings.model_dump_json(),
        layer.rule.model_dump_json(exclude={"targets", "ignore", "optional"}), layer.weight,
    ]  # fmt: skip
    for s in layer.statistics:
        parts += [f"{s.samples} {s.centred} {s.cross is None}", s.second_moment, s.mean, s.mean_dense]
        if s.cross is not None:
            parts.append(s.cross)
        parts += [part for fold in s.folds for part in (f"fold {fold.samples}", fold.second_moment)]
        if s.residual is not None and s.mean_residual is not None:
            parts += ["residual", s.residual, s.mean_residual]
    if layer.gradient_square is not None:
        parts.append(layer.gradient_square)
    return digest(*parts)


def store_solved(key: str, solved: Solved) -> None:
    """Keep a result."""
    encoded = solved.encoded
    form = encoded if isinstance(encoded, Factored) else Factored("", (Factor("", encoded),))
    facts, arrays = form.stored()
    if solved.shift is not None:
        arrays = {**arrays, "shift": solved.shift}
    figures = {"zeros": solved.zeros, "nmse": solved.nmse, "output_error": solved.output_error}
    store(_KIND, key, {**facts, **figures, "one": form is not encoded}, arrays)


def load_solved(key: str) -> Solved | None:
    """The result of that name, or None where there is no whole one."""
    found = load(_KIND, key)
    if found is None:
        return None
    facts, arrays = found
    try:
        form = Factored.read(facts, arrays)
        encoded = form.main[0].coded if facts["one"] else form
        return Solved(encoded, arrays.get("shift"), facts["zeros"], facts["nmse"], facts["output_error"])
    except (WeightError, SchemeError, KeyError, IndexError):  # a damaged entry is made again
        return None
