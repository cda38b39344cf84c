"""Runs compiled models in this process: a ctypes binding of the C runtime.

Imports nothing of the rest of sparsec but its errors: a bundle runs with numpy alone.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sparsec.errors import BundleError, InputError

Array = np.ndarray[Any, Any]
PathLike = str | os.PathLike[str]

ABI_VERSION = 1
MAX_THREADS = 256

_DTYPES = {
    1: "float32", 2: "float64", 3: "float16", 4: "int8", 5: "int16", 6: "int32", 7: "int64",
    8: "uint8", 9: "uint16", 10: "uint32", 11: "uint64", 12: "bool",
}  # fmt: skip


class _TensorInfo(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    )


class _StepInfo(ctypes.Structure):
    _fields_ = (("node", ctypes.c_char_p), ("op", ctypes.c_char_p), ("kernel", ctypes.c_char_p))


class _Model(ctypes.Structure):
    _fields_ = (
        ("abi", ctypes.c_uint32),
        ("cpu", ctypes.c_uint32),
        ("name", ctypes.c_char_p),
        ("target", ctypes.c_char_p),
        ("id", ctypes.c_uint64),
        ("weights_bytes", ctypes.c_size_t),
        ("arena_bytes", ctypes.c_size_t),
        ("work_bytes", ctypes.c_size_t),
        ("input_count", ctypes.c_int32),
        ("output_count", ctypes.c_int32),
        ("step_count", ctypes.c_int32),
        ("max_threads", ctypes.c_int32),
        ("inputs", ctypes.POINTER(_TensorInfo)),
        ("outputs", ctypes.POINTER(_TensorInfo)),
        ("steps", ctypes.POINTER(_StepInfo)),
        ("run", ctypes.c_void_p),
    )


class _Weights(ctypes.Structure):
    _fields_ = (
        ("payload", ctypes.c_void_p),
        ("payload_bytes", ctypes.c_size_t),
        ("model_id", ctypes.c_uint64),
        ("mapping", ctypes.c_void_p),
        ("mapping_bytes", ctypes.c_size_t),
    )


@dataclass(frozen=True)
class TensorInfo:
    """An input or output: name, numpy dtype name, shape."""

    name: str
    dtype: str
    shape: tuple[int, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"


@dataclass(frozen=True)
class StepTime:
    """Time of one step: ONNX node and op, kernel symbol, nanoseconds a run."""

    node: str
    op: str
    kernel: str
    ns: float


class Session:
    """A compiled model with its own arena and threads.

    `source` is a bundle folder or a shared library; `weights` a weights.bin, or its bytes as an array (default: the
    bundle's). `threads` counts the calling thread; 0 means all processors of this process. The weights file is mapped, not
    read into memory, and stays mapped until `close`.

    Thread safety: `run` may be called from several threads, calls wait for each other. For parallel runs open one
    session a thread; sessions on the same weights file share its pages.

    Raises BundleError when library or weights are missing, damaged, truncated or do not belong together.
    """

    def __init__(self, source: PathLike, weights: PathLike | Array | None = None, *, threads: int = 1) -> None:
        self._handle = ctypes.c_void_p()
        self._lock = threading.Lock()
        self._weights = _Weights()
        library, default, expected = _locate(Path(source))
        self.path = library
        if weights is None:
            if default is None:
                raise BundleError(f"{library} is a library without weights: give the path of its weights.bin")
            weights = default
        self._lib = _load_library(library)
        self._model = self._read_model(expected)
        model = self._model
        self.name = model.name.decode()
        self.target = model.target.decode()
        self.inputs = _infos(model.inputs, model.input_count)
        self.outputs = _infos(model.outputs, model.output_count)
        self._blob: Array | None = None
        self._open_weights(weights)
        self._threads = 0
        try:
            self.threads = threads
        except Exception:
            self.close()
            raise

    # --- opening ---

    def _read_model(self, expected: str | None) -> _Model:
        try:
            find = self._lib.spc_bundle_model
            _declare(self._lib)
        except AttributeError as error:
            raise BundleError(f"{self.path} is not a sparsec model: {error}") from error
        find.restype = ctypes.POINTER(_Model)
        find.argtypes = []
        model: _Model = find().contents
        if model.abi != ABI_VERSION:
            raise BundleError(
                f"{self.path} was made for runtime version {model.abi}, this is version {ABI_VERSION}: compile the model again"
            )
        if expected is not None and f"{model.id:016x}" != expected:
            raise BundleError(
                f"{self.path} holds model {model.id:016x}, its manifest.json says {expected}: the bundle was changed; "
                "compile the model again"
            )
        return model

    def _open_weights(self, weights: PathLike | Array) -> None:
        if isinstance(weights, np.ndarray):
            if weights.dtype != np.uint8 or weights.ndim != 1 or not weights.flags.c_contiguous:
                raise BundleError(
                    "weights given as an array must be contiguous uint8 [bytes], the content of weights.bin"
                )
            self._blob = weights  # kept alive with the session
            status = self._lib.spc_weights_from_memory(
                ctypes.byref(self._weights), ctypes.byref(self._model), weights.ctypes.data, weights.nbytes
            )
            where = "the weights in memory"
        else:
            path = os.fspath(weights)
            where = str(path)
            status = self._lib.spc_weights_open(
                ctypes.byref(self._weights), ctypes.byref(self._model), os.fsencode(path)
            )
        if status:
            raise BundleError(f"{where}: {self._text(status)} (model '{self.name}' in {self.path})")

    def _text(self, status: int) -> str:
        text: bytes = self._lib.spc_status_text(status)
        return text.decode()

    # --- facts ---

    @property
    def arena_bytes(self) -> int:
        """Bytes of intermediate results."""
        return int(self._model.arena_bytes)

    @property
    def weights_bytes(self) -> int:
        """Bytes of the weights as they lie in memory: compressed ones stay compressed."""
        return int(self._model.weights_bytes)

    @property
    def memory_bytes(self) -> int:
        """Bytes this session allocated: arena, work areas, control block. The mapped weights come on top."""
        return int(self._lib.spc_session_bytes(ctypes.byref(self._model), self._threads))

    @property
    def model_id(self) -> str:
        """The hash that ties library and weights together."""
        return f"{self._model.id:016x}"

    @property
    def threads(self) -> int:
        """Threads in use, the calling one included; settable between runs."""
        return self._threads

    @threads.setter
    def threads(self, count: int) -> None:
        if not isinstance(count, int) or not 0 <= count <= MAX_THREADS:
            raise InputError(f"threads={count!r}: give a number from 1 to {MAX_THREADS}, or 0 for all processors")
        wanted = count or int(self._lib.spc_cpu_count())
        with self._lock:
            if self._weights.payload is None:
                raise BundleError("the session is closed")
            opened = ctypes.c_void_p()
            status = self._lib.spc_session_open(
                ctypes.byref(opened), ctypes.byref(self._model), ctypes.byref(self._weights), wanted, None, 0
            )
            if status:
                raise BundleError(f"{self.path}: {self._text(status)}")
            self._lib.spc_session_close(self._handle)
            self._handle, self._threads = opened, wanted

    # --- running ---

    def run(self, inputs: Mapping[str, Array] | Sequence[Array]) -> dict[str, Array]:
        """Run once: arrays by name or in order -> outputs by name, freshly allocated.

        Raises InputError when count, names, a dtype or a shape is not what the model takes.
        """
        given = self._check_inputs(inputs)
        results = [np.empty(o.shape, o.dtype) for o in self.outputs]
        ins = (ctypes.c_void_p * max(1, len(given)))(*(a.ctypes.data for a in given))
        outs = (ctypes.c_void_p * max(1, len(results)))(*(a.ctypes.data for a in results))
        with self._lock:
            if not self._handle:
                raise BundleError("the session is closed")
            status = self._lib.spc_session_run(self._handle, ins, outs)
        if status:
            raise BundleError(f"{self.path}: {self._text(status)}")
        return {info.name: array for info, array in zip(self.outputs, results, strict=True)}

    def profile(self, inputs: Mapping[str, Array] | Sequence[Array], repeat: int = 10) -> list[StepTime]:
        """Mean time of every step over `repeat` runs, in the order of the run."""
        count = self._model.step_count
        spent = np.zeros(max(1, count), np.uint64)
        self._lib.spc_session_profile(self._handle, spent.ctypes.data)
        try:
            for _ in range(repeat):
                self.run(inputs)
        finally:
            self._lib.spc_session_profile(self._handle, None)
        steps = [self._model.steps[i] for i in range(count)]
        return [
            StepTime(s.node.decode(), s.op.decode(), s.kernel.decode(), float(ns) / repeat)
            for s, ns in zip(steps, spent[:count], strict=True)
        ]

    def _check_inputs(self, inputs: Mapping[str, Array] | Sequence[Array]) -> list[Array]:
        if isinstance(inputs, Mapping):
            names = [i.name for i in self.inputs]
            missing = [n for n in names if n not in inputs]
            unknown = [str(n) for n in inputs if n not in names]
            if missing or unknown:
                parts = [f"no input named {', '.join(map(repr, unknown))}"] if unknown else []
                parts += [f"missing: {', '.join(map(repr, missing))}"] if missing else []
                raise InputError(f"{'; '.join(parts)}. {self._expected()}")
            values: list[Any] = [inputs[n] for n in names]
        elif isinstance(inputs, list | tuple):
            values = list(inputs)
            if len(values) != len(self.inputs):
                raise InputError(f"{len(values)} arrays given, {len(self.inputs)} wanted. {self._expected()}")
        else:
            raise InputError(f"inputs are a dict or a list of arrays, not {type(inputs).__name__}. {self._expected()}")
        return [self._check_array(v, info) for v, info in zip(values, self.inputs, strict=True)]

    def _check_array(self, value: Any, info: TensorInfo) -> Array:
        if not isinstance(value, np.ndarray | np.generic):
            raise InputError(f"input '{info.name}' is a {type(value).__name__}, not a numpy array. {self._expected()}")
        array = np.asarray(value, order="C")
        if array.dtype != np.dtype(info.dtype):
            raise InputError(f"input '{info.name}' has dtype {array.dtype}, not {info.dtype}. {self._expected()}")
        if array.shape != info.shape:
            raise InputError(f"input '{info.name}' has shape {array.shape}, not {info.shape}. {self._expected()}")
        return array

    def _expected(self) -> str:
        return f"The model '{self.name}' takes: {'; '.join(map(str, self.inputs)) or 'no inputs'}"

    # --- closing ---

    def close(self) -> None:
        """Stop the threads, free the arena, unmap the weights. Calling it again does nothing."""
        with self._lock:
            handle, self._handle = self._handle, ctypes.c_void_p()
            if handle:
                self._lib.spc_session_close(handle)
            if self._weights.payload is not None:
                self._lib.spc_weights_close(ctypes.byref(self._weights))
            self._blob = None

    def __enter__(self) -> Session:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_lib") and hasattr(self, "_lock"):
            self.close()


def load(bundle: PathLike, *, threads: int = 1) -> Session:
    """Open a bundle folder. Raises BundleError."""
    return Session(bundle, threads=threads)


def _locate(source: Path) -> tuple[Path, Path | None, str | None]:
    """(library, weights or None, model id or None) of a bundle folder or a library."""
    if not source.exists():
        raise BundleError(f"{source}: no such bundle or library")
    if not source.is_dir():
        return source, None, None
    manifest = source / "manifest.json"
    try:
        facts = json.loads(manifest.read_text())
        library, weights = source / facts["library"], source / facts["weights"]
        model_id = str(facts["model_id"])
    except FileNotFoundError as error:
        raise BundleError(f"{source} is not a bundle: it has no manifest.json") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BundleError(f"{manifest} cannot be read: {error!r}") from error
    if not library.is_file():
        raise BundleError(f"{source} lacks its library {facts['library']}")
    return library, weights, model_id


# dlopen knows a library by its path and would hand out the old one after the file was replaced.
_loaded: dict[str, tuple[int, int, int]] = {}


def _load_library(path: Path) -> ctypes.CDLL:
    real = os.path.realpath(path)
    facts = os.stat(real)
    identity = (facts.st_ino, facts.st_mtime_ns, facts.st_size)
    try:
        if _loaded.setdefault(real, identity) == identity:
            return ctypes.CDLL(real)
        with tempfile.TemporaryDirectory() as scratch:
            copy = Path(scratch) / f"{path.stem}-{facts.st_ino}-{facts.st_mtime_ns}.so"
            shutil.copyfile(real, copy)
            return ctypes.CDLL(str(copy))
    except OSError as error:
        raise BundleError(f"{path} cannot be loaded: {error}") from error


def _declare(lib: ctypes.CDLL) -> None:
    pointer, size, i32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
    weights, model = ctypes.POINTER(_Weights), ctypes.POINTER(_Model)
    declared: dict[str, tuple[Any, list[Any]]] = {
        "spc_status_text": (ctypes.c_char_p, [i32]),
        "spc_weights_from_memory": (i32, [weights, model, pointer, size]),
        "spc_weights_open": (i32, [weights, model, ctypes.c_char_p]),
        "spc_weights_close": (None, [weights]),
        "spc_session_bytes": (size, [model, i32]),
        "spc_session_open": (i32, [ctypes.POINTER(pointer), model, weights, i32, pointer, size]),
        "spc_session_run": (i32, [pointer, ctypes.POINTER(pointer), ctypes.POINTER(pointer)]),
        "spc_session_profile": (i32, [pointer, pointer]),
        "spc_session_close": (None, [pointer]),
        "spc_cpu_count": (i32, []),
    }
    for name, (result, arguments) in declared.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments


def _infos(infos: Any, count: int) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(i.name.decode(), _DTYPES[i.dtype], tuple(i.dims[d] for d in range(i.rank)))
        for i in (infos[n] for n in range(count))
    )
