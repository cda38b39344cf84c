"""The passes between choosing schemes and fusing: thin wrappers that carry one `Job` through the algorithms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.passes.encode_cache import cached_masks, weight_digest
from sparsec.passes.insert_decode import encode_weights, insert_decode
from sparsec.passes.layers import LayerRecord
from sparsec.passes.quantise_activations import set_activations
from sparsec.passes.select import Choice, select_schemes
from sparsec.passes.sparsify.magnitude import magnitude_masks
from sparsec.recipe import Recipe

__all__ = ["EncodeWeights", "Job", "QuantiseActivations", "SelectSchemes", "Sparsify"]


@dataclass
class Job:
    """One run of the compression stages: the recipe, and what the stages found so far."""

    recipe: Recipe
    progress: Callable[[str], None] | None = None
    choices: list[Choice] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    masks: list[NDArray[np.bool_] | None] = field(default_factory=list)
    layers: list[LayerRecord] = field(default_factory=list)
    order: list[str] = field(default_factory=list)

    def effective_recipe(self) -> str:
        """The recipe with every selector replaced by the exact names of the weights it reached."""
        rules = []
        for index, rule in enumerate(self.recipe.rules):
            names = tuple(choice.weight.name for choice in self.choices if choice.rule_index == index)
            if names:
                rules.append(rule.model_copy(update={"targets": names, "ignore": (), "optional": False}))
        return Recipe(rules=tuple(rules), min_elements=0, keep=self.recipe.keep).to_yaml()


class _JobPass(ir.passes.InPlacePass):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class SelectSchemes(_JobPass):
    """Recipe against graph: fills `job.choices` and the records of what stays dense."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        self.job.choices, self.job.layers, self.job.order = select_schemes(model, self.job.recipe)
        return ir.passes.PassResult(model, False)


class Sparsify(_JobPass):
    """Keep-masks for the sparse schemes, rule by rule."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        job.masks = [None] * len(job.choices)
        job.digests = [weight_digest(choice) for choice in job.choices]
        for index in range(len(job.recipe.rules)):
            members = [i for i, choice in enumerate(job.choices) if choice.rule_index == index]
            if not members or job.choices[members[0]].scheme.is_dense:
                continue
            chosen = [job.choices[i] for i in members]
            masks = cached_masks(chosen, [job.digests[i] for i in members], partial(_prune, chosen))
            for i, mask in zip(members, masks, strict=True):
                job.masks[i] = mask
        return ir.passes.PassResult(model, False)


def _prune(choices: Sequence[Choice]) -> list[NDArray[np.bool_] | None]:
    """Masks of the weights of one rule."""
    return magnitude_masks(
        [choice.weight.matrix() for choice in choices],
        [choice.scheme.structure for choice in choices],
        joint=choices[0].rule.sparsify.scope == "global",
    )


class EncodeWeights(_JobPass):
    """Every chosen weight becomes a Decode node; the records are complete after it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        results = encode_weights(job.choices, job.digests, job.masks, job.progress)
        for choice, (encoded, record) in zip(job.choices, results, strict=True):
            insert_decode(model, choice, encoded)
            job.layers.append(record)
        place = {name: i for i, name in enumerate(job.order)}
        job.layers.sort(key=lambda layer: place[layer.name])
        return ir.passes.PassResult(model, bool(results))


class QuantiseActivations(_JobPass):
    """Int8 activations where the recipe asks for them or its error budget allows them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rules = self.job.recipe.rules
        wanted = {r.name: (rules[r.rule], r) for r in self.job.layers if r.rule is not None}
        return ir.passes.PassResult(model, set_activations(model, wanted))
