"""Stages of a pipeline: named passes, each timed, dumpable and checkable."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from sparsec.errors import OutputError, SparsecError
from sparsec.passes.check import check_model
from sparsec.progress import Progress


@dataclass(frozen=True)
class PassRecord:
    """What one stage did: its wall time in seconds, the number of nodes before and after it.

    `cached`: its result came from the cache; the seconds are those of the compile that made it.
    """

    name: str
    seconds: float
    nodes_before: int
    nodes_after: int
    modified: bool
    cached: bool = False


@dataclass(frozen=True)
class Stage:
    """A named pass; `static` says that every shape is known after it."""

    name: str
    make: Callable[[], ir.passes.PassBase]
    static: bool = True


def checking() -> bool:
    """Whether SPARSEC_CHECK asks for the invariants after each stage."""
    return os.environ.get("SPARSEC_CHECK", "") not in ("", "0")


def run_stages(
    model: ir.Model,
    stages: Sequence[Stage],
    *,
    debug_dump: str | Path | None = None,
    first: int = 1,
    title: str = "compress",
    progress: Progress | None = None,
) -> list[PassRecord]:
    """Run stages in order on `model`, in place.

    Args:
        debug_dump: folder that gets `NN-name.onnx` after each stage.
        first: number of the first stage, for the names of the dumps.
        title: of all stages together in what `progress` is called with.
        progress: called with the name of each stage before it starts.

    Raises:
        SparsecError: what a stage found wrong with the model.
        OutputError: the dump folder cannot be written.
    """
    check = checking()
    records = []
    for number, stage in enumerate(stages, first):
        if progress is not None:
            progress(title, number - first, len(stages), stage.name)
        before, start = _count(model), time.perf_counter()
        try:
            result = stage.make()(model)
        except ir.passes.PassError as error:
            if isinstance(error.__cause__, SparsecError):
                raise error.__cause__ from None
            raise
        records.append(
            PassRecord(stage.name, time.perf_counter() - start, before, _count(model), bool(result.modified))
        )
        if debug_dump is not None:
            _dump(model, Path(debug_dump), f"{number:02d}-{stage.name}.onnx")
        if check:
            check_model(model, stage.name, static=stage.static)
    if progress is not None:
        progress(title, len(stages), len(stages), "")
    return records


def _count(model: ir.Model) -> int:
    return sum(1 for _ in model.graph.all_nodes())


def _dump(model: ir.Model, folder: Path, name: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        ir.save(model, folder / name)
    except OSError as error:
        raise OutputError(f"debug_dump: cannot write {folder / name}: {error}") from error
