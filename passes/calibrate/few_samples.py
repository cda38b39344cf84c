"""Layers that calibration shows fewer rows than their second moments need: how these are damped, and what the report says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsec.passes.calibrate.held_back import raised
from sparsec.passes.statistics import Statistics
from sparsec.recipe import Rule

__all__ = ["damped_for", "note_on", "rows_and_inputs"]


def rows_and_inputs(statistics: Sequence[Statistics]) -> tuple[int, int]:
    """Rows that a layer has read (a group of a convolution: the one that has read least), and the inputs of each."""
    return min(s.samples for s in statistics), len(statistics[0].mean)


def damped_for(rule: Rule, statistics: Sequence[Statistics]) -> Rule:
    """The rule with the damping that so few samples need: small eigenvalues of a second moment of n independent samples of K inputs
    are off by about K / n of its mean diagonal, and what relies on them fits the samples only. On inputs that were held back K / n was
    within 3 % of the best damping for n / K of 0.2 (a classifier), 2.6 and 10 (a transformer); for n / K of 100 it is next to nothing.
    Where samples are not independent, parts of them that are held back say so (held_back.py)."""
    rows, inputs = rows_and_inputs(statistics)
    more = min(1.0, inputs / max(rows, 1))
    level = raised(rule.quantize.damping + more, statistics[0].folds)
    quantize = rule.quantize.model_copy(update={"damping": level})
    sparsify = rule.sparsify.model_copy(update={"damping": max(rule.sparsify.damping + more, level)})
    return rule.model_copy(update={"sparsify": sparsify, "quantize": quantize})


def note_on(read: Mapping[str, tuple[int, int]]) -> str:
    """One sentence on the weights, of those with their rows and inputs, whose second moments have no inverse: fewer rows than
    inputs. '' where there are none."""
    short = {name: (rows, inputs) for name, (rows, inputs) in read.items() if rows < inputs}
    if not short:
        return ""
    name = min(short, key=lambda name: short[name][0] / short[name][1])
    rows, inputs = short[name]
    return (
        f"calibration shows {len(short)} of {len(read)} weights fewer rows than they have inputs ('{name}': {rows} of {inputs}): "
        "the mean of their second moments' diagonals is added to these (damping 1); more samples would tell more"
    )
