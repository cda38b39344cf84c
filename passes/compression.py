"""The passes between choosing schemes and fusing: thin wrappers that carry one `Job` through the algorithms."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from sparsec.errors import RecipeError
from sparsec.passes.allocate import allocate, needs_inputs
from sparsec.passes.calibrate.biases import add_to_bias, own_bias
from sparsec.passes.calibrate.groups import survey, why_not
from sparsec.passes.calibrate.layers import calibrate
from sparsec.passes.calibrate.solve import Solved
from sparsec.passes.choose_axis import choose_axes
from sparsec.passes.encode_cache import cached_masks, weight_digest
from sparsec.passes.equivalent.group_rows import group_rows
from sparsec.passes.equivalent.permute import permute_inputs
from sparsec.passes.equivalent.scaling import equalise_ranges, scale_inputs
from sparsec.passes.factor.form import Factored
from sparsec.passes.gradients import gradients_of
from sparsec.passes.insert_decode import encode_weights, insert_decode
from sparsec.passes.insert_factors import insert_factors
from sparsec.passes.layers import LayerRecord
from sparsec.passes.quantise_activations import set_activations
from sparsec.passes.select import Choice, select_schemes
from sparsec.passes.sparsify.magnitude import magnitude_masks
from sparsec.passes.static_activations import NAME as STATIC
from sparsec.passes.static_activations import round_inputs
from sparsec.passes.statistics import Statistics
from sparsec.passes.structure.state import Structured
from sparsec.progress import Progress
from sparsec.recipe import Recipe, Rule

__all__ = [
    "ArrangeCodebooks",
    "CalibrateWeights",
    "Calibration",
    "EncodeWeights",
    "Job",
    "PermuteInputs",
    "QuantiseActivations",
    "ReorderRows",
    "ScaleChannels",
    "SelectSchemes",
    "ShareZeros",
    "Sparsify",
]


@dataclass(frozen=True)
class Calibration:
    """What calibrated compression works with.

    samples: inputs by name, at least one, as the model takes them. executor: where layers are solved (arguments and results are
    picklable), `tasks` of them at once. threads: of onnxruntime and torch. recovery: what `recover` trains on, `samples` and more;
    labels: [n, m], of the longer of the two; loss: the function of `recover.loss: custom`.
    """

    samples: Sequence[Mapping[str, NDArray[Any]]]
    executor: Executor
    tasks: int = 1
    threads: int = 1
    recovery: Sequence[Mapping[str, NDArray[Any]]] = ()
    labels: NDArray[Any] | None = None
    loss: Callable[..., Any] | None = None


@dataclass
class Job:
    """One run of the compression stages: the recipe, the canonical graph before them (where `recover` needs it), and what the stages
    found so far."""

    recipe: Recipe
    progress: Progress | None = None
    calibration: Calibration | None = None
    given: Mapping[str, Solved] | None = None
    """Weights by name that are solved already; then nothing is calibrated."""
    original: ir.Model | None = None
    choices: list[Choice] = field(default_factory=list)
    digests: list[str] = field(default_factory=list)
    masks: list[NDArray[np.bool_] | None] = field(default_factory=list)
    solved: list[Solved | None] = field(default_factory=list)
    layers: list[LayerRecord] = field(default_factory=list)
    order: list[str] = field(default_factory=list)
    structured: Structured = field(default_factory=Structured)
    notes: list[str] = field(default_factory=list)

    def effective_recipe(self) -> str:
        """The recipe with every selector replaced by the exact names of the weights it reached."""
        rules = []
        for index, rule in enumerate(self.recipe.rules):
            names = tuple(choice.weight.name for choice in self.choices if choice.rule_index == index)
            if names:
                rules.append(rule.model_copy(update={"targets": names, "ignore": (), "optional": False}))
        return self.recipe.model_copy(update={"rules": tuple(rules), "ignore": (), "min_elements": 0}).to_yaml()


class _JobPass(ir.passes.InPlacePass):
    def __init__(self, job: Job) -> None:
        super().__init__()
        self.job = job


class SelectSchemes(_JobPass):
    """Recipe against graph: fills `job.choices` and the records of what stays dense."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.job.calibration is None and self.job.given is None:
            _refuse_calibrated_rules(self.job.recipe)
        self.job.choices, self.job.layers, self.job.order = select_schemes(model, self.job.recipe)
        return ir.passes.PassResult(model, False)


