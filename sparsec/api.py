"""The face: compress() a model to portable ONNX, compile() it to a native program, load() a compiled bundle."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec import fixed, samples
from sparsec.budget import Budget, parse_budget
from sparsec.calibrating import opened_calibration, with_recovery
from sparsec.codegen.choice import Policy, checked_keep
from sparsec.codegen.cuda.storage import stored_halves
from sparsec.codegen.lower import lower
from sparsec.compiled import CompiledModel, build, load
from sparsec.costs import FileCosts, ProgramCosts
from sparsec.emulate import why_not_runnable
from sparsec.errors import VerificationError
from sparsec.files import replacing_file
from sparsec.frontend import load_model
from sparsec.passes import Compressed, fixed_products, float_activations
from sparsec.passes import compress as compress_graph
from sparsec.portable import portable
from sparsec.progress import Progress
from sparsec.readers import readers_of
from sparsec.recipe import load_recipe
from sparsec.recovery import Recover
from sparsec.reference import CachedReference, Reference, onnx_bytes
from sparsec.report import Figures, Report, layer_rows, step_counts
from sparsec.spend import spend
from sparsec.target import resolve_target
from sparsec.task import with_task
from sparsec.verify import COMPRESSED_BOUND, DENSE_BOUND, Verification, half_bound, int8_bound, verify_run

__all__ = ["DEFAULT_RECIPE", "CompiledModel", "CompressedModel", "compile", "compress", "load"]

Array = np.ndarray[Any, Any]


class _Default:
    """What `compress` takes where no recipe is given: the preset `balanced`, or with a budget nothing but the budget."""

    def __repr__(self) -> str:
        return "'balanced'"


DEFAULT_RECIPE = _Default()


class CompressedModel:
    """A compressed model: standard ONNX, plus `sparsec` operators that carry their meaning as functions of standard ops."""

    def __init__(self, model: ir.Model, report: Report, recipe: str) -> None:
        self.model = model
        self.report = report
        self.recipe = recipe
        """The effective recipe, YAML: every weight by name."""

    def to_bytes(self) -> bytes:
        """The portable ONNX file; the same model gives the same bytes."""
        return onnx_bytes(self.model)

    def save(self, path: str | Path, force: bool = False) -> Path:
        """Write portable ONNX that any onnxruntime runs. Raises OutputError if `path` exists, unless `force`."""
        with replacing_file(path, force) as scratch:
            scratch.write_bytes(self.to_bytes())
        return Path(path)


def compress(
    model: Any,
    recipe: Any = DEFAULT_RECIPE,
    *,
    budget: str | Budget | None = None,
    candidates: str | Iterable[str] | None = None,
    target: str = "cpu",
    example_inputs: Any = None,
    input_shapes: Mapping[str, Any] | None = None,
    input_values: Mapping[str, Any] | None = None,
    calibration: Any = None,
    recover: Mapping[str, Any] | Recover | None = None,
    labels: Any = None,
    validation: Any = None,
    metric: Callable[[dict[str, Array], Any], Any] | None = None,
    aggregate: Callable[[Array], float] | None = None,
    inputs: Mapping[str, Array] | str | Path | None = None,
    verify: bool = True,
    jobs: int | None = None,
    executor: Executor | str | None = None,
    debug_dump: str | Path | None = None,
    progress: Progress | None = None,
) -> CompressedModel:
    """Compress the weights of a model.

    Args:
        model: path of an ONNX file, its bytes, `onnx.ModelProto`, `onnx_ir.Model`, `torch.nn.Module`, `fx.GraphModule`
            or `torch.export.ExportedProgram`.
        recipe: scheme (`cb4-g32`), preset (`safe`, `balanced`, `small`, `fast`), YAML file, mapping or `Recipe`; by default `balanced`.
        budget: what the model may cost: `1.2MB` (the file), `25ms` (of a run on `target`, predicted), `0.5%` (relative error of the
            outputs on the calibration inputs), `1 point` or `1% task` (of the score on labelled examples, of which `report.front` tells
            more), or several with commas. Schemes are chosen by it for all weights that the rules of the recipe do not reach (by
            default: all).
        candidates: schemes that a budget may choose, besides fp32; None: `sparsec.budget.DEFAULT_CANDIDATES`, with a limit for
            time `FAST_CANDIDATES`, for time and something else `SMALL_FAST_CANDIDATES`.
        target: whose time a budget limits.
        example_inputs: for torch modules, as for calling them.
        input_shapes: `{"x": [1, 3, 224, 224], "batch": 1}`: every dynamic dimension needs a size.
        input_values: `{"sr": 16000}` turns inputs into constants.
        calibration: inputs to calibrate on: an .npz file or mapping of arrays that hold all samples, an iterable of samples, or
            a callable that returns one (see `sparsec.calibration`). None: only data-free algorithms.
        recover: keys of the recipe's section `recover`, which they go before: the compressed model is trained on, in its formats
            (needs torch). Here `loss` may also be a function (outputs, teacher's outputs, labels) -> scalar tensor; outputs are
            tensors by name, samples along a new first axis, labels a tensor [samples, n] or None.
        labels: of the calibration samples, for `recover` and a budget on the task; None: the array `labels` of a file or mapping.
        validation: samples to measure the task of a budget on, `labels` are theirs then; None: those calibration samples that
            the statistics leave out.
        metric, aggregate: the score of the task, as for `sparsec.validate`; None: the share of right classes.
        inputs: arrays by input name, or an .npz of them, to compare on; random ones (seed 0) if None.
        verify: run the result and the original in onnxruntime and report the error.
        jobs: threads that calibrate; None: one per core.
        executor: where layers are calibrated instead: `dask://host:port` or any `concurrent.futures.Executor`. The result is the same.
        debug_dump: folder that gets the graph after each pass.

    Raises:
        BudgetError: no choice of schemes meets the budget: what is nearest, and what binds.
        CalibrationError: calibration inputs do not fit the model, or hold NaN.
        SparsecError: other subclasses say what is wrong with model, shapes, recipe or weights.
        VerificationError: the result does not run in onnxruntime, or gives NaN.
    """
    source = load_model(model, example_inputs, input_shapes, input_values)
    limits = None if budget is None else parse_budget(budget)
    chosen = load_recipe(("balanced" if limits is None else None) if recipe is DEFAULT_RECIPE else recipe)
    chosen, loss = with_recovery(chosen, recover)
    task, calibration, labels, chosen = with_task(
        limits, chosen, source, calibration, labels, validation, metric, aggregate
    )
    with opened_calibration(calibration, source, chosen, jobs, executor, labels, loss, progress) as calibrated:
        front = None
        if limits is None:
            compressed = compress_graph(
                source, chosen, calibration=calibrated, debug_dump=debug_dump, progress=progress
            )
        else:
            timed = limits.seconds is not None
            program = ProgramCosts(resolve_target(target), Policy(checked_keep(chosen.keep))) if timed else None
            compressed, front = spend(
                source, limits, chosen, candidates, FileCosts(program), calibration=calibrated, task=task, jobs=jobs,
                debug_dump=debug_dump, progress=progress,
            )  # fmt: skip
    made = portable(compressed.model)
    data = onnx_bytes(made)
    report = Report(
        source.graph.name or "model",
        None,
        Figures(file_bytes=_original_bytes(model, source)),
        Figures(file_bytes=len(data)),
        layer_rows(compressed.layers, None, {}),
        removed=compressed.removed,
        notes=compressed.notes,
        front=front,
    )
    if verify:
        feed, words = _inputs(inputs, source)
        original = CachedReference(_original(model, source), fixed=input_values, files=_external_files(source))
        check = verify_run(
            Reference(data).run,
            original.run,
            feed,
            bound=None if _is_compressed(compressed) else DENSE_BOUND,
            subject="the portable ONNX of the compressed model",
            against="the original in onnxruntime",
            inputs=words,
        ).check()
        _note_errors(report, check)
    return CompressedModel(made, report, compressed.effective_recipe)


def compile(
    model: Any,
    target: str = "cpu",
    recipe: Any = None,
    *,
    budget: str | Budget | None = None,
    candidates: str | Iterable[str] | None = None,
    example_inputs: Any = None,
    input_shapes: Mapping[str, Any] | None = None,
    input_values: Mapping[str, Any] | None = None,
    calibration: Any = None,
    recover: Mapping[str, Any] | Recover | None = None,
    labels: Any = None,
    validation: Any = None,
    metric: Callable[[dict[str, Array], Any], Any] | None = None,
    aggregate: Callable[[Array], float] | None = None,
    inputs: Mapping[str, Array] | str | Path | None = None,
    threads: int = 1,
    keep: str | None = None,
    tune: bool = False,
    verify: bool = True,
    jobs: int | None = None,
    executor: Executor | str | None = None,
    progress: Progress | None = None,
    name: str | None = None,
    debug_dump: str | Path | None = None,
) -> CompiledModel:
    """Compile a model to native code for `target`, after compressing it if a recipe is given.

    Args:
        target: `cpu` (this machine), a name that `sparsec targets` lists, or a triple such as `aarch64-linux-gnu`.
        recipe: as for `compress`; None keeps every weight fp32.
        budget: as for `compress`; the size is that of weights.bin, the time that of `threads` threads, measured if `tune`.
        threads: of `run` and `benchmark` (the compiled code itself takes any number).
        keep: "speed" decodes a coded weight to float32 where the dense product is faster, "size" never; None: as the
            recipe says (`keep`, by default size).
        tune: measure every kernel that can compute a product and take the fastest, instead of predicting; the target must
            be this machine. Times are cached.
        verify: compare with onnxruntime; for another machine's target this needs an emulator (qemu-user).
        jobs: kernel compilers at once, and threads that calibrate; None: one per core.
        progress: called with (stage, done, total, detail); total is 0 where nobody knows it.
        name: prefix of the C symbols; None: from the file or module.
        The other arguments are those of `compress`.

    Raises:
        TargetError: unknown target.
        UnsupportedOpError: lists every node that blocks the model.
        VerificationError: the program differs from its reference, or cannot be run here to find out.
        SparsecError: other subclasses say what is wrong with model, shapes, recipe, weights or tool chain.
    """
    machine = resolve_target(target)
    source = load_model(model, example_inputs, input_shapes, input_values)
    chosen = load_recipe(recipe)
    policy = Policy(checked_keep(keep or chosen.keep), tune, threads)
    limits = None if budget is None else parse_budget(budget)
    chosen, loss = with_recovery(chosen, recover)
    task, calibration, labels, chosen = with_task(
        limits, chosen, source, calibration, labels, validation, metric, aggregate
    )
    with opened_calibration(calibration, source, chosen, jobs, executor, labels, loss, progress) as calibrated:
        front = None
        if limits is None:
            compressed = compress_graph(
                source, chosen, calibration=calibrated, debug_dump=debug_dump, progress=progress
            )
        else:
            timed = limits.seconds is not None or not machine.gpu  # a GPU's times are not predicted
            costs = ProgramCosts(machine, policy, samples.random_inputs(source), timed)
            compressed, front = spend(
                source,
                limits,
                chosen,
                candidates,
                costs,
                calibration=calibrated,
                task=task,
                jobs=jobs,
                debug_dump=debug_dump,
                progress=progress,
            )
    program = lower(compressed.model, machine, c_name(name or default_name(model)), policy=policy)
    built = build(program, jobs, progress)
    report = Report(
        program.name,
        target,
        Figures(file_bytes=_original_bytes(model, source)),
        Figures(),
        layer_rows(compressed.layers, program, readers_of(compressed.model)),
        steps=step_counts(program),
        removed=compressed.removed,
        notes=compressed.notes,
        front=front,
    )
    sample, words = _inputs(inputs, source)
    compiled = CompiledModel(
        built,
        report,
        recipe=compressed.effective_recipe,
        threads=threads,
        original=_original(model, source),
        fixed=input_values or {},
        files=_external_files(source),
        sample=sample,
    )
    report.after.file_bytes, report.after.ram_bytes = compiled.weights_bytes, compiled.ram_bytes
    if verify:
        if progress:
            progress("verify", 0, 1, "against onnxruntime")
        _note_errors(report, _verify(compiled, compressed, words))
        if progress:
            progress("verify", 1, 1, "")
    return compiled


def _verify(compiled: CompiledModel, compressed: Compressed, words: str) -> Verification:
    reason = compiled.why_no_gpu() if compiled.target.gpu else why_not_runnable(compiled.target)
    if reason:
        raise VerificationError(f"the program cannot be verified here: {reason}; or switch it off (--no-verify)")
    original = compiled.cached_reference()
    lossy = _is_compressed(compressed)
    reference = CachedReference(compressed.model) if lossy else original
    bound = COMPRESSED_BOUND if lossy else DENSE_BOUND
    if (floating := float_activations(compressed.model)) is not None:
        bound = int8_bound(reference.run(compiled.sample), CachedReference(floating).run(compiled.sample))
    if roundings := fixed_products(compressed.model):
        bound = max(bound, half_bound(fixed.NAME, roundings))
    if compiled.target.gpu:
        bound = max(bound, half_bound(compiled.target.storage, stored_halves(compiled.program)))
    return verify_run(
        compiled.run,
        reference.run,
        compiled.sample,
        bound=bound,
        subject=f"the program compiled for {compiled.target.name}",
        against="the portable ONNX in onnxruntime" if lossy else "the original in onnxruntime",
        inputs=words,
        original=original.run if lossy else None,
    ).check()


def c_name(text: str) -> str:
    """`text` as a C identifier in lower case."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower() or "model"
    return f"m_{name}" if name[0].isdigit() else name


def default_name(model: Any) -> str:
    """C name for a model: from its file's name or its class."""
    if isinstance(model, str | Path):
        return c_name(Path(model).stem)
    cls = type(model)
    return "model" if cls.__module__.split(".")[0] in ("onnx", "onnx_ir", "builtins") else c_name(cls.__name__)


def _inputs(given: Mapping[str, Array] | str | Path | None, source: ir.Model) -> tuple[dict[str, Array], str]:
    if given is None:
        return samples.random_inputs(source), "random, seed 0"
    if isinstance(given, str | Path):
        return samples.load_inputs(given, source), Path(given).name
    feed = {name: np.asarray(array) for name, array in given.items()}
    samples.check_inputs(feed, source, "inputs")
    return feed, "given by the caller"


def _original(model: Any, source: ir.Model) -> str | Path | ir.Model:
    """The model as the user has it where onnxruntime reads that, else as it came from the front end."""
    return model if isinstance(model, str | Path) else source


def _external_files(source: ir.Model) -> list[Path]:
    tensors = [value.const_value for value in source.graph.initializers.values()]
    return list(dict.fromkeys(Path(tensor.path) for tensor in tensors if isinstance(tensor, ir.ExternalTensor)))


def _original_bytes(model: Any, source: ir.Model) -> int:
    """Size of the model's file with its external data; of its weights where there is no file."""
    tensors = [value.const_value for value in source.graph.initializers.values() if value.const_value is not None]
    if isinstance(model, str | Path):
        return Path(model).stat().st_size + sum(t.nbytes for t in tensors if isinstance(t, ir.ExternalTensor))
    return sum(tensor.nbytes for tensor in tensors)


def _is_compressed(compressed: Compressed) -> bool:
    return any(layer.scheme != "fp32" for layer in compressed.layers) or any(r.removed for r in compressed.removed)


def _note_errors(report: Report, check: Verification) -> None:
    report.verification = check
    report.before.error, report.after.error = 0.0, check.error_to_original
