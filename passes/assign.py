"""Which rule of a recipe each weight gets."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import BaseModel, ConfigDict

from sparsec.errors import RecipeError
from sparsec.recipe import Recipe
from sparsec.selectors import Candidate, did_you_mean, specificity

__all__ = ["Assignment", "assign"]


class Assignment(BaseModel):
    """What a recipe says of one candidate: the index of its rule, or the reason why it stays dense."""

    model_config = ConfigDict(frozen=True)
    rule: int | None
    reason: str = ""


def assign(recipe: Recipe, candidates: Sequence[Candidate]) -> list[Assignment]:
    """The rule of each candidate, in order.

    Raises:
        RecipeError: a selector matches none of the candidates (with the nearest name).
    """
    _check_selectors(recipe, candidates)
    result = []
    for candidate in candidates:
        ignored = next((s for s in recipe.ignore if specificity(s, candidate)), None)
        if ignored is not None:
            result.append(Assignment(rule=None, reason=f"ignored by recipe ({ignored})"))
            continue
        best, chosen, reason = 0, None, "no rule of the recipe reaches it"
        for index, rule in enumerate(recipe.rules):
            rank = max((specificity(selector, candidate) for selector in rule.targets), default=0)
            if not rank:
                continue
            kept_out = next((s for s in rule.ignore if specificity(s, candidate)), None)
            if kept_out is not None:
                reason = f"ignored by rule {index + 1} ({kept_out})" if chosen is None else reason
            elif rank >= best:
                best, chosen = rank, index
        result.append(Assignment(rule=chosen, reason="" if chosen is not None else reason))
    return result


def _check_selectors(recipe: Recipe, candidates: Sequence[Candidate]) -> None:
    named = [("ignore", selector) for selector in recipe.ignore]
    for index, rule in enumerate(recipe.rules):
        if not rule.optional:
            named += [(f"rules[{index}].targets", s) for s in rule.targets]
            named += [(f"rules[{index}].ignore", s) for s in rule.ignore]
    names = sorted({name for c in candidates for name in (c.name, *c.nodes) if name})
    operators = sorted({operator for c in candidates for operator in c.operators})
    for where, selector in named:
        if any(specificity(selector, candidate) for candidate in candidates) or (selector == "*" and not candidates):
            continue
        shown = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        raise RecipeError(
            f"recipe {where}: selector {selector!r} matches none of the model's {len(candidates)} weights"
            f"{did_you_mean(selector, [*names, *operators])}. Operators here: {', '.join(operators) or 'none'}; "
            f"names: {shown or 'none'}. Set optional: true on a rule that may match nothing."
        )
