"""Which weights a rule's `low_rank`, `factor` and `outliers` reach; the others are coded without, and the report says why."""

from __future__ import annotations

import math

from sparsec.factoring import Factor, resolved_rank
from sparsec.passes.weights import Weight
from sparsec.recipe import Rule

__all__ = ["without_what_does_not_fit"]


def without_what_does_not_fit(weight: Weight, rule: Rule) -> tuple[Rule, str]:
    """(the rule less `low_rank`, `factor` or `outliers` where the weight has no such form, the reason or '')."""
    for key in ("low_rank", "factor", "outliers"):
        if getattr(rule, key) is not None and (why := _refusal(weight, rule, key)):
            name = {"low_rank": "low-rank branch", "outliers": "branch for outliers"}.get(key) or getattr(
                rule, key
            ).algorithm
            rule = rule.model_copy(update={"low_rank": None, "factor": None, "outliers": None})
            return rule, f"no {name}: {why}"
    return rule, ""


def _refusal(weight: Weight, rule: Rule, key: str) -> str:
    if any(use.operator == "Gather" for use in weight.uses):
        return "rows of a lookup table are no products"
    if any(use.node.op_type == "Conv" and use.node.attributes.get_int("group", 1) > 1 for use in weight.uses):
        return "the groups of a convolution read inputs of their own"
    if key == "outliers":
        return "" if weight.cols > 1 else "it has one input only"
    if key == "factor" and (why := _blocks_refused(weight, rule.factor)):
        return why
    given = getattr(rule, key).rank
    if given is None:
        return ""
    parts = (getattr(rule, key).blocks or 1) if key == "factor" else 1
    rows, cols = weight.rows // parts, weight.cols // parts
    rank, most = resolved_rank(given, rows, cols), min(rows, cols)
    return f"rank {rank} is more than the {most} that {rows} x {cols} has" if rank > most else ""


def _blocks_refused(weight: Weight, factor: Factor | None) -> str:
    if factor is None:
        return ""
    taps = math.prod(weight.shape[2:])
    inputs = weight.cols // taps
    if factor.algorithm == "armor" and taps > 1:
        return "blocks before a convolution of more than one pixel would have to know its windows"
    size = factor.block or factor.blocks
    for what, count in (("outputs", weight.rows), ("inputs", inputs)):
        if size is not None and count % size:
            return f"{size} does not divide its {count} {what}"
    return ""
