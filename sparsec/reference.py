"""Models run by stock onnxruntime: the reference that everything sparsec makes is compared with."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sparsec.cache import digest, load, store
from sparsec.errors import InputError, ModelError
from sparsec.target import host_target

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]

# protobuf stops at 2 GiB; above this a model goes to onnxruntime through a file with external data.
_LARGEST_IN_MEMORY = 1_900_000_000


class Reference:
    """A model opened in stock onnxruntime, CPU provider, no custom operators.

    Args:
        model: path of an ONNX file, its bytes, or an `onnx_ir.Model` (serialised as it is).
        fixed: inputs with a constant value, added to every run; names the model does not have are left out.
        threads: intra-op threads.
        spin: threads that wait keep their core busy, which suits one model run again and again.

    Raises:
        ModelError: onnxruntime refuses the model.
    """

    def __init__(
        self,
        model: str | Path | bytes | ir.Model,
        *,
        fixed: Mapping[str, Any] | None = None,
        threads: int = 1,
        spin: bool = True,
    ) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        if not spin:
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.log_severity_level = 4
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        try:
            self._session = ort.InferenceSession(self._source(model), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            raise ModelError(f"onnxruntime {ort.__version__} does not take the reference model: {error}") from error
        self.inputs: dict[str, tuple[str, list[Any]]] = {
            i.name: (i.type, list(i.shape)) for i in self._session.get_inputs()
        }
        self.outputs: list[str] = [o.name for o in self._session.get_outputs()]
        self._fixed = {name: self._fit(name, value) for name, value in (fixed or {}).items() if name in self.inputs}

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name; `feed` may hold more names than the model has inputs.

        Raises:
            InputError: onnxruntime refuses the inputs.
        """
        try:
            values = self._session.run(None, self.complete(feed))
        except Exception as error:
            raise InputError(f"the reference model cannot run on these inputs: {error}") from error
        return dict(zip(self.outputs, values, strict=True))

    def complete(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """What the model takes of `feed`, and the fixed inputs."""
        return {**{name: feed[name] for name in self.inputs if name in feed}, **self._fixed}

    def _fit(self, name: str, value: Any) -> Array:
        kind, shape = self.inputs[name]
        dtype = {"float": "float32", "double": "float64"}.get(kind[7:-1], kind[7:-1])
        array = np.asarray(value).astype(dtype)
        if array.ndim == len(shape):
            return array
        return np.ascontiguousarray(np.broadcast_to(array, [d if isinstance(d, int) else 1 for d in shape]))

    def _source(self, model: str | Path | bytes | ir.Model) -> str | bytes:
        if isinstance(model, str | Path):
            return str(model)
        if isinstance(model, bytes):
            return model
        import onnx_ir as ir

        if _too_large(model):
            self._folder = tempfile.TemporaryDirectory(prefix="sparsec-reference-")
            path = Path(self._folder.name) / "model.onnx"
            ir.save(model.clone(), path, external_data="model.data")
            return str(path)
        return onnx_bytes(model)


class CachedReference:
    """Like `Reference`, but outputs for a model and inputs seen before come from the cache, and nothing is opened.

    The key covers every byte of the model and of the inputs, onnxruntime's version, the number of threads and this
    processor's instruction sets: what comes back is what onnxruntime computed here. Arguments as for `Reference`;
    `files`: those that hold the external data of a model given as a path.
    """

    def __init__(
        self,
        model: str | Path | bytes | ir.Model,
        *,
        fixed: Mapping[str, Any] | None = None,
        threads: int = 1,
        files: Sequence[Path] = (),
    ) -> None:
        self._model, self._fixed, self._threads, self._files = model, dict(fixed or {}), threads, files

    def run(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises ModelError and InputError as `Reference` does."""
        key = self._key(feed)
        found = load("references", key) if key else None
        if found is not None:
            return found[1]
        outputs = Reference(self._model, fixed=self._fixed, threads=self._threads).run(feed)
        if key and all(np.asarray(array).dtype.kind in "fiub" for array in outputs.values()):
            store("references", key, {}, outputs)
        return outputs

    def _key(self, feed: Mapping[str, Array]) -> str:
        """Empty for a model too large for one stretch of memory."""
        if isinstance(self._model, str | Path):
            parts = [_file_digest(Path(path)) for path in (self._model, *self._files)]
        else:
            if not isinstance(self._model, bytes):
                if _too_large(self._model):
                    return ""
                self._model = onnx_bytes(self._model)
            parts = [digest(self._model)]
        given = {name: np.asarray(array) for name, array in {**feed, **self._fixed}.items()}
        host = host_target()
        return digest(
            *(version("onnxruntime"), str(self._threads), host.arch, *host.features),
            *parts,
            *(part for name in sorted(given) for part in (name, given[name])),
        )


def _file_digest(path: Path) -> str:
    return digest(np.memmap(path, np.uint8, "r") if path.stat().st_size else b"")


def _too_large(model: ir.Model) -> bool:
    return sum(_nbytes(value) for value in model.graph.initializers.values()) > _LARGEST_IN_MEMORY


def onnx_bytes(model: ir.Model) -> bytes:
    """Serialise with all data inside (mapped external data is read); `model` stays as it is."""
    import onnx_ir as ir

    tensors = (value.const_value for graph in model.graphs() for value in graph.initializers.values())
    if any(isinstance(tensor, ir.ExternalTensor) for tensor in tensors):
        model = model.clone()
        ir.external_data.load_to_model(model)
    data: bytes = ir.to_proto(model).SerializeToString(deterministic=True)
    return data


def _nbytes(value: ir.Value) -> int:
    return value.const_value.nbytes if value.const_value is not None else 0
