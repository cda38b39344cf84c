"""The command line. Options have the names of the API's keywords.

Exit codes: 0 done, 1 failed, 2 the command line is wrong (an unknown target too), 3 verification failed.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsec.errors import SparsecError, TargetError, VerificationError
from sparsec.options import parse_shapes, parse_values

app = typer.Typer(
    name="sparsec",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Make trained neural networks small and fast. `sparsec in.onnx out.onnx` compresses with the default preset.",
)


@dataclass
class _Settings:
    verbose: bool = False
    json: bool = False


_settings = _Settings()


def _set_verbose(value: bool) -> None:
    _settings.verbose = _settings.verbose or value


def _set_json(value: bool) -> None:
    _settings.json = _settings.json or value


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
    typer.Option("--budget", metavar="1.2MB,25ms,0.5%", help="Choose schemes so that size, time or error stay below."),
]
CandidatesOption = Annotated[
    str | None, typer.Option("--candidates", metavar="SCHEME,...", help="Schemes a budget may choose, besides fp32.")
]
FrontOption = Annotated[
    Path | None, typer.Option("--front", metavar="FILE.png", help="Draw error against size and time of the choices.")
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


def _version(value: bool) -> None:
    if value:
        from sparsec import __version__

        typer.echo(f"sparsec {__version__}")
        raise typer.Exit


@app.callback()
def _app(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Make trained neural networks small and fast. `sparsec in.onnx out.onnx` compresses with the default preset."""


