"""A compiled model: run it, time it, write it as a bundle; and bundles read back."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from sparsec.codegen.bundle import Compiled, build_loadable, compile_program, write_bundle
from sparsec.codegen.program import IoInfo, Program
from sparsec.emulate import EmulatedSession, runs_here, why_not_runnable
from sparsec.errors import BundleError, DeviceError, InputError, TargetError
from sparsec.measure import Timing, interleaved, onnxruntime_resident_bytes
from sparsec.progress import Progress
from sparsec.reference import CachedReference, Reference, onnx_bytes
from sparsec.report import Report
from sparsec.runtime import Session, TensorInfo
from sparsec.target import Target, host_target

Array = np.ndarray[Any, Any]
Inputs = Mapping[str, Array] | Sequence[Array]


class CompiledModel:
    """A model compiled for one target.

    report: layers, sizes, verification. sample: the inputs it was (or would be) verified on.
    recipe: the effective recipe, YAML.
    """

    def __init__(
        self,
        compiled: Compiled,
        report: Report,
        *,
        recipe: str,
        threads: int,
        original: str | Path | ir.Model,
        fixed: Mapping[str, Any],
        files: Sequence[Path] = (),
        sample: dict[str, Array],
    ) -> None:
        self.report, self.recipe, self.threads, self.sample = report, recipe, threads, sample
        self._compiled, self._original, self._fixed, self._files = compiled, original, fixed, files
        self._session: Session | EmulatedSession | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None

    @property
    def program(self) -> Program:
        """The lowered program: kernel calls on buffers."""
        return self._compiled.program

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def target(self) -> Target:
        return self.program.target

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """Name, dtype and shape of what `run` takes."""
        return _infos(self.program.inputs)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Name, dtype and shape of what `run` gives."""
        return _infos(self.program.outputs)

    @property
    def weights_bytes(self) -> int:
        """Size of weights.bin."""
        return int(self._compiled.blob.nbytes)

    @property
    def ram_bytes(self) -> int:
        """Bytes a session of one thread holds: weights, arena, work area."""
        plan = self._compiled.plan
        return plan.weights_bytes + plan.arena_bytes + plan.work_bytes

    def run(self, inputs: Inputs) -> dict[str, Array]:
        """Run once: arrays by name or in order -> outputs by name.

        A program for another architecture runs under qemu-user, which tells its results but not its speed.

        Raises:
            InputError: count, names, a dtype or a shape is not what the model takes.
            TargetError: this machine can run the target neither directly nor emulated.
        """
        if self._session is None:
            self._session = self._open()
        return self._session.run(inputs)

    def save(self, folder: str | Path, force: bool = False) -> Path:
        """Write the bundle: library, C sources, header, weights, demo program, manifest, recipe and report.

        Raises OutputError if `folder` exists (kept unless `force`) or cannot be written.
        """
        return write_bundle(self._compiled, folder, force=force, recipe_yaml=self.recipe, report=self.report.to_json())

    def benchmark(
        self, inputs: Mapping[str, Array] | None = None, *, against: str | None = "ort", seconds: float = 2.0
    ) -> Timing:
        """Time `run`, and the original model in onnxruntime in turns with it; fills in the report's times and memory.

        Args:
            inputs: by name; None: those of the verification.
            against: "ort", or None to time the program alone.
            seconds: time to spend.

        Raises:
            TargetError: the target is not this machine's: an emulator's times mean nothing.
        """
        if not runs_here(self.target):
            raise TargetError(
                f"target '{self.target.name}' cannot be timed on this machine; on its own: bin/{self.name} -n 100 in.npy out.npy"
            )
        if against not in ("ort", None):
            raise InputError(f"against={against!r}: 'ort' (onnxruntime) or None are possible")
        feed = dict(self.sample if inputs is None else inputs)
        runners: dict[str, Callable[[], object]] = {"sparsec": lambda: self.run(feed)}
        if against:
            reference = self.reference()
            runners["onnxruntime"] = lambda: reference.run(feed)
        timing = interleaved(runners, threads=self.threads, seconds=seconds)
        self.report.after.milliseconds = timing.medians["sparsec"]
        if against:
            self.report.before.milliseconds = timing.medians["onnxruntime"]
            self.report.before.ram_bytes = self._resident_of_original(reference.complete(feed))
        return timing

    def reference(self) -> Reference:
        """The original model in onnxruntime."""
        return Reference(self._original, fixed=self._fixed, threads=self.threads)

    def cached_reference(self) -> CachedReference:
        """The same, but outputs that onnxruntime gave before for these inputs come from the cache."""
        return CachedReference(self._original, fixed=self._fixed, threads=self.threads, files=self._files)

    def why_no_gpu(self) -> str:
        """Why the program, which is for a GPU, cannot run on one of this machine; "" if it can."""
        try:
            if self._session is None:
                self._session = self._open()
        except (DeviceError, TargetError) as error:
            return str(error)
        return ""

    def _open(self) -> Session | EmulatedSession:
        if runs_here(self.target):
            loadable = build_loadable(self._compiled)
            return Session(loadable.library, loadable.weights, threads=self.threads)
        if reason := why_not_runnable(self.target):
            raise TargetError(reason)
        self._folder = tempfile.TemporaryDirectory(prefix="sparsec-emulated-")
        folder = write_bundle(self._compiled, Path(self._folder.name) / "bundle")
        return _emulated(folder, _manifest(folder), self.threads)

    def _resident_of_original(self, feed: Mapping[str, Array]) -> int | None:
        with tempfile.TemporaryDirectory(prefix="sparsec-measure-") as scratch:
            model, arrays = Path(scratch) / "model.onnx", Path(scratch) / "inputs.npz"
            if isinstance(self._original, ir.Model):
                model.write_bytes(onnx_bytes(self._original))
            else:
                model = Path(self._original)
            np.savez(arrays, allow_pickle=False, **feed)
            return onnxruntime_resident_bytes(str(model), str(arrays), self.threads)


