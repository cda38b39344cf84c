"""The stages that make a model smaller before weights get schemes: thin wrappers around passes/structure."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
import onnx_ir.passes.common as common
from numpy.typing import NDArray

from sparsec.errors import RecipeError
from sparsec.passes.compression import Job
from sparsec.passes.layers import Removal
from sparsec.passes.stages import Stage
from sparsec.passes.structure.dead import dead_units, fold
from sparsec.passes.structure.depth import Branch, branches, greedy
from sparsec.passes.structure.groups import Coupling, Family, couple
from sparsec.passes.structure.hidden import find_stream, separate_norms
from sparsec.passes.structure.ignored import check_selectors, ignored_families, reached
from sparsec.passes.structure.moments import input_spreads, second_moments
from sparsec.passes.structure.refit import refit
from sparsec.passes.structure.remove import remove
from sparsec.passes.structure.rms import without_means
from sparsec.passes.structure.rotation import principal, turn
from sparsec.passes.structure.scores import chosen, fluctuations, magnitudes

__all__ = ["restructuring"]


def restructuring(job: Job) -> tuple[Stage, ...]:
    """The stages that the recipe's section `structure` asks for."""
    if job.recipe.structure is None:
        return ()
    return (
        Stage("keep-original", lambda: KeepOriginal(job)),
        Stage("remove-constant-channels", lambda: RemoveConstantChannels(job)),
        Stage("bypass-branches", lambda: BypassBranches(job)),
        Stage("remove-channels", lambda: RemoveChannels(job)),
        Stage("norms-without-means", lambda: NormsWithoutMeans(job)),
        Stage("slice-hidden", lambda: SliceHidden(job)),
        Stage("fit-what-stays", lambda: FitWhatStays(job)),
        Stage("note-removals", lambda: NoteRemovals(job)),
    )


class _StructurePass(ir.passes.InPlacePass):
    def __init__(self, job: Job) -> None:
        super().__init__()
        assert job.recipe.structure is not None
        self.job, self.settings, self.state = job, job.recipe.structure, job.structured


class KeepOriginal(_StructurePass):
    """Checks that what the recipe asks for can be done at all, and keeps the model as it is to fit layers to."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if self.job.calibration is None and (what := self.settings.needs_calibration):
            raise RecipeError(
                f"recipe structure: '{what}' needs calibration inputs; give some (calibration=..., --calibration data.npz)"
                ", or use score: magnitude and compensate: none"
            )
        check_selectors(model, self.settings.ignore)
        self.state.before = model.clone()
        return ir.passes.PassResult(model, False)


class RemoveConstantChannels(_StructurePass):
    """Channels that are constant, or that nobody reads, until there are no more; exact."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not self.settings.zero_channels:
            return ir.passes.PassResult(model, False)
        total: dict[str, Removal] = {}
        while True:
            coupling = couple(model)
            found = dead_units(model, coupling)
            for family in found.all_but_one:
                total.setdefault(family.name, Removal(_CONSTANT, family.name, family.size, 0, 0))
                total[family.name].reason = "all of them could go; one stays"
            if not found.gone:
                break
            for family, units in found.gone:
                record = total.setdefault(family.name, Removal(_CONSTANT, family.name, family.size, 0, 0))
                record.removed += len(units)
                record.nbytes += int(4 * family.cost() * len(units))
            kept = take(model, coupling, found.gone, self.job)
            for node, shift in found.shifts.items():
                fold(model, node, shift[kept[node]] if node in kept else shift)
        if not total:
            total[""] = Removal(_CONSTANT, "", 0, 0, 0, "there are none")
        self.state.records += list(total.values())
        return ir.passes.PassResult(model, any(record.removed for record in total.values()))


_CONSTANT = "constant channels"


