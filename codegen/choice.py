"""Which of several ways to compute a node: the first rule that takes it, or the fastest by prediction or by measurement.

Without a wish for speed the order of kernels/table.py decides, which is the same on every machine. With `keep="speed"` the
candidates are all rules that take the node, each with the weight as it is and with the weight decoded to float32 now; with
`tune` all rules that take the node as it is. The one with the least time wins: measured if `tune`, else predicted from this
machine's rates (a target that is not this machine's: typical rates).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import onnx_ir as ir

from sparsec.codegen.context import Lowering, Refusal, Rule, State
from sparsec.codegen.cost import predict
from sparsec.codegen.kernels.relax import lower_relax
from sparsec.codegen.machine import Machine, nominal, this_machine
from sparsec.codegen.program import Decision, Option, Step
from sparsec.codegen.tune import check_tunable, measured_seconds
from sparsec.codegen.twins import decoded_twin, forget
from sparsec.errors import InputError
from sparsec.op_view import is_sparsec, view
from sparsec.target import Target, host_target

__all__ = ["Chooser", "Policy", "checked_keep"]

_MARGIN = 0.9
"""A prediction overrides the table's order only when it is this much better: the model errs by more than a few percent."""


@dataclass(frozen=True)
class Policy:
    """How to choose. keep: "size" never decodes a weight at compile time, "speed" does where that is faster.
    tune: measure instead of predicting. threads: of the program whose time counts."""

    keep: Literal["size", "speed"] = "size"
    tune: bool = False
    threads: int = 1

    @property
    def chooses(self) -> bool:
        """Whether candidates are compared at all."""
        return self.tune or self.keep == "speed"


@dataclass
class _Candidate:
    label: str
    steps: list[Step]
    state: State
    decoded: bool
    option: Option | None = field(default=None)


def checked_keep(text: str) -> Literal["size", "speed"]:
    """`text` if it says what to keep. Raises InputError."""
    if text in ("size", "speed"):
        return text  # type: ignore[return-value]
    raise InputError(
        f"keep='{text}': 'size' (weights stay coded) and 'speed' (decoded where that is faster) are possible"
    )


class Chooser:
    """Lowers nodes one by one by a policy and notes what it decided."""

    def __init__(self, low: Lowering, policy: Policy) -> None:
        self.low, self.policy = low, policy
        if policy.tune:
            check_tunable(low.target)

    @cached_property
    def _machine(self) -> Machine:
        return this_machine() if _runs_here(self.low.target) else nominal(self.low.target)

    def lower(self, node: ir.Node, rules: tuple[Rule, ...] | Any) -> list[str] | None:
        """Append the steps of a node. None when a rule took it, else why each did not."""
        # what is known of times is known of processors: on a GPU the table's order decides
        if self.low.target.gpu or not (self.policy.chooses and is_sparsec(node) and node.op_type in ("MatMul", "Conv")):
            return lower_node(node, rules, self.low)
        base, refusals, found = self.low.save(), [], list[_Candidate]()
        for variant, decoded in self._variants(node):
            for rule in rules:
                if rule is lower_relax and found:
                    continue
                before = len(self.low.program.steps)
                refusal = rule(variant, self.low)
                if refusal is not None:
                    refusals.append(refusal.reason)
                    self.low.restore(base)
                    continue
                if variant is not node:
                    self.low.rename(variant.outputs[0], node.outputs[0])
                steps = self.low.program.steps[before:]
                label = "+".join(dict.fromkeys(step.spec.family for step in steps))
                label += f" {view(variant).scheme}"
                found.append(_Candidate(label, steps, self.low.save(), decoded))
                self.low.restore(base)
        if not found:
            return refusals
        winner = self._best(found)
        self.low.restore(winner.state)
        if len(found) > 1:
            order = [winner, *(c for c in found if c is not winner)]
            self.low.program.decisions[node.name or ""] = Decision(
                tuple(c.option for c in order if c.option is not None), winner.decoded
            )
        return None

    def _variants(self, node: ir.Node) -> Iterator[tuple[ir.Node, bool]]:
        yield node, False
        if self.policy.keep == "speed" and (twin := decoded_twin(node)) is not None:
            if node in self.low.plan:
                self.low.plan[twin] = self.low.plan[node]
            if (place := self.low.places.get(node.outputs[0])) is not None:
                self.low.places[twin.outputs[0]] = place
            yield twin, True
            forget(twin)

    def _best(self, found: list[_Candidate]) -> _Candidate:
        if len(found) == 1:
            return found[0]
        target, threads = self.low.target, self.policy.threads
        for candidate in found:
            predicted = predict(candidate.steps, target, self._machine, threads)
            measured = measured_seconds(candidate.steps, target, threads) if self.policy.tune else None
            candidate.option = Option(candidate.label, predicted, measured)
        best = found[0]
        margin = 1.0 if self.policy.tune else _MARGIN
        for candidate in found[1:]:
            assert candidate.option is not None
            assert best.option is not None
            if candidate.option.seconds < margin * best.option.seconds:
                best = candidate
        return best


def lower_node(node: ir.Node, rules: Any, low: Lowering) -> list[str] | None:
    """Append the steps of the first rule that takes a node; None then, else why each does not."""
    refusals = []
    rule: Callable[[ir.Node, Lowering], Refusal | None]
    for rule in rules:
        refusal = rule(node, low)
        if refusal is None:
            return None
        refusals.append(refusal.reason)
    return refusals


def _runs_here(target: Target) -> bool:
    host = host_target()
    return target.arch == host.arch and set(target.features) <= set(host.features)
