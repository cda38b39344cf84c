"""What the selectors of the recipe's `structure.ignore` reach."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from sparsec.errors import RecipeError
from sparsec.passes.select import candidates_of
from sparsec.passes.structure.groups import Family
from sparsec.passes.weights import Weight, find_weights
from sparsec.selectors import did_you_mean, specificity

__all__ = ["check_selectors", "ignored_families", "reached"]


def ignored_families(model: ir.Model, families: Sequence[Family], selectors: Sequence[str]) -> dict[str, str]:
    """Families with a weight that a selector of `ignore` reaches, and that selector."""
    found: dict[str, str] = {}
    named = reached(model, selectors)
    for family in families:
        for tied in family.tied:
            name = tied.slot.value.name or ""
            if name in named and any(True for _ in tied.outputs_left(np.zeros(0, np.intp))):
                found.setdefault(family.name, named[name])
    return found


def reached(model: ir.Model, selectors: Sequence[str]) -> dict[str, str]:
    """Weights that a selector of `ignore` reaches, and that selector."""
    weights = [item for item in find_weights(model) if isinstance(item, Weight)]
    return {
        weight.name: selector
        for weight, candidate in zip(weights, candidates_of(weights), strict=True)
        for selector in selectors
        if specificity(selector, candidate)
    }


def check_selectors(model: ir.Model, selectors: Sequence[str]) -> None:
    """Raises RecipeError for a selector that matches nothing."""
    weights = [item for item in find_weights(model) if isinstance(item, Weight)]
    candidates = candidates_of(weights)
    for selector in selectors:
        if not any(specificity(selector, candidate) for candidate in candidates):
            names = sorted({name for c in candidates for name in (c.name, *c.nodes) if name})
            raise RecipeError(
                f"recipe structure.ignore: selector {selector!r} matches none of the model's {len(candidates)} weights"
                f"{did_you_mean(selector, names)}."
            )
