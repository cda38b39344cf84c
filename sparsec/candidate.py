"""What is compared with a model: a portable ONNX file, a bundle, or what compress() and compile() returned, ready to run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from sparsec.compiled import CompiledModel, load, read_json
from sparsec.frontend import load_model
from sparsec.reference import Reference
from sparsec.verify import Run

__all__ = ["Candidate", "has_encoded", "open_candidate"]


@dataclass(frozen=True)
class Candidate:
    """words: what to call it. shapes: of its inputs, by name. lossy: whether a weight has another scheme than fp32, or units were
    removed."""

    words: str
    run: Run
    shapes: Mapping[str, Any]
    lossy: bool


def open_candidate(
    candidate: Any,
    input_shapes: Mapping[str, Any] | None = None,
    input_values: Mapping[str, Any] | None = None,
    threads: int = 1,
) -> Candidate:
    """Open `candidate`: path of an ONNX file or bundle folder, `CompressedModel`, `CompiledModel`, or another form of ONNX model.

    Raises ModelError, ShapeError, BundleError, TargetError: it cannot be read, bound or run here.
    """
    if isinstance(candidate, str | Path) and Path(candidate).is_dir():
        bundle = load(candidate, threads=threads)
        report = read_json(Path(candidate) / "report.json")
        lossy = _lossy(row["scheme"] for row in report["layers"]) or any(
            row["removed"] for row in report.get("removed", ())
        )
        return Candidate(str(candidate), bundle.run, _shapes_of(bundle), lossy)
    if isinstance(candidate, CompiledModel):
        lossy = _lossy(row.record.scheme for row in candidate.report.layers)
        lossy |= any(removal.removed for removal in candidate.report.removed)
        words = f"the program compiled for {candidate.target.name}"
        return Candidate(words, candidate.run, _shapes_of(candidate), lossy)
    data = candidate.to_bytes() if hasattr(candidate, "to_bytes") else candidate
    made = load_model(data, None, input_shapes, input_values)
    source = data if isinstance(data, str | Path | bytes) else made
    shapes = {v.name or "": [int(d) for d in v.shape.numpy()] for v in made.graph.inputs if v.shape is not None}
    words = str(candidate) if isinstance(candidate, str | Path) else "the compressed model"
    run = Reference(source, fixed=input_values, threads=threads).run
    return Candidate(words, run, shapes, has_encoded(made))


def has_encoded(model: ir.Model) -> bool:
    """Whether some weight is stored in a scheme other than fp32, or units were removed (passes/restructure.py says so)."""
    return "sparsec.removed" in model.metadata_props or _lossy(
        node.attributes.get_string("scheme", "fp32") for node in model.graph if node.domain == "sparsec"
    )


def _shapes_of(program: Any) -> dict[str, list[int]]:
    return {info.name: list(info.shape) for info in program.inputs}


def _lossy(schemes: Any) -> bool:
    return any(scheme != "fp32" for scheme in schemes)