class ScaleChannels(_JobPass):
    """Channels scaled where rules ask for it, the factors folded into the layers around them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        changed = equalise_ranges(model, job.choices)
        changed |= scale_inputs(model, job.choices, lambda choices, visit: _survey(model, job, choices, visit))
        return ir.passes.PassResult(model, changed)


class PermuteInputs(_JobPass):
    """Inputs of N:M weights in a better order where rules ask for it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        power = _power(model, job, [choice for choice in job.choices if choice.rule.sparsify.permute])
        return ir.passes.PassResult(model, permute_inputs(model, job.choices, power))


class ReorderRows(_JobPass):
    """Rows in runs that share codebooks or blocks better, where rules ask for it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        wanted = [choice for choice in job.choices if choice.rule.sparsify.reorder]
        if any(choice.rule.sparsify.scope != "layer" for choice in wanted):
            _share_zeros(model, job)  # once more when rows are in order: that changes what blocks lose
        power = _power(model, job, [choice for choice in wanted if choice.rule.sparsify.algorithm != "magnitude"])
        known = {name: rows[0] for name, rows in power.items()}  # grouped convolutions keep their order
        executor = None if job.calibration is None else job.calibration.executor
        return ir.passes.PassResult(model, group_rows(model, job.choices, known, executor))


class ArrangeCodebooks(_JobPass):
    """Codebooks along the axis that fits, where rules ask for it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        choose_axes(job.choices, _power(model, job, [c for c in job.choices if c.rule.quantize.axis == "auto"]))
        return ir.passes.PassResult(model, False)


class ShareZeros(_JobPass):
    """How many zeros each weight gets where a rule's weights share them out."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        _share_zeros(model, self.job)
        return ir.passes.PassResult(model, False)


def _share_zeros(model: ir.Model, job: Job) -> None:
    allocate(job.choices, _power(model, job, [choice for choice in job.choices if needs_inputs(choice.rule.sparsify)]))


def _power(model: ir.Model, job: Job, choices: Sequence[Choice]) -> dict[str, NDArray[np.float64]]:
    """E[x^2] of the inputs of each weight, [K] or [N, K] where groups of a convolution differ; empty without inputs."""
    power: dict[str, NDArray[np.float64]] = {}

    def visit(choice: Choice, statistics: Sequence[Statistics]) -> None:
        rows = [np.asarray(np.diag(s.second_moment), np.float64) for s in statistics]
        power[choice.weight.name] = np.repeat(np.stack(rows), choice.weight.rows // len(rows), 0)

    _survey(model, job, choices, visit)
    return power


def _survey(
    model: ir.Model, job: Job, choices: Sequence[Choice], visit: Callable[[Choice, list[Statistics]], None]
) -> None:
    given = job.calibration
    if given is not None and choices:
        survey(model, choices, given.samples, visit, settings=job.recipe.calibrate, threads=given.threads)


class CalibrateWeights(_JobPass):
    """Weights whose rules use calibration inputs, pruned and coded layer by layer; biases take up shifts of the outputs."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job, given = self.job, self.job.calibration
        job.solved = [None] * len(job.choices)
        if job.given is not None:
            job.solved = [job.given.get(choice.weight.name) for choice in job.choices]
            _shift_biases(model, job.choices, job.solved)
            return ir.passes.PassResult(model, True)
        if given is None:
            return ir.passes.PassResult(model, False)
        members = [i for i, choice in enumerate(job.choices) if not why_not(choice)]
        solved = calibrate(
            model, [job.choices[i] for i in members], given.samples, given.executor,
            settings=job.recipe.calibrate, threads=given.threads, tasks=given.tasks, progress=job.progress,
            gradients=gradients_of(model, job.choices, given.samples, given.labels, given.threads, job.progress),
            notes=job.notes,
        )  # fmt: skip
        for index, result in zip(members, solved, strict=True):
            job.solved[index] = result
        return ir.passes.PassResult(model, bool(members))


