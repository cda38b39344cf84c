"""What a budget chooses from: the weights of a model that are free, each in every candidate scheme."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.passes.calibrate.candidates import Candidates, candidates
from sparsec.passes.canonical_cache import canonical
from sparsec.passes.select import select_schemes
from sparsec.progress import Progress
from sparsec.recipe import Recipe, Rule

__all__ = ["chosen_recipe", "trials"]


def trials(
    source: ir.Model,
    recipe: Recipe,
    schemes: Sequence[str],
    samples: Sequence[Mapping[str, np.ndarray[Any, Any]]],
    executor: Executor,
    *,
    calibrated: bool,
    threads: int = 1,
    progress: Progress | None = None,
) -> list[Candidates]:
    """Every weight that no rule of `recipe` reaches, in all `schemes`.

    Args:
        source: from `sparsec.frontend.load_model`; stays as it is.
        recipe: its rules hold as they are; `ignore` and `min_elements` too.
        The others are those of `sparsec.passes.calibrate.candidates.candidates`.

    Raises RecipeError and WeightError as `compress` does.
    """
    model, _ = canonical(source)
    free = Rule(scheme=schemes[0], optional=True)
    choices, _, _ = select_schemes(model, recipe.model_copy(update={"rules": (free, *recipe.rules)}))
    return candidates(
        model, [choice for choice in choices if choice.rule_index == 0], schemes, samples, executor,
        settings=recipe.calibrate, calibrated=calibrated, threads=threads, progress=progress,
    )  # fmt: skip


def chosen_recipe(recipe: Recipe, chosen: Mapping[str, str]) -> Recipe:
    """`recipe` with the schemes of free weights, by name (fp32: stays dense)."""
    by_scheme: dict[str, list[str]] = {}
    for name, scheme in chosen.items():
        by_scheme.setdefault(scheme, []).append(name)
    rules = [Rule(targets=tuple(names), scheme=scheme) for scheme, names in by_scheme.items()]
    return recipe.model_copy(update={"rules": (*recipe.rules, *rules)})
