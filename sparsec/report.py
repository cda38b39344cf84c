"""Reports: before and after, and what became of each layer; as tables for people and as JSON for programs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import IO, TYPE_CHECKING, Any

from sparsec.front import Front
from sparsec.tables import Table
from sparsec.verify import Verification, rounded

if TYPE_CHECKING:
    from sparsec.codegen.program import Program
    from sparsec.passes.layers import LayerRecord, Removal


@dataclass
class Figures:
    """What a model costs. Bytes on disk, bytes in RAM while it runs, median milliseconds of a run, largest relative
    error of an output; None where it was not measured."""

    file_bytes: int | None = None
    ram_bytes: int | None = None
    milliseconds: float | None = None
    error: float | None = None


@dataclass(frozen=True)
class LayerRow:
    """A layer record with the kernel families that compute it (empty before code generation)."""

    record: LayerRecord
    kernel: str = ""
    choice: str = ""
    """The kernels that were compared, the chosen one first, with their times; empty where none were."""

    def to_json(self) -> dict[str, Any]:
        r = self.record
        return {
            "name": r.name,
            "node": r.node,
            "op": r.op,
            "shape": list(r.shape),
            "scheme": r.scheme,
            "activations": r.activations or "fp32",
            "zeros": round(r.zeros, 6),
            "bits_per_weight": round(r.bits_per_weight, 4),
            "bytes": r.nbytes,
            "nmse": rounded(r.nmse),
            **({} if r.output_error is None else {"output_error": rounded(r.output_error)}),
            "kernel": self.kernel,
            "reason": r.reason,
            **({"choice": self.choice} if self.choice else {}),
            **({"notes": r.notes} if r.notes else {}),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LayerRow:
        """Inverse of `to_json`."""
        from sparsec.passes.layers import LayerRecord

        return cls(
            LayerRecord(
                data["name"], data["node"], data["op"], tuple(data["shape"]), data["scheme"], data["reason"],
                data["zeros"], data["bits_per_weight"], data["bytes"], data["nmse"],
                activations=data["activations"].replace("fp32", ""), output_error=data.get("output_error"),
                notes=data.get("notes", ""),
            ),
            data["kernel"],
            data.get("choice", ""),
        )  # fmt: skip


@dataclass
class Report:
    """Everything one compress or compile found out. `before` is the original model in onnxruntime."""

    name: str
    target: str | None
    before: Figures
    after: Figures
    layers: list[LayerRow]
    verification: Verification | None = None
    steps: dict[str, int] = field(default_factory=dict)
    """Kernel family -> number of calls in the program; empty before code generation."""
    removed: Sequence[Removal] = ()
    """What structured removal took out, or could not."""
    notes: Sequence[str] = ()
    """What is to be said of all layers together."""
    front: Front | None = None
    """What a budget chose from, and what it chose; None without one."""

    def summary(self) -> Table:
        """Before and after."""
        rows = tuple(
            (
                label,
                megabytes(f.file_bytes),
                megabytes(f.ram_bytes),
                _number(f.milliseconds, ".3f"),
                _number(f.error, ".2g"),
            )
            for label, f in (("before", self.before), ("after", self.after))
        )
        where = f" for {self.target}" if self.target else ""
        return Table(f"{self.name}{where}", ("", "MB file", "MB RAM", "ms median", "error"), rows)

    def show(self, stream: IO[str] | None = None, *, why: bool = False) -> None:
        """Print all tables: rich on a terminal, plain text otherwise."""
        if self.removed:
            removal_table(self.removed).show(stream)
            print(file=stream)
        layer_table(self.layers, why=why).show(stream)
        print(file=stream)
        for note in self.notes:
            print(f"{note}\n", file=stream)
        if self.front is not None:
            self.front.show(stream)
            print(file=stream)
        self.summary().show(stream)

    def __str__(self) -> str:
        removed = [removal_table(self.removed).text()] if self.removed else []
        return "\n\n".join([*removed, layer_table(self.layers).text(), *self.notes, self.summary().text()])

    def to_json(self, *, measured: bool = False) -> dict[str, Any]:
        """JSON-able. The same compile gives the same result; `measured` adds timings and measured memory, which vary."""
        data: dict[str, Any] = {
            "name": self.name,
            "target": self.target,
            "before": self._figures(self.before, measured),
            "after": self._figures(self.after, measured, ram=True),
            "layers": [row.to_json() for row in self.layers],
            "steps": dict(sorted(self.steps.items())),
            "verification": self.verification.to_json() if self.verification else None,
            **({"front": self.front.to_json()} if self.front else {}),
            **({"notes": list(self.notes)} if self.notes else {}),
        }
        if self.removed:
            data["removed"] = [
                {
                    "kind": r.kind,
                    "name": r.name,
                    "units": r.units,
                    "removed": r.removed,
                    "bytes": r.nbytes,
                    "reason": r.reason,
                }
                for r in self.removed
            ]
        return data

    @staticmethod
    def _figures(figures: Figures, measured: bool, ram: bool = False) -> dict[str, Any]:
        data: dict[str, Any] = {"file_bytes": figures.file_bytes}
        if measured or ram:
            data["ram_bytes"] = figures.ram_bytes
        if measured:
            data["median_ms"] = rounded(figures.milliseconds) if figures.milliseconds is not None else None
        data["error"] = rounded(figures.error) if figures.error is not None else None
        return data


def layer_table(layers: Sequence[LayerRow], *, why: bool = False) -> Table:
    """One row per weight. The last column is the kernel, or the REASON why the weight is dense; `why`: both columns.

    Calibrated weights show the error of their layer's outputs on the calibration inputs too; notes have a column where there are any.
    """
    # A reason that all weights share ("the recipe has no rules") tells nothing: the kernels do.
    plain = len({row.record.reason for row in layers}) == 1 and any(row.kernel for row in layers)
    calibrated = any(row.record.output_error is not None for row in layers)
    headers = ["layer", "op", "shape", "scheme", "zeros %", "bits/weight", "KB", "NMSE"]
    headers += ["output error"] if calibrated else []
    headers += ["kernel", "REASON"] if why else ["kernel or REASON"]
    noted = any(row.record.notes for row in layers)
    headers += ["notes"] if noted else []
    rows = []
    for row in layers:
        r = row.record
        scheme = f"{r.scheme} x {r.activations}" if r.activations else r.scheme
        cells = [
            r.name, r.op, "x".join(map(str, r.shape)), scheme, f"{100 * r.zeros:.1f}", f"{r.bits_per_weight:.2f}",
            f"{r.nbytes / 1000:.1f}", f"{r.nmse:.2g}",
        ]  # fmt: skip
        if calibrated:
            cells.append(_number(r.output_error, ".2g"))
        last = [row.kernel, r.reason or row.choice] if why else [row.kernel if plain or not r.reason else r.reason]
        rows.append((*cells, *last, *([r.notes] if noted else [])))
    return Table("", tuple(headers), tuple(rows), frozenset({0, 1, 2, 3, *range(8 + calibrated, len(headers))}))


def removal_table(removed: Sequence[Removal]) -> Table:
    """One row per group of channels or heads, branch, norm: how much went, or the REASON why not."""
    rows = tuple((r.kind, r.name, str(r.units), str(r.removed), f"{r.nbytes / 1000:.1f}", r.reason) for r in removed)
    return Table(
        "", ("structure", "first weight or node", "units", "removed", "KB", "REASON"), rows, frozenset({0, 1, 5})
    )


def megabytes(nbytes: int | None) -> str:
    """Millions of bytes; '-' for None."""
    if nbytes is None:
        return "-"
    return f"{nbytes / 1e6:.3f}" if nbytes < 1e7 else f"{nbytes / 1e6:.1f}"


def _number(value: float | None, spec: str) -> str:
    return "-" if value is None else format(value, spec)


def layer_rows(
    layers: Sequence[LayerRecord], program: Program | None, readers: Mapping[str, Iterable[str]]
) -> list[LayerRow]:
    """Join records with kernels: `readers` maps a weight's name to the nodes of the final graph that use it."""
    if program is None:
        return [LayerRow(record) for record in layers]
    families: dict[str, list[str]] = {}
    for step in program.steps:
        if step.spec.family != "copy":
            for node in step.nodes:
                families.setdefault(node, []).append(step.spec.family)
    rows = []
    half = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
    for record in layers:
        stored = record.factors or {record.name: math.prod(record.shape)}
        nodes = [node for name in stored for node in readers.get(name, ())] or [record.node]
        names = [family for node in nodes for family in families.get(node, [])]
        decisions = [program.decisions[node] for node in nodes if node in program.decisions]
        choice = " | ".join(dict.fromkeys(map(str, decisions)))
        if decisions and all(decision.decoded for decision in decisions):
            nbytes = (4 if decisions[0].stored == "float32" else 2) * sum(stored.values())
            bits = 8.0 * nbytes / math.prod(record.shape)
            why = "" if decisions[0].reason else "which is faster: "
            reason = f"{record.scheme} decoded at compile time, {why}{choice}"
            scheme = half[decisions[0].stored]
            record = replace(record, scheme=scheme, reason=reason, bits_per_weight=bits, nbytes=nbytes)
        elif not record.factors and all(node in program.stored for node in nodes):
            kept = program.stored[nodes[0]]
            parts = [part for part in record.scheme.split("-") if part not in ("fp32", "fp16")]
            scheme = "-".join([*parts, half[kept.dtype]])
            nbytes = record.nbytes * kept.nbytes // kept.graph_nbytes
            bits = 8.0 * nbytes / math.prod(record.shape)
            record = replace(record, scheme=scheme, bits_per_weight=bits, nbytes=nbytes)
        rows.append(LayerRow(record, "+".join(dict.fromkeys(names)), choice))
    return rows


def step_counts(program: Program) -> dict[str, int]:
    """Kernel family -> number of calls."""
    counts: dict[str, int] = {}
    for step in program.steps:
        counts[step.spec.family] = counts.get(step.spec.family, 0) + 1
    return dict(sorted(counts.items()))
