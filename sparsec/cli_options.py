"""Options that several commands share; they have the names of the API's keywords."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from sparsec.console import settings


def _set_verbose(value: bool) -> None:
    settings.verbose = settings.verbose or value


def _set_json(value: bool) -> None:
    settings.json = settings.json or value


def _set_no_cache(value: bool) -> None:
    if value:
        from sparsec import cache

        cache.use_scratch()


Model = Annotated[Path, typer.Argument(help="ONNX file.", show_default=False)]
Verbose = Annotated[bool, typer.Option("--verbose", "-v", callback=_set_verbose, help="Show stack traces of errors.")]
Json = Annotated[bool, typer.Option("--json", callback=_set_json, help="Print JSON on standard output.")]
RecipeOption = Annotated[
    str | None,
    typer.Option(
        "--recipe",
        help="Scheme (int8, cb4-g32 ...), preset (safe, balanced, small, fast) or YAML file; compress: balanced if not given.",
    ),
]
Shapes = Annotated[
    str | None,
    typer.Option("--input-shapes", metavar="NAME=SHAPE,...", help="Bind inputs or dimensions: x=1x3x224x224,batch=1."),
]
Values = Annotated[
    str | None, typer.Option("--input-values", metavar="NAME=VALUE,...", help="Make inputs constants: sr=16000.")
]
CalibrationOption = Annotated[
    Path | None,
    typer.Option("--calibration", metavar="X.NPZ", help="Inputs by name, all samples side by side, to calibrate on."),
]
BudgetOption = Annotated[
    str | None,
    typer.Option(
        "--budget",
        metavar="1.2MB,25ms,0.5%",
        help="Choose schemes so that size, time, error of the outputs, or what the task loses ('1 point', '1% task') stay below.",
    ),
]
LabelsOption = Annotated[
    Path | None,
    typer.Option(
        "--labels",
        metavar="X.NPZ",
        help="Inputs and an array 'labels' of classes: measures the task of a budget, calibrates too without --calibration.",
    ),
]
CandidatesOption = Annotated[
    str | None, typer.Option("--candidates", metavar="SCHEME,...", help="Schemes a budget may choose, besides fp32.")
]
FrontOption = Annotated[
    Path | None,
    typer.Option(
        "--front",
        metavar="FILE.png",
        help="Draw error against size and time of the choices; .json, .txt: with every weight in every scheme.",
    ),
]
Force = Annotated[bool, typer.Option("--force", help="Replace an output that exists.")]
Dump = Annotated[Path | None, typer.Option("--debug-dump", metavar="DIR", help="Write the graph after each pass.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=256, help="Threads of the program and of onnxruntime.")]
Jobs = Annotated[
    int | None,
    typer.Option("--jobs", min=1, help="Kernel compilers, and threads that calibrate, at once [default: all cores]."),
]
ExecutorOption = Annotated[
    str | None,
    typer.Option("--executor", metavar="dask://HOST:PORT", help="Calibrate on the workers of a Dask scheduler."),
]
TargetOption = Annotated[str, typer.Option("--target", help="See `sparsec targets`.")]
Keep = Annotated[
    str | None,
    typer.Option(
        "--keep",
        metavar="size|speed",
        help="speed: decode weights now where the dense product is faster [recipe's: size].",
    ),
]
Tune = Annotated[bool, typer.Option("--tune", help="Measure the kernels that can compute a product; take the fastest.")]
NoVerify = Annotated[bool, typer.Option("--no-verify", help="Do not compare the result with onnxruntime.")]
NoCache = Annotated[
    bool,
    typer.Option("--no-cache", callback=_set_no_cache, help="Neither read nor fill the cache."),
]
Inputs = Annotated[Path | None, typer.Option("--inputs", metavar="X.NPZ", help="Inputs by name [default: random].")]


def examples(calibration: Path | None, labels: Path | None, budget: str | None) -> dict[str, Any]:
    """Keywords of the API: what to calibrate and to measure the task on; labelled examples serve both where there are no others.

    Raises BudgetError, and BadParameter for labels that nothing would read.
    """
    from sparsec.budget import parse_budget

    if labels is None:
        return {"calibration": calibration}
    if budget is None or not parse_budget(budget).on_task:
        raise typer.BadParameter("they are for a budget on the task (--budget '1 point')", param_hint="--labels")
    if calibration is None:
        return {"calibration": labels}
    return {"calibration": calibration, "validation": labels, "labels": "labels"}
