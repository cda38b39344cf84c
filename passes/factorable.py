"""Which weights a rule's `low_rank` and `factor` reach; the others are coded without, and the report says why."""

from __future__ import annotations

from sparsec.factoring import resolved_rank
from sparsec.passes.weights import Weight
from sparsec.recipe import Rule

__all__ = ["without_what_does_not_fit"]


def without_what_does_not_fit(weight: Weight, rule: Rule) -> tuple[Rule, str]:
    """(the rule less `low_rank` or `factor` where the weight has no such form, the reason or '')."""
    for key in ("low_rank", "factor"):
        if getattr(rule, key) is not None and (why := _refusal(weight, rule, key)):
            name = "low-rank branch" if key == "low_rank" else getattr(rule, key).algorithm
            rule = rule.model_copy(update={"low_rank": None, "factor": None})
            return rule, f"no {name}: {why}"
    return rule, ""


def _refusal(weight: Weight, rule: Rule, key: str) -> str:
    if any(use.operator == "Gather" for use in weight.uses):
        return "rows of a lookup table are no products"
    if any(use.node.op_type == "Conv" and use.node.attributes.get_int("group", 1) > 1 for use in weight.uses):
        return "the groups of a convolution read inputs of their own"
    given = getattr(rule, key).rank
    if given is None or (key == "factor" and not getattr(rule, key).is_low_rank):
        return ""
    rank, most = resolved_rank(given, weight.rows, weight.cols), min(weight.rows, weight.cols)
    return f"rank {rank} is more than the {most} that {weight.rows} x {weight.cols} has" if rank > most else ""