def build(program: Program, jobs: int | None, progress: Progress | None) -> Compiled:
    """Kernels, memory plan, C and weights of a program. Raises ToolchainError."""

    def kernels(done: int, total: int) -> None:
        if progress is not None:
            progress("kernels", done, total, "")

    return compile_program(program, jobs=jobs, progress=kernels)


def load(bundle: str | Path, *, threads: int = 1) -> Session | EmulatedSession:
    """Open a bundle folder: `.run(inputs)`, `.inputs`, `.outputs`. One for another architecture runs under qemu-user.

    Raises:
        BundleError: no bundle, or its library or weights are missing, damaged, truncated or foreign.
        TargetError: it is for another architecture and no emulator is installed.
    """
    folder = Path(bundle)
    if folder.is_dir() and (folder / "manifest.json").is_file():
        facts = _manifest(folder)
        if facts["target"]["arch"] != host_target().arch:
            if facts["target"].get("gpu"):
                raise TargetError(
                    f"{folder} is for a GPU in a {facts['target']['arch']} machine, this one is {host_target().arch}; run it there"
                )
            return _emulated(folder, facts, threads)
    return Session(folder, threads=threads)


def _emulated(folder: Path, facts: Mapping[str, Any], threads: int) -> EmulatedSession:
    inputs, outputs = (
        [TensorInfo(t["name"], t["dtype"], tuple(t["shape"])) for t in facts[key]] for key in ("inputs", "outputs")
    )
    program, weights = folder / facts["program"], folder / facts["weights"]
    for path in (program, weights):
        if not path.is_file():
            raise BundleError(f"{folder} lacks {path.relative_to(folder)}; compile the model again")
    return EmulatedSession(program, weights, facts["target"]["arch"], inputs, outputs, threads)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file of a bundle; raises BundleError when it is missing or damaged."""
    try:
        data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise BundleError(f"{path.parent} is no sparsec bundle: {path.name} is missing") from None
    except (OSError, ValueError) as error:
        raise BundleError(f"{path} is damaged: {error}; compile the model again") from error
    return data


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        for key in ("target", "inputs", "outputs", "program", "weights"):
            facts[key]
        facts["target"]["arch"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{path} cannot be read: {error!r}; compile the model again") from error
    return facts


def _infos(infos: Sequence[IoInfo]) -> tuple[TensorInfo, ...]:
    return tuple(TensorInfo(info.name, info.dtype, info.shape) for info in infos)