class BypassBranches(_StructurePass):
    """Residual branches whose absence the outputs notice least."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        settings, given = self.settings, self.job.calibration
        if not settings.depth:
            return ir.passes.PassResult(model, False)
        assert given is not None
        named = reached(model, settings.ignore)
        found = branches(model)

        def allowed(branch: Branch) -> bool:
            right = settings.branches in ("any", branch.kind)
            return right and not any(name in named for name in branch.weights)

        gone = greedy(model, settings.depth, given.samples[:_MOST_SAMPLES], allowed, threads=given.threads)
        for number, (branch, error) in enumerate(gone, 1):
            self.state.records.append(Removal("branch", branch.weights[0], 1, 1, branch.nbytes))
            if self.job.progress is not None:
                self.job.progress("branches", number, settings.depth, f"{branch.weights[0]}: output error {error:.2g}")
        if len(gone) < settings.depth:
            kind = "" if settings.branches == "any" else f" of the kind {settings.branches}"
            reason = f"asked for {settings.depth}; the model has {len(list(filter(allowed, found)))} branches{kind} that can go"
            self.state.records.append(Removal("branch", "", len(found), 0, 0, reason))
        return ir.passes.PassResult(model, bool(gone))


_MOST_SAMPLES = 64
"""Runs of the whole model for each branch and round; more tell little."""


class RemoveChannels(_StructurePass):
    """Channels and heads with the lowest scores."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        settings = self.settings
        if not settings.channels and not settings.heads:
            return ir.passes.PassResult(model, False)
        coupling = couple(model)
        ignored = ignored_families(model, coupling.families, settings.ignore)
        gone: list[tuple[Family, NDArray[np.intp]]] = []
        for kind, share in (("channels", settings.channels), ("heads", settings.heads)):
            families = [f for f in coupling.families if f.heads == (kind == "heads")]
            if not share:
                continue
            if not families:
                self.state.records.append(Removal(kind, "", 0, 0, 0, f"the model has no {kind} that can go"))
            gone += self._choose(model, [f for f in families if f.name not in ignored], kind, share)
            for family in families:
                if family.name in ignored:
                    reason = f"ignored by the recipe ({ignored[family.name]})"
                    self.state.records.append(Removal(kind, family.name, family.size, 0, 0, reason))
        if settings.channels:
            self.state.records += [Removal("channels", n, 0, 0, 0, why) for n, why in coupling.stuck.items()]
        take(model, coupling, gone, self.job)
        return ir.passes.PassResult(model, bool(gone))

    def _choose(
        self, model: ir.Model, families: Sequence[Family], kind: str, share: float
    ) -> list[tuple[Family, NDArray[np.intp]]]:
        settings, given = self.settings, self.job.calibration
        score = settings.score if settings.score != "auto" else "magnitude" if given is None else "flap"
        if score == "flap":
            assert given is not None
            blind = [family for family in families if not family.readers]
            families = [family for family in families if family.readers]
            self.state.records += [
                Removal(kind, f.name, f.size, 0, 0, "no linear layer reads it, so flap has no score") for f in blind
            ]
            nodes = [reader.node for family in families for reader in family.readers]
            mask = self.job.recipe.calibrate.mask
            spreads = input_spreads(model, nodes, given.samples, mask=mask, threads=given.threads)
            scores = fluctuations(families, spreads)
        else:
            scores = magnitudes(families)
        costs = [family.cost() for family in families]
        picked = chosen(scores, costs, share, together=settings.scope == "global")
        for family, units, cost in zip(families, picked, costs, strict=True):
            reason = "" if len(units) else f"{share:.1%} of {family.size} is less than one"
            if settings.scope == "global":
                reason = ""
            nbytes = int(4 * cost * len(units))
            self.state.records.append(Removal(kind, family.name, family.size, len(units), nbytes, reason))
        return [(family, units) for family, units in zip(families, picked, strict=True) if len(units)]


