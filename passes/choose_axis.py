"""Whether codebooks serve runs of outputs or runs of inputs, weight by weight.

J. Heo et al., "Rethinking Channel Dimensions to Isolate Outliers for Low-bit Weight Quantization of Large Language Models" (AdaDim), 2023:
outliers lie along rows in some layers and along columns in others, so each takes the axis that rounds with less error.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import SchemeError
from sparsec.formats import Scheme, decode, encode
from sparsec.formats.meaning import TableValue, VectorValue
from sparsec.passes.select import Choice

__all__ = ["choose_axes", "other_axis"]


def other_axis(scheme: Scheme, rows: int, cols: int) -> Scheme | None:
    """The scheme with as many codebooks along the other axis of W [rows, cols] (`cb3.r16` -> `cb3.i32`), or None."""
    meaning = scheme.codec.meaning
    assert isinstance(meaning, TableValue | VectorValue)
    tables = meaning.scope.count(rows, cols)
    letter, size = ("i", cols) if meaning.scope.kind == "rows" else ("r", rows)
    span = -(-size // tables)
    if letter == "i":
        span = -(-span // meaning.dim) * meaning.dim
    base = re.sub(r"\.[ri]\d+$", "", str(scheme.codec))
    parts = (str(scheme.structure), f"{base}.{letter}{span}", str(scheme.scales))
    try:
        return Scheme.parse("-".join(part for part in parts if part))
    except SchemeError:
        return None


def choose_axes(choices: Sequence[Choice], power: Mapping[str, NDArray[np.float64]]) -> None:
    """Give the weights whose rules say `axis: auto` the scheme of the axis with less error, data-free rounding taken for both.

    power: E[x^2] of a weight's inputs, float64 [N, K] or [K], by its name; errors of weights without it count alike.
    """
    for choice in choices:
        if choice.rule.quantize.axis != "auto":
            continue
        twin = other_axis(choice.scheme, choice.weight.rows, choice.weight.cols)
        if twin is None:
            choice.notes.append("codebooks keep their axis: the other has no such scheme")
            continue
        matrix = choice.weight.matrix()
        here, there = (_error(matrix, scheme, power.get(choice.weight.name)) for scheme in (choice.scheme, twin))
        if there < here:
            choice.notes.append(f"codebooks along the other axis: error {there:.3g} instead of {here:.3g}")
            choice.scheme = twin
        else:
            choice.notes.append(f"codebooks keep their axis: error {here:.3g}, {there:.3g} along the other")


def _error(matrix: NDArray[np.float32], scheme: Scheme, power: NDArray[np.float64] | None) -> float:
    dense = Scheme.of(scheme.codec, scales=scheme.scales)  # what is pruned is decided later
    off = np.square(decode(encode(matrix, dense, None, power)) - matrix, dtype=np.float64)
    weights = 1.0 if power is None else power
    return float((off * weights).sum() / max(float((np.square(matrix, dtype=np.float64) * weights).sum()), 1e-300))
