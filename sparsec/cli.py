"""The command line. Options have the names of the API's keywords.

Exit codes: 0 done, 1 failed, 2 the command line is wrong (an unknown target too), 3 verification failed.
"""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from sparsec.cli_options import (
    BudgetOption,
    CalibrationOption,
    CandidatesOption,
    Dump,
    ExecutorOption,
    Force,
    FrontOption,
    Inputs,
    Jobs,
    Json,
    Keep,
    LabelsOption,
    Model,
    NoCache,
    NoVerify,
    RecipeOption,
    Shapes,
    TargetOption,
    Threads,
    Tune,
    Values,
    Verbose,
    examples,
)
from sparsec.console import fail, note, print_result, progress_bar, settings
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
    labels: LabelsOption = None,
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
    with progress_bar() as progress:
        result = api.compress(
            model,
            api.DEFAULT_RECIPE if recipe is None else recipe,
            budget=budget,
            candidates=candidates,
            target=target,
            input_shapes=parse_shapes(input_shapes),
            input_values=parse_values(input_values),
            **examples(calibration, labels, budget),
            inputs=inputs,
            verify=not no_verify,
            jobs=jobs,
            executor=executor,
            debug_dump=debug_dump,
            progress=progress,
        )
        result.save(output, force=force)
        _draw(result.report, front, force)
    print_result(result.report.to_json(), result.report.show)
    note(f"wrote {output}")


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
    labels: LabelsOption = None,
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
    with progress_bar() as progress:
        result = api.compile(
            model,
            target,
            recipe,
            budget=budget,
            candidates=candidates,
            input_shapes=parse_shapes(input_shapes),
            input_values=parse_values(input_values),
            **examples(calibration, labels, budget),
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
    print_result(result.report.to_json(), result.report.show)
    note(f"wrote {folder}{_verdict(result.report)}")


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
    print_result(found.to_json(), lambda: found.show(why=why))


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
    print_result(result.to_json(), lambda: typer.echo(f"{result.summary()}\n{result.table()}"))
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

    with progress_bar() as progress:
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
    print_result(found.to_json(), lambda: typer.echo(found.summary()), *(table.show for table in found.tables(worst)))


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
    with progress_bar() as progress:
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
    print_result(data, result.report.summary().show, timing.table().show)


@app.command()
def targets(as_json: Json = False, verbose: Verbose = False) -> None:
    """List the targets."""
    from sparsec.tables import Table
    from sparsec.target import available_targets

    known = available_targets()
    table = Table("", ("target", "what it is"), tuple(known.items()), frozenset({0, 1}))
    print_result(known, table.show)


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


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    # Imports and graphs make hundreds of thousands of objects that stay: looking through them again and again for
    # cycles costs a fifth of a compile.
    gc.set_threshold(200_000, 50, 50)
    arguments = list(sys.argv[1:] if argv is None else argv)
    settings.verbose = settings.json = False
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
        return fail(error, 3 if isinstance(error, VerificationError) else 2 if isinstance(error, TargetError) else 1)
    except MemoryError as error:
        return fail(MemoryError(f"out of memory: {error or 'no more of it'}; bind smaller input shapes"), 1)
    except OSError as error:
        return fail(error, 1)
    except Exception as error:
        code = fail(error, 1)
        note("this is a bug in sparsec; -v shows where")
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


if __name__ == "__main__":
    command()
