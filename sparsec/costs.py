"""What a compressed graph costs: bytes of its portable file, or of a program's weights and its predicted or measured time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from sparsec.codegen.blob import HEADER_BYTES
from sparsec.codegen.bundle import build_loadable
from sparsec.codegen.choice import Policy
from sparsec.codegen.cost import predict
from sparsec.codegen.lower import lower
from sparsec.codegen.machine import nominal, this_machine
from sparsec.codegen.plan import make_plan
from sparsec.codegen.program import Program
from sparsec.emulate import runs_here
from sparsec.errors import TargetError
from sparsec.passes import Compressed
from sparsec.portable import portable, saved_by_halves
from sparsec.readers import readers_of
from sparsec.reference import onnx_bytes
from sparsec.runtime import Session
from sparsec.target import Target

__all__ = ["Cost", "Costs", "FileCosts", "ProgramCosts"]

_ROUNDS = 20


@dataclass
class Cost:
    """nbytes in all, seconds of a run (None: not asked), and the shares of single weights in them, by name."""

    nbytes: int
    seconds: float | None = None
    layer_nbytes: dict[str, float] = field(default_factory=dict)
    layer_seconds: dict[str, float] = field(default_factory=dict)


class Costs(Protocol):
    """Finds out what a compressed graph costs."""

    def __call__(self, compressed: Compressed) -> Cost: ...


@dataclass(frozen=True)
class ProgramCosts:
    """weights.bin, and the time of one run: predicted by codegen/cost.py, or measured step by step on `feed` if
    the policy tunes."""

    target: Target
    policy: Policy
    feed: Mapping[str, Any] = field(default_factory=dict)
    timed: bool = True

    def __call__(self, compressed: Compressed) -> Cost:
        program = lower(compressed.model, self.target, "trial", policy=self.policy)
        found = Cost(HEADER_BYTES + make_plan(program).weights_bytes)
        readers = readers_of(compressed.model)
        names: dict[str, list[str]] = {}
        for record in compressed.layers:
            for node in readers.get(record.name, (record.node,)):
                names.setdefault(node, []).append(record.name)
        seconds = self._seconds(program) if self.timed else [0.0] * len(program.steps)
        for step, spent in zip(program.steps, seconds, strict=True):
            owners = [name for node in step.nodes for name in names.get(node, [])]
            size = sum(ref.buffer.nbytes for ref in step.refs if ref.buffer.kind == "const")
            for name in owners:  # joined weights share a node
                found.layer_nbytes[name] = found.layer_nbytes.get(name, 0.0) + size / len(owners)
                found.layer_seconds[name] = found.layer_seconds.get(name, 0.0) + spent / len(owners)
        if self.timed:
            found.seconds = float(sum(seconds))
        return found

    def _seconds(self, program: Program) -> list[float]:
        if self.target.gpu:
            raise TargetError(
                f"the time of a run cannot be predicted for target '{self.target.name}': a budget can limit size and error there"
            )
        threads = self.policy.threads
        if self.policy.tune:
            loadable = build_loadable(program)
            with Session(loadable.library, loadable.weights, threads=threads) as session:
                session.run(self.feed)
                return [step.ns * 1e-9 for step in session.profile(self.feed, repeat=_ROUNDS)]
        machine = this_machine() if runs_here(self.target) else nominal(self.target)
        return [predict([step], self.target, machine, threads) for step in program.steps]


@dataclass(frozen=True)
class FileCosts:
    """The portable ONNX file; `program` tells the time, where one is asked for."""

    program: Callable[[Compressed], Cost] | None = None

    def __call__(self, compressed: Compressed) -> Cost:
        made, readers = portable(compressed.model), readers_of(compressed.model)
        saved = saved_by_halves(made)
        nodes = {r.name: readers.get(r.name, (r.node,))[0] for r in compressed.layers}
        own = {r.name: float(r.nbytes - saved.get(nodes[r.name], 0)) for r in compressed.layers}
        found = Cost(len(onnx_bytes(made)), layer_nbytes=own)
        if self.program is not None:
            timed = self.program(compressed)
            found.seconds, found.layer_seconds = timed.seconds, timed.layer_seconds
        return found
