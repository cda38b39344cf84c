"""Choose a scheme for every weight: the recipe's rules against the graph, a reason for each weight that stays dense."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from sparsec.errors import WeightError
from sparsec.formats import EncodedWeight, Scheme, Structure, decode
from sparsec.op_view import is_sparsec, view
from sparsec.passes.assign import Assignment, assign
from sparsec.passes.factorable import without_what_does_not_fit
from sparsec.passes.layers import LayerRecord
from sparsec.passes.weights import Dense, Weight, find_weights
from sparsec.recipe import Recipe, Rule
from sparsec.selectors import Candidate

__all__ = ["Choice", "candidates_of", "select_schemes"]


@dataclass
class Choice:
    """A weight that will be encoded, with the rule that asks for it, less what the weight cannot have.

    structure: the scheme's, with the share of zeros that pruning aims for in this weight. notes: what else was done to it, and what
    was asked for and could not be. refused: which products and factors the weight cannot have, and why.
    """

    weight: Weight
    scheme: Scheme
    rule: Rule
    rule_index: int
    refused: str = ""
    structure: Structure = field(init=False)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.structure = self.scheme.structure


def select_schemes(model: ir.Model, recipe: Recipe) -> tuple[list[Choice], list[LayerRecord], list[str]]:
    """Match the recipe with the graph.

    Returns:
        The weights to encode, a record for each weight that stays dense, and the names of all in order of execution.

    Raises:
        RecipeError: a selector matches nothing.
        WeightError: weights hold NaN or Inf (all of them are listed).
    """
    found = find_weights(model)
    weights = [item for item in found if isinstance(item, Weight)]
    _check_finite(model, weights)
    candidates = candidates_of(weights)
    assigned = dict(zip((id(w) for w in weights), assign(recipe, candidates), strict=True))
    choices: list[Choice] = []
    records: list[LayerRecord] = []
    for item in found:
        if isinstance(item, Dense):
            records.append(_dense_record(item.name, item.node, item.operator, item.shape, item.reason, item.nbytes))
            continue
        answer: Assignment = assigned[id(item)]
        reason, rule = (answer.reason if recipe.rules else "the recipe has no rules"), None
        if answer.rule is not None:
            rule, note = without_what_does_not_fit(item, recipe.rules[answer.rule])
            reason = _refusal(item, rule, note, recipe)
        if reason or rule is None or answer.rule is None:
            size = item.rows * item.cols * 4
            first = item.uses[0]
            records.append(_dense_record(item.name, first.node.name or "", first.operator, item.shape, reason, size))
            records[-1].zeros = _zeros(item)
        else:
            choices.append(Choice(item, Scheme.parse(rule.scheme), rule, answer.rule, note))
    place = {node: index for index, node in enumerate(model.graph)}
    order = [(place[item.uses[0].node], item.name) for item in weights]
    by_name = {node.name or "": index for node, index in place.items()}
    order += [(by_name[item.node], item.name) for item in found if isinstance(item, Dense)]
    for node in place:
        if is_sparsec(node) and (record := _encoded_record(node)).name not in {name for _, name in order}:
            records.append(record)
            order.append((place[node], record.name))
    return choices, records, [name for _, name in sorted(order, key=lambda entry: entry[0])]


def _encoded_record(node: ir.Node) -> LayerRecord:
    """A weight that the model file brought along encoded: it keeps its scheme."""
    found = view(node)
    inputs = found.weight_inputs
    first = inputs.values[0]
    weight = found.weight()
    assert isinstance(weight, EncodedWeight)
    return LayerRecord(
        name=(first.name or "").removesuffix(".codes"),
        node=node.name or "",
        op=found.kind,
        shape=(found.rows, found.cols),
        scheme=str(found.scheme),
        reason="already encoded in the model file",
        zeros=float(np.mean(decode(weight) == 0)),
        bits_per_weight=weight.bits_per_weight(),
        nbytes=weight.nbytes,
        nmse=0.0,
    )


def _refusal(weight: Weight, rule: Rule, note: str, recipe: Recipe) -> str:
    if Scheme.parse(rule.scheme).is_plain and rule.factor is None:
        return note or "the recipe asks for fp32"
    size = weight.rows * weight.cols
    if size < recipe.min_elements:
        return f"too small: {size} elements, the recipe's min_elements is {recipe.min_elements}"
    return ""


def candidates_of(weights: Sequence[Weight]) -> list[Candidate]:
    """What a recipe's selectors see of the weights, which are in order of execution."""
    candidates = [_candidate(weight) for weight in weights]
    _mark_ends(weights, candidates)
    return candidates


def _candidate(weight: Weight) -> Candidate:
    operators = {use.operator for use in weight.uses}
    if "DepthwiseConv" in operators:
        operators.add("Conv")
    return Candidate(
        name=weight.name,
        nodes=tuple(use.node.name or "" for use in weight.uses),
        operators=tuple(sorted(operators)),
    )


def _mark_ends(weights: Sequence[Weight], candidates: list[Candidate]) -> None:
    """The first and the last weight that multiplies; lookups of embeddings are neither."""
    linear = [i for i, weight in enumerate(weights) if any(use.operator != "Gather" for use in weight.uses)]
    if linear:
        candidates[linear[0]] = candidates[linear[0]].model_copy(update={"is_first": True})
        candidates[linear[-1]] = candidates[linear[-1]].model_copy(update={"is_last": True})


def _check_finite(model: ir.Model, weights: Sequence[Weight]) -> None:
    """Weights are finite, and no other constant tensor (a bias, a norm's scale, a float16 weight) holds NaN; Inf may mask."""
    bad = []
    for weight in weights:
        assert weight.value.const_value is not None
        array = weight.value.const_value.numpy()
        # Least and largest carry any NaN or Inf, and need no array of answers.
        if array.size == 0 or (np.isfinite(array.min()) and np.isfinite(array.max())):
            continue
        count = int(array.size - np.isfinite(array).sum())
        if count:
            bad.append(f"{weight.name} ({weight.uses[0].operator} {weight.uses[0].node.name}): {count} of {array.size}")
    checked = {weight.value for weight in weights}
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if value in checked or tensor is None or tensor.size < 2 or not tensor.dtype.is_floating_point():
            continue
        count = int(np.isnan(tensor.numpy().astype(np.float32, copy=False)).sum())
        if count:
            readers = ", ".join(f"{node.op_type} {node.name}" for node, _ in value.uses()) or "unused"
            bad.append(f"{name} ({readers}): {count} of {tensor.size}")
    if bad:
        raise WeightError(
            f"{len(bad)} weight(s) hold NaN or Inf; the model is damaged or its training diverged:\n  "
            + "\n  ".join(bad)
        )


def _zeros(weight: Weight) -> float:
    assert weight.value.const_value is not None
    array = weight.value.const_value.numpy()
    return 1.0 - np.count_nonzero(array) / array.size if array.size else 0.0


def _dense_record(name: str, node: str, operator: str, shape: tuple[int, ...], reason: str, nbytes: int) -> LayerRecord:
    elements = max(int(np.prod(shape)), 1)
    return LayerRecord(name, node, operator, shape, "fp32", reason, 0.0, 8.0 * nbytes / elements, nbytes, 0.0)