class NormsWithoutMeans(_StructurePass):
    """LayerNormalization to RMSNormalization where that is exact and costs nothing."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        if not self.settings.rms_norm:
            return ir.passes.PassResult(model, False)
        stream = find_stream(model)
        norms = [norm for point in stream.points for norm in point.norms if norm.centres]
        left, layers = without_means(model, stream)
        _raise_opset(model)
        centre = np.eye(stream.width) - 1 / max(stream.width, 1)
        for name in layers:
            self.state.change(name, stream.width, centre)
        for norm in norms:
            name = norm.node.name or ""
            self.state.records.append(Removal("norm", name, 1, int(name not in left), 0, left.get(name, "")))
        if not norms:
            self.state.records.append(Removal("norm", "", 0, 0, 0, stream.why_not or "there is no LayerNormalization"))
        return ir.passes.PassResult(model, len(left) < len(norms))


class SliceHidden(_StructurePass):
    """The hidden stream in the basis of its principal directions, the last of which go."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        given, share = self.job.calibration, self.settings.slice
        if not share:
            return ir.passes.PassResult(model, False)
        assert given is not None
        separate_norms(model)
        stream = find_stream(model)
        gone = int(np.floor(share * stream.width + 0.5))
        reason = stream.why_not or ("" if gone else f"{share:.1%} of {stream.width} is less than one")
        saved = 0
        if not reason:
            before, width = _constant_bytes(model), stream.width - gone
            moments = second_moments(
                model, [point.norms[0].node for point in stream.points], given.samples,
                centred=stream.points[0].norms[0].centres, mask=self.job.recipe.calibrate.mask, threads=given.threads,
            )  # fmt: skip
            bases = {p.value: principal(m, width) for p, m in zip(stream.points, moments, strict=True)}
            turned = turn(model, stream, bases)
            _raise_opset(model)
            for name, into in turned.layers.items():
                self.state.change(name, stream.width, into)
            self.state.values |= turned.values
            common.RemoveUnusedNodesPass()(model)
            saved = before - _constant_bytes(model)
        name = stream.points[0].norms[0].node.name or "" if stream.points else ""
        record = Removal("hidden width", name, stream.width, 0 if reason else gone, saved, reason)
        self.state.records.append(record)
        return ir.passes.PassResult(model, not reason)


def _raise_opset(model: ir.Model) -> None:
    """RMSNormalization needs a newer opset than most models have."""
    from sparsec.passes.opset import RaiseOpset  # with onnxscript, a third of a second

    RaiseOpset()(model)


def _constant_bytes(model: ir.Model) -> int:
    return sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)


class FitWhatStays(_StructurePass):
    """Layers that read something else than before are fitted to what they computed."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        given, settings, before = self.job.calibration, self.settings, self.state.before
        lossy = any(record.removed for record in self.state.records if record.kind not in (_CONSTANT, "norm"))
        if given is None or settings.compensate == "none" or before is None or not lossy:
            return ir.passes.PassResult(model, False)
        left = refit(
            model, before, self.state.wanted, self.state.values, given.samples,
            weights=settings.compensate != "bias", damping=settings.damping,
            mask=self.job.recipe.calibrate.mask, threads=given.threads,
        )  # fmt: skip
        self.state.records += [Removal("fit", name, 0, 0, 0, why) for name, why in left.items()]
        self.state.before = None
        return ir.passes.PassResult(model, True)


class NoteRemovals(_StructurePass):
    """The file says that it computes something else than the model it was made of."""

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        removed = sum(record.removed for record in self.state.records)
        if removed:
            model.metadata_props["sparsec.removed"] = str(removed)
        return ir.passes.PassResult(model, bool(removed))


def take(
    model: ir.Model, coupling: Coupling, gone: Sequence[tuple[Family, NDArray[np.intp]]], job: Job
) -> dict[str, NDArray[np.bool_]]:
    """Remove units, and note which outputs of which layers are left; returns that too, bool [outputs] by node."""
    left: dict[str, NDArray[np.bool_]] = {}
    for family, units in gone:
        for tied in family.tied:
            for node, kept in tied.outputs_left(units):
                left[node] = left.get(node, kept) & kept
    for node, kept in left.items():
        job.structured.change(node, len(kept), np.eye(len(kept), dtype=np.float32)[:, kept])
    remove(model, coupling, gone)
    return left
