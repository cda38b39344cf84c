"""What a zoo entry is: a model, how to bind and feed it, and the task metric that says if it still works."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import onnx_ir as ir
    import torch

    from sparsec.compiled import CompiledModel

Array = NDArray[Any]
Feed = dict[str, Array]
Run = Callable[[Mapping[str, Array]], Sequence[Array] | Mapping[str, Array]]
"""Runs one model once: arrays by input name in, outputs in graph order out (a list, or a dict in that order)."""


def in_order(outputs: Sequence[Array] | Mapping[str, Array]) -> list[Array]:
    """The outputs of a run as a list."""
    return list(outputs.values() if isinstance(outputs, Mapping) else outputs)


class MissingData(Exception):
    """A file of the data folder is not there. The message says which and what to set."""


def data_path(relative: str) -> Path:
    """Path of a file below the folder named by the environment variable SPARSEC_DATA.

    Raises:
        MissingData: the variable is not set, or the file is not there.
    """
    root = os.environ.get("SPARSEC_DATA")
    if not root:
        raise MissingData(f"{relative}: set SPARSEC_DATA to the folder of real models and labelled data")
    path = Path(root) / relative
    if not path.exists():
        raise MissingData(f"{relative}: not found below SPARSEC_DATA={root}")
    return path


class Metric(Protocol):
    """A task score over labelled data."""

    name: str
    reference: float
    """Score of the uncompressed model over all examples, measured with onnxruntime."""

    def __call__(self, run: Run, n: int | None = None) -> float:
        """Score of `run` on the first `n` examples (None: all)."""
        ...


@dataclass
class ZooModel:
    """One model of the zoo.

    Either `path` (an ONNX file) or `module` with `example` (a torch module and its example inputs) is set.
    """

    name: str
    path: Path | None = None
    module: torch.nn.Module | None = None
    example: tuple[torch.Tensor, ...] = ()
    input_names: tuple[str, ...] = ()
    """Input names of the exported torch module, in the order of `example`; empty for an ONNX file."""
    output_names: tuple[str, ...] = ()
    input_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Shapes to bind; given for every input that `input_values` does not fix."""
    input_values: Feed = field(default_factory=dict)
    """Inputs with a fixed value (compile-time constants)."""
    integer_ranges: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Half-open value range of the int64 inputs; all the others are float32."""
    real: Callable[[], Iterator[Feed]] | None = None
    """Real inputs, for calibration; None where the data folder has none."""
    metric: Metric | None = None
    constrain: Callable[[Feed], Feed] | None = None
    """Last touch on random inputs (e.g. a mask that must not be all zero)."""

    @property
    def source(self) -> Path | torch.nn.Module:
        """What to hand to `sparsec.compile` (a module goes together with `example`)."""
        source = self.path if self.path is not None else self.module
        assert source is not None
        return source

    def random_inputs(self, seed: int = 0) -> Feed:
        """Random inputs (float32 normal, int64 uniform in range) for every input that is not fixed."""
        rng = np.random.default_rng(seed)
        feed: Feed = {}
        for name, shape in self.input_shapes.items():
            if name in self.integer_ranges:
                feed[name] = rng.integers(*self.integer_ranges[name], size=shape, dtype=np.int64)
            else:
                feed[name] = rng.standard_normal(shape, dtype=np.float32)
        return self.constrain(feed) if self.constrain else feed

    def real_inputs(self, n: int) -> list[Feed]:
        """The first `n` real inputs.

        Raises:
            MissingData: the data folder is not there, or has no real inputs for this model.
        """
        if self.real is None:
            raise MissingData(f"{self.name}: no real inputs in the data folder")
        return [feed for feed, _ in zip(self.real(), range(n), strict=False)]

    def onnx_file(self) -> Path:
        """The uncompressed model as an ONNX file: the original, or the module's export.

        Exports (seconds each) are kept in build/zoo, in a folder named by what they depend on.
        """
        if self.path is not None:
            return self.path
        import onnx_ir as ir

        path = _export_folder() / f"{self.name}.onnx"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.part")  # other processes may export it too
            ir.save(export(self), partial)
            partial.replace(path)
        return path

    def compile(self, recipe: Any = None, target: str = "cpu", **options: Any) -> CompiledModel:
        """`sparsec.compile` of the ONNX file with its inputs bound; not verified unless `options` say so."""
        import sparsec

        bound = {"input_shapes": self.input_shapes, "input_values": self.input_values, "verify": False}
        return sparsec.compile(self.onnx_file(), target, recipe, **(bound | options))

    def onnx(self) -> ir.Model:
        """The uncompressed model, a new object at every call."""
        import onnx_ir as ir

        return ir.load(self.onnx_file())

    def reference_run(self, threads: int = 1) -> Run:
        """A function that runs the uncompressed model in onnxruntime; fixed inputs are added by it."""
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        session = ort.InferenceSession(self.onnx_file(), options)
        names = {i.name for i in session.get_inputs()}
        fixed = {k: v for k, v in self.input_values.items() if k in names}

        def run(feed: Mapping[str, Array]) -> Sequence[Array]:
            outputs: Sequence[Array] = session.run(None, {**feed, **fixed})
            return outputs

        return run

    def torch_run(self) -> Run:
        """A function that runs the torch module (inputs by name, outputs in order)."""
        import torch

        module = self.module
        assert module is not None, f"{self.name} is an ONNX file"

        def run(feed: Mapping[str, Array]) -> Sequence[Array]:
            with torch.no_grad():
                out = module(*(torch.from_numpy(feed[name]) for name in self.input_names))
            return [t.numpy() for t in (out if isinstance(out, tuple | list) else (out,))]

        return run


@cache
def _export_folder() -> Path:
    """build/zoo/<digest of the zoo's sources and torch's version>."""
    from importlib.metadata import version

    here = Path(__file__).parent
    digest = hashlib.sha256(version("torch").encode())
    for source in sorted(here.glob("*.py")):
        digest.update(source.read_bytes())
    return here.parents[1] / "build" / "zoo" / digest.hexdigest()[:12]


def export(model: ZooModel) -> ir.Model:
    """Export a torch entry with `torch.onnx.export(dynamo=True)`, static shapes."""
    import torch

    assert model.module is not None
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it warns of packages that are not installed
    program = torch.onnx.export(
        model.module.eval(),
        model.example,
        dynamo=True,
        input_names=list(model.input_names),
        output_names=list(model.output_names) or None,
        verbose=False,
    )
    assert program is not None
    return program.model


def from_module(name: str, module: torch.nn.Module, inputs: dict[str, torch.Tensor], **fields: Any) -> ZooModel:
    """A zoo entry of a torch module; `inputs` gives names, order, shapes and example values."""
    return ZooModel(
        name,
        module=module.eval(),
        example=tuple(inputs.values()),
        input_names=tuple(inputs),
        input_shapes={k: tuple(v.shape) for k, v in inputs.items()},
        **fields,
    )