def _shift_biases(model: ir.Model, choices: Sequence[Choice], found: Sequence[Solved | None]) -> None:
    for choice, solved in zip(choices, found, strict=True):
        if solved is not None and solved.shift is not None:
            add_to_bias(model, own_bias(model, choice.weight.uses[0], choice.weight.rows), solved.shift)


def _refuse_calibrated_rules(recipe: Recipe) -> None:
    for index, rule in enumerate(recipe.rules):
        low_rank, factor = rule.low_rank and rule.low_rank.algorithm, rule.factor and rule.factor.algorithm
        for key, name, free in (
            ("sparsify.algorithm", rule.sparsify.algorithm, ("auto", "magnitude")),
            ("quantize.algorithm", rule.quantize.algorithm, ("auto", "nearest")),
            ("quantize.scaling", rule.quantize.scaling, ("none", "equalize")),
            ("low_rank.algorithm", low_rank, (None, "auto", "oats", "lorc")),
            ("factor.algorithm", factor, (None, "low_rank", "monarch", "armor", "svd")),
        ):
            if name not in free:
                raise RecipeError(
                    f"recipe rules[{index}].{key}: '{name}' needs calibration inputs; give some "
                    f"(calibration=..., --calibration data.npz), or choose '{free[-1]}'"
                )
        if rule.activations == STATIC:
            raise RecipeError(
                f"recipe rules[{index}].activations: '{STATIC}' takes ranges from calibration inputs; give some "
                "(calibration=..., --calibration data.npz), or choose 'int8'"
            )


class Sparsify(_JobPass):
    """Keep-masks for the sparse schemes, rule by rule, of weights that calibration has left."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        job.masks = [None] * len(job.choices)
        job.digests = [weight_digest(choice) for choice in job.choices]
        for index in range(len(job.recipe.rules)):
            members = [
                i for i, choice in enumerate(job.choices) if choice.rule_index == index and job.solved[i] is None
            ]
            if not members or job.choices[members[0]].scheme.is_dense:
                continue
            chosen = [job.choices[i] for i in members]
            masks = cached_masks(chosen, [job.digests[i] for i in members], partial(_prune, chosen))
            for i, mask in zip(members, masks, strict=True):
                job.masks[i] = mask
        return ir.passes.PassResult(model, False)


def _prune(choices: Sequence[Choice]) -> list[NDArray[np.bool_] | None]:
    """Masks of the weights of one rule."""
    return magnitude_masks([choice.weight.matrix() for choice in choices], [choice.structure for choice in choices])


class EncodeWeights(_JobPass):
    """Every chosen weight becomes a Decode node; the records are complete after it."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        job = self.job
        results = encode_weights(job.choices, job.digests, job.masks, job.solved, job.progress)
        for choice, (encoded, record) in zip(job.choices, results, strict=True):
            if isinstance(encoded, Factored):
                insert_factors(model, choice.weight, encoded)
                choice.notes += filter(None, [encoded.waste()])
            else:
                insert_decode(model, choice, encoded)
            if job.calibration is not None and record.output_error is None:
                record.reason = "; ".join(filter(None, (record.reason, f"not calibrated: {why_not(choice)}")))
            record.notes = "; ".join(choice.notes)
            job.layers.append(record)
        place = {name: i for i, name in enumerate(job.order)}
        job.layers.sort(key=lambda layer: place[layer.name])
        return ir.passes.PassResult(model, bool(results))


class QuantiseActivations(_JobPass):
    """Int8 activations where the recipe asks for them or its error budget allows them."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        rules = self.job.recipe.rules
        wanted: dict[str, tuple[Rule, LayerRecord]] = {}
        for r in self.job.layers:
            if r.rule is not None:
                # Factors follow the rule too; what becomes of a branch is not said of the weight.
                branch = {n: (rules[r.rule], replace(r) if r.name in r.factors else r) for n in r.factors}
                wanted |= branch | {r.name: (rules[r.rule], r)}
        modified = set_activations(model, wanted)
        if (given := self.job.calibration) is not None:
            modified |= round_inputs(model, wanted, given.samples, given.threads, self.job.progress)
        return ir.passes.PassResult(model, modified)