@app.command()
def compress(
    model: Model,
    output: Annotated[Path, typer.Argument(help="Portable ONNX file to write.", show_default=False)],
    recipe: RecipeOption = None,
    budget: BudgetOption = None,
    candidates: CandidatesOption = None,
    front: FrontOption = None,
    target: TargetOption = "cpu",
    input_shapes: Shapes = None,
    input_values: Values = None,
    calibration: CalibrationOption = None,
    inputs: Inputs = None,
    force: Force = False,
    no_verify: NoVerify = False,
    jobs: Jobs = None,
    executor: ExecutorOption = None,
    no_cache: NoCache = False,
    debug_dump: Dump = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compress a model's weights; the result runs in any onnxruntime."""
    from sparsec import api

    _refuse_existing(output, force)
    _check_front(front, budget, force)
    with _progress() as progress:
        result = api.compress(
            model,
            api.DEFAULT_RECIPE if recipe is None else recipe,
            budget=budget,
            candidates=candidates,
            target=target,
            input_shapes=parse_shapes(input_shapes),
            input_values=parse_values(input_values),
            calibration=calibration,
            inputs=inputs,
            verify=not no_verify,
            jobs=jobs,
            executor=executor,
            debug_dump=debug_dump,
            progress=progress,
        )
        result.save(output, force=force)
        _draw(result.report, front, force)
    _print(result.report.to_json(), result.report.show)
    _note(f"wrote {output}")


@app.command()
def compile(
    model: Model,
    target: TargetOption = "cpu",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Bundle folder to write [default: build/NAME].")
    ] = None,
    recipe: RecipeOption = None,
    budget: BudgetOption = None,
    candidates: CandidatesOption = None,
    front: FrontOption = None,
    input_shapes: Shapes = None,
    input_values: Values = None,
    calibration: CalibrationOption = None,
    inputs: Inputs = None,
    name: Annotated[str | None, typer.Option("--name", help="C name of the model [default: from the file].")] = None,
    force: Force = False,
    no_verify: NoVerify = False,
    no_cache: NoCache = False,
    jobs: Jobs = None,
    executor: ExecutorOption = None,
    threads: Threads = 1,
    keep: Keep = None,
    tune: Tune = False,
    debug_dump: Dump = None,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compile a model to a folder with library, C sources, weights and a demo program."""
    from sparsec import api

    called = name or api.default_name(model)
    folder = output or Path("build") / called
    _refuse_existing(folder, force)
    _check_front(front, budget, force)
    with _progress() as progress:
        result = api.compile(
            model,
            target,
            recipe,
            budget=budget,
            candidates=candidates,
            input_shapes=parse_shapes(input_shapes),
            input_values=parse_values(input_values),
            calibration=calibration,
            inputs=inputs,
            threads=threads,
            keep=keep,
            tune=tune,
            verify=not no_verify,
            jobs=jobs,
            executor=executor,
            progress=progress,
            name=called,
            debug_dump=debug_dump,
        )
        result.save(folder, force=force)
        _draw(result.report, front, force)
    _print(result.report.to_json(), result.report.show)
    _note(f"wrote {folder}{_verdict(result.report)}")


@app.command()
def inspect(
    model: Annotated[Path, typer.Argument(help="ONNX file or bundle folder.", show_default=False)],
    why: Annotated[bool, typer.Option("--why", help="Kernels, and the reason of every weight left dense.")] = False,
    recipe: RecipeOption = None,
    target: TargetOption = "cpu",
    input_shapes: Shapes = None,
    input_values: Values = None,
    threads: Threads = 1,
    keep: Keep = None,
    tune: Tune = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Show inputs, outputs, operators and weights, and what a recipe would do with them."""
    from sparsec import inspection

    found = inspection.inspect(
        model,
        target=target,
        recipe=recipe,
        input_shapes=parse_shapes(input_shapes),
        input_values=parse_values(input_values),
        keep=keep,
        tune=tune,
        threads=threads,
    )
    _print(found.to_json(), lambda: found.show(why=why))


@app.command()
def verify(
    model: Model,
    candidate: Annotated[Path, typer.Argument(help="Compressed ONNX file or bundle folder.", show_default=False)],
    inputs: Inputs = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help="Largest relative error [default: 1e-4 dense, 1e-3 compressed against its portable ONNX]."),
    ] = None,
    samples: Annotated[
        Path | None,
        typer.Option(metavar="X.NPZ", help="Many inputs side by side: error, cosine, KL divergence of the outputs."),
    ] = None,
    labels: Annotated[
        Path | None,
        typer.Option(metavar="X.NPZ", help="The same with an array 'labels': scores, worst classes, what changed."),
    ] = None,
    output: Annotated[str | None, typer.Option(help="The output that labels belong to [default: the first].")] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Outputs are logits: compare what they decide.")] = False,
    worst: Annotated[int, typer.Option(min=1, help="Classes and examples to show.")] = 10,
    input_shapes: Shapes = None,
    input_values: Values = None,
    threads: Threads = 1,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Compare a compressed model or a bundle with a model run by onnxruntime, on one input or on many."""
    if samples is not None or labels is not None:
        if None not in (samples, labels) or inputs is not None or tolerance is not None:
            raise typer.BadParameter("--samples, --labels, and --inputs with --tolerance exclude each other")
        _validate(model, candidate, samples, labels, output, logits, worst, input_shapes, input_values, threads)
        return
    from sparsec import inspection

    result = inspection.verify_files(
        model,
        candidate,
        inputs=inputs,
        tolerance=tolerance,
        input_shapes=parse_shapes(input_shapes),
        input_values=parse_values(input_values),
        threads=threads,
    )
    _print(result.to_json(), lambda: typer.echo(f"{result.summary()}\n{result.table()}"))
    result.check()


def _validate(
    model: Path,
    candidate: Path,
    samples: Path | None,
    labels: Path | None,
    output: str | None,
    logits: bool,
    worst: int,
    input_shapes: str | None,
    input_values: str | None,
    threads: int,
) -> None:
    from sparsec.validation import validate

    with _progress() as progress:
        found = validate(
            model,
            candidate,
            samples or labels,
            None if labels is None else "labels",
            output=output,
            logits=logits,
            input_shapes=parse_shapes(input_shapes),
            input_values=parse_values(input_values),
            threads=threads,
            progress=progress,
        )
    _print(found.to_json(), lambda: typer.echo(found.summary()), *(table.show for table in found.tables(worst)))


@app.command()
def bench(
    model: Model,
    against: Annotated[str, typer.Option("--against", help="The rival: ort (onnxruntime).")] = "ort",
    target: TargetOption = "cpu",
    recipe: RecipeOption = None,
    input_shapes: Shapes = None,
    input_values: Values = None,
    inputs: Inputs = None,
    threads: Threads = 1,
    keep: Keep = None,
    tune: Tune = False,
    seconds: Annotated[float, typer.Option("--seconds", min=0.0, help="Time to spend.")] = 5.0,
    jobs: Jobs = None,
    no_cache: NoCache = False,
    as_json: Json = False,
    verbose: Verbose = False,
) -> None:
    """Time the compiled model and a rival in turns; medians and ratio."""
    from sparsec import api

    if against != "ort":
        raise typer.BadParameter(f"unknown rival '{against}'; known: ort", param_hint="--against")
    with _progress() as progress:
        result = api.compile(
            model,
            target,
            recipe,
            input_shapes=parse_shapes(input_shapes),
            input_values=parse_values(input_values),
            inputs=inputs,
            threads=threads,
            keep=keep,
            tune=tune,
            jobs=jobs,
            progress=progress,
        )
        timing = result.benchmark(against=against, seconds=seconds)
    data = {
        **timing.to_json(),
        "ratio": timing.ratio("sparsec", "onnxruntime"),
        "report": result.report.to_json(measured=True),
    }
    _print(data, result.report.summary().show, timing.table().show)


@app.command()
def targets(as_json: Json = False, verbose: Verbose = False) -> None:
    """List the targets."""
    from sparsec.tables import Table
    from sparsec.target import available_targets

    known = available_targets()
    table = Table("", ("target", "what it is"), tuple(known.items()), frozenset({0, 1}))
    _print(known, table.show)


def _refuse_existing(output: Path, force: bool) -> None:
    """Before any work, so that nobody waits for a result that cannot be written."""
    from sparsec.files import check_free

    check_free(output, force)


def _check_front(front: Path | None, budget: str | None, force: bool) -> None:
    if front is None:
        return
    if budget is None:
        raise typer.BadParameter("there is a front only with a budget (--budget)", param_hint="--front")
    _refuse_existing(front, force)


def _draw(report: Any, front: Path | None, force: bool) -> None:
    if front is not None:
        report.front.save(front, force)


def _verdict(report: Any) -> str:
    check = report.verification
    return f"; verified: error {check.error:.2g} against {check.reference}" if check else "; not verified"


def _note(text: str) -> None:
    typer.echo(text, err=True)


def _print(data: Any, *shows: Callable[[], object]) -> None:
    """With --json the data, else what `shows` print, with an empty line between."""
    if _settings.json:
        from sparsec.report import dumps

        typer.echo(dumps(data), nl=False)
        return
    for index, show in enumerate(shows):
        if index:
            typer.echo()
        show()


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int, str], None] | None]:
    """A progress bar with stage and layer on standard error; None unless that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("{task.description:10}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}"),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int, detail: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, detail="")
            bar.update(tasks[stage], completed=done, total=total, detail=detail[:60])

        yield report


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # Imports and graphs make hundreds of thousands of objects that stay: looking through them again and again for
    # cycles costs a fifth of a compile.
    gc.set_threshold(200_000, 50, 50)
    arguments = list(sys.argv[1:] if argv is None else argv)
    _settings.verbose = _settings.json = False
    # `sparsec in.onnx out.onnx`: a first word that is a file and no command means compress.
    commands = {command.name or command.callback.__name__ for command in app.registered_commands if command.callback}
    first = arguments[0] if arguments else ""
    if first and not first.startswith("-") and first not in commands and ("." in first or "/" in first):
        arguments.insert(0, "compress")
    try:
        app(arguments, prog_name="sparsec", standalone_mode=True)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(bool(stop.code))
    except SparsecError as error:
        return _fail(error, 3 if isinstance(error, VerificationError) else 2 if isinstance(error, TargetError) else 1)
    except MemoryError as error:
        return _fail(MemoryError(f"out of memory: {error or 'no more of it'}; bind smaller input shapes"), 1)
    except OSError as error:
        return _fail(error, 1)
    except Exception as error:
        code = _fail(error, 1)
        _note("this is a bug in sparsec; -v shows where")
        return code
    return 0


def command() -> None:
    """The installed command: `main`, then the end of the process without taking every object apart (0.2 s of a compile)."""
    code = main()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except OSError:  # nobody reads any more; Python's own way out says so
        sys.exit(code)
    atexit._run_exitfuncs()
    os._exit(code)


def _fail(error: BaseException, code: int) -> int:
    if _settings.verbose:
        traceback.print_exc()
    if _settings.json:
        from sparsec.report import dumps

        typer.echo(dumps({"error": {"type": type(error).__name__, "message": str(error)}}), nl=False)
    _note(f"error: {error or type(error).__name__}")
    return code


if __name__ == "__main__":
    command()
