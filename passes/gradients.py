"""Squared gradients of the weights whose rules ask for them (`sparsify.algorithm: gblm`); torch is imported when there are some."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.errors import RecipeError
from sparsec.passes.select import Choice
from sparsec.progress import Progress

__all__ = ["gradients_of", "needs_torch"]

Array = NDArray[Any]


def needs_torch(what: str) -> None:
    """Raise RecipeError unless torch is installed."""
    if find_spec("torch") is None:
        raise RecipeError(f"{what} needs gradients, and torch is not installed; pip install 'sparsec[torch]'")


def gradients_of(
    model: ir.Model,
    choices: Sequence[Choice],
    samples: Sequence[Mapping[str, Array]],
    labels: Array | None,
    threads: int,
    progress: Progress | None = None,
) -> dict[str, NDArray[np.float64]]:
    """By weight, float64 [N, K]: the mean of the squared gradients. Empty where no rule asks for them.

    Raises RecipeError without torch, UnsupportedOpError for a graph that torch cannot differentiate here.
    """
    wanted = [c for c in choices if c.rule.sparsify.algorithm == "gblm" and not c.scheme.is_dense]
    if not wanted:
        return {}
    needs_torch("sparsify.algorithm 'gblm'")
    from sparsec.passes.differentiable.squares import gradient_squares

    names = [choice.weight.name for choice in wanted]
    found = gradient_squares(model, names, samples, labels, threads=threads, progress=progress)
    return {
        c.weight.name: np.ascontiguousarray(
            found[c.weight.name].T if c.weight.flipped else found[c.weight.name].reshape(c.weight.rows, c.weight.cols)
        )
        for c in wanted
    }
