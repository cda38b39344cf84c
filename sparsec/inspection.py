"""What `sparsec inspect` and `sparsec verify` do with files: an ONNX model, a compressed one, or a bundle."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import onnx_ir as ir

from sparsec import fixed, samples
from sparsec.candidate import has_encoded, open_candidate
from sparsec.codegen.choice import Policy, checked_keep
from sparsec.codegen.lower import lower
from sparsec.compiled import read_json
from sparsec.errors import ShapeError, UnsupportedOpError
from sparsec.frontend import load_model
from sparsec.frontend.onnx import read_onnx
from sparsec.passes import PassRecord, fixed_products, float_activations
from sparsec.passes import compress as compress_graph
from sparsec.readers import readers_of
from sparsec.recipe import load_recipe
from sparsec.reference import Reference
from sparsec.report import LayerRow, layer_rows, layer_table
from sparsec.tables import Table
from sparsec.target import resolve_target
from sparsec.verify import COMPRESSED_BOUND, DENSE_BOUND, Verification, half_bound, int8_bound, verify_run


@dataclass
class Inspection:
    """What a model file or bundle holds. `problems`: what keeps the model from being compiled as it is."""

    path: str
    kind: str
    facts: dict[str, str]
    tensors: list[tuple[str, str, str, str]]
    """(role, name, dtype, shape) of inputs and outputs."""
    operators: dict[str, int] = field(default_factory=dict)
    layers: list[LayerRow] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What a bundle's report says of all layers together."""
    passes: list[PassRecord] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return {
            "path": self.path,
            "kind": self.kind,
            **self.facts,
            "tensors": [dict(zip(("role", "name", "dtype", "shape"), row, strict=True)) for row in self.tensors],
            "operators": self.operators,
            "layers": [row.to_json() for row in self.layers],
            **({"notes": self.notes} if self.notes else {}),
            "passes": [
                {"name": p.name, "nodes_before": p.nodes_before, "nodes_after": p.nodes_after, "modified": p.modified}
                for p in self.passes
            ],
            "problems": self.problems,
        }

    def show(self, stream: IO[str] | None = None, *, why: bool = False) -> None:
        """Print the tables; `why` adds the reasons of dense weights and what each pass did."""
        facts = ", ".join(f"{key} {value}" for key, value in self.facts.items())
        print(f"{self.path}: {self.kind}{', ' if facts else ''}{facts}\n", file=stream)
        Table("", ("role", "name", "dtype", "shape"), tuple(self.tensors), frozenset({0, 1, 2, 3})).show(stream)
        if self.operators:
            print(file=stream)
            counted = tuple((name, str(count)) for name, count in self.operators.items())
            Table("", ("operator", "nodes"), counted).show(stream)
        if self.layers:
            print(file=stream)
            layer_table(self.layers, why=why).show(stream)
        for note in self.notes if why else ():
            print(f"\n{note}", file=stream)
        if why and self.passes:
            print(file=stream)
            rows = tuple((p.name, str(p.nodes_before), str(p.nodes_after)) for p in self.passes if p.modified)
            Table("", ("pass that changed the graph", "nodes before", "after"), rows).show(stream)
        for problem in self.problems:
            print(f"\ncannot be compiled as it is: {problem}", file=stream)


def inspect(
    path: str | Path,
    *,
    target: str = "cpu",
    recipe: Any = None,
    input_shapes: Mapping[str, Any] | None = None,
    input_values: Mapping[str, Any] | None = None,
    keep: str | None = None,
    tune: bool = False,
    threads: int = 1,
) -> Inspection:
    """Look at an ONNX file or a bundle folder; an ONNX file is taken through passes and lowering, nothing is compiled
    but kernels that `tune` measures; `keep`, `tune` and `threads` are those of `compile`.

    Raises:
        ModelError, BundleError: not a model, not a bundle.
        RecipeError, TargetError, WeightError: as for compile. What else keeps it from compiling is in `problems`.
    """
    path = Path(path)
    if path.is_dir():
        return _inspect_bundle(path)
    machine = resolve_target(target)
    model = read_onnx(path)
    result = Inspection(
        str(path),
        "ONNX model",
        {"opset": str(model.graph.opset_imports.get("", "?")), "IR version": str(model.ir_version)},
        [("input", *_described(value)) for value in model.graph.inputs]
        + [("output", *_described(value)) for value in model.graph.outputs],
        _operators(model),
    )
    try:
        source = load_model(path, None, input_shapes, input_values)
        chosen = load_recipe(recipe)
        policy = Policy(checked_keep(keep or chosen.keep), tune, threads)
        compressed = compress_graph(source, chosen)
    except (ShapeError, UnsupportedOpError) as error:
        result.problems.append(str(error))
        return result
    result.passes = compressed.passes
    try:
        program = lower(compressed.model, machine, "model", policy=policy)
    except UnsupportedOpError as error:
        result.problems.append(str(error))
        program = None
    result.layers = layer_rows(compressed.layers, program, readers_of(compressed.model))
    return result


def _operators(model: ir.Model) -> dict[str, int]:
    counts = Counter(f"{node.domain}::{node.op_type}" if node.domain else node.op_type for node in model.graph)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _described(value: ir.Value) -> tuple[str, str, str]:
    shape = (
        "unknown"
        if value.shape is None
        else "x".join(str(d) if isinstance(d, int) else str(d.value or "?") for d in value.shape)
    )
    return value.name or "", value.dtype.name.lower() if value.dtype else "?", shape or "scalar"


def _inspect_bundle(path: Path) -> Inspection:
    manifest = read_json(path / "manifest.json")
    tensors = [
        (role, str(t["name"]), str(t["dtype"]), "x".join(map(str, t["shape"])) or "scalar")
        for role in ("input", "output")
        for t in manifest[f"{role}s"]
    ]
    report = read_json(path / "report.json")
    return Inspection(
        str(path),
        "sparsec bundle",
        {"model": str(manifest["name"]), "target": str(manifest["target"]["name"])},
        tensors,
        layers=[LayerRow.from_json(row) for row in report["layers"]],
        notes=report.get("notes", []),
    )


def verify_files(
    model: str | Path,
    candidate: str | Path,
    *,
    inputs: str | Path | None = None,
    tolerance: float | None = None,
    input_shapes: Mapping[str, Any] | None = None,
    input_values: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> Verification:
    """Compare `candidate` (ONNX file or bundle) with `model` run by onnxruntime, on the same inputs.

    Without `tolerance` the bound is that of dense programs where nothing was compressed, that of compressed ones where
    `model` is the portable ONNX the bundle was made of; elsewhere the error is reported only, but must be a number.
    """
    made = open_candidate(Path(candidate), input_shapes, input_values, threads)
    source = load_model(model, None, input_shapes or made.shapes, input_values)
    feed = samples.load_inputs(inputs, source) if inputs is not None else samples.random_inputs(source)
    reference = Reference(model, fixed=input_values, threads=threads)
    bound = tolerance
    if bound is None and not made.lossy:
        bound = DENSE_BOUND
    elif bound is None and has_encoded(source):
        bound = COMPRESSED_BOUND
        if (floating := float_activations(source)) is not None:
            bound = int8_bound(reference.run(feed), Reference(floating, fixed=input_values).run(feed))
        if roundings := fixed_products(source):
            bound = max(bound, half_bound(fixed.NAME, roundings))
    return verify_run(
        made.run,
        reference.run,
        feed,
        bound=bound,
        subject=made.words,
        against=f"{model} in onnxruntime",
        inputs=Path(inputs).name if inputs is not None else "random, seed 0",
    )
