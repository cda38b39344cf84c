"""Runs compiled models in this process: a ctypes binding of the C runtime.

Imports nothing of the rest of sparsec but its errors: a bundle runs with numpy alone.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from sparsec.errors import BundleError, DeviceError, InputError
from sparsec.runtime.dlpack import DeviceArray, View, on_gpu, view
from sparsec.runtime.library import (
    ABI_VERSION,
    DTYPES,
    FUNCTIONS,
    GPU_FUNCTIONS,
    ModelStruct,
    WeightsStruct,
    declare,
    load_library,
    locate,
)

Array = np.ndarray[Any, Any]
PathLike = str | os.PathLike[str]

MAX_THREADS = 256
_SPARE = 4  # kept of each output
_FIRST_DEVICE_STATUS = 40  # SPC_E_CUDA_NO_DRIVER and all behind it


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

    A model for a GPU (`on_gpu`) runs there, whatever `threads` says; sessions on the same weights share the GPU's copy of them.

    Raises BundleError when library or weights are missing, damaged, truncated or do not belong together, DeviceError when the model
    is for a GPU and there is none, or no driver, or not enough of its memory.
    """

    def __init__(self, source: PathLike, weights: PathLike | Array | None = None, *, threads: int = 1) -> None:
        self._handle = ctypes.c_void_p()
        self._lock = threading.RLock()  # an output may go away, and come here, whenever Python runs
        self._weights = WeightsStruct()
        self._lent = 0  # outputs in the GPU's memory that are still in use
        self._spare: dict[str, list[int]] = {}  # memory of such outputs for later runs, by name
        self._read: set[int] = set()  # what of it other libraries had: their kernels may still be reading
        self._closing = False
        library, default, expected = locate(Path(source))
        self.path = library
        if weights is None:
            if default is None:
                raise BundleError(f"{library} is a library without weights: give the path of its weights.bin")
            weights = default
        self._lib = load_library(library)
        self._model = self._read_model(expected)
        model = self._model
        self.name = model.name.decode()
        self.target = model.target.decode()
        self.on_gpu = bool(model.device)
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

    def _read_model(self, expected: str | None) -> ModelStruct:
        try:
            find = self._lib.spc_bundle_model
            declare(self._lib, FUNCTIONS)
        except AttributeError as error:
            raise BundleError(f"{self.path} is not a sparsec model: {error}") from error
        find.restype = ctypes.POINTER(ModelStruct)
        find.argtypes = []
        model: ModelStruct = find().contents
        if model.abi == ABI_VERSION and model.device:
            declare(self._lib, GPU_FUNCTIONS)
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

    def _error(self, status: int) -> BundleError | DeviceError:
        if self.on_gpu and status >= _FIRST_DEVICE_STATUS:
            text: bytes = self._lib.spc_explain(ctypes.byref(self._model), status)
            return DeviceError(f"model '{self.name}': {text.decode(errors='replace')}")
        return BundleError(f"{self.path}: {self._text(status)}")

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
            if self._weights.payload is None or self._closing:
                raise BundleError("the session is closed")
            if self.on_gpu and self._handle:
                self._threads = wanted
                return
            opened = ctypes.c_void_p()
            status = self._lib.spc_session_open(
                ctypes.byref(opened), ctypes.byref(self._model), ctypes.byref(self._weights), wanted, None, 0
            )
            if status:
                raise self._error(status)
            self._lib.spc_session_close(self._handle)
            self._handle, self._threads = opened, wanted

    # --- running ---

    def run(self, inputs: Mapping[str, Any] | Sequence[Any]) -> dict[str, Any]:
        """Run once: arrays by name or in order -> outputs by name, freshly allocated.

        A model for a GPU also takes tensors that lie there (torch, cupy, whatever has `__dlpack__`), used in place; then all inputs
        are such, and the outputs are `DeviceArray`, which `torch.from_dlpack` and the like use in place.

        Raises InputError when count, names, a dtype or a shape is not what the model takes, DeviceError when the GPU fails.
        """
        values = self._ordered(inputs)
        if values and any(on_gpu(v) for v in values):
            return self._run_device(values)
        given = [self._check_array(v, info) for v, info in zip(values, self.inputs, strict=True)]
        results = [np.empty(o.shape, o.dtype) for o in self.outputs]
        ins = [a.ctypes.data for a in given]
        self._call("spc_session_run", ins, [a.ctypes.data for a in results])
        return {info.name: array for info, array in zip(self.outputs, results, strict=True)}

    def _run_device(self, values: list[Any]) -> dict[str, DeviceArray]:
        if not self.on_gpu:
            raise InputError(f"the model '{self.name}' runs on the processor (target {self.target}); give numpy arrays")
        here = [info.name for v, info in zip(values, self.inputs, strict=True) if not on_gpu(v)]
        if here:
            raise InputError(f"input '{here[0]}' does not lie on the GPU, others do; give all on one side")
        with self._lock:
            stream = int(self._lib.spc_session_stream(self._handle) or 0)
        views: list[View] = [
            view(v, info.name, info.dtype, info.shape, stream) for v, info in zip(values, self.inputs, strict=True)
        ]
        results = [self._take(info) for info in self.outputs]
        self._call("spc_session_run_device", [v.address for v in views], [r.address for r in results])
        return {info.name: array for info, array in zip(self.outputs, results, strict=True)}

    def _call(self, function: str, ins: Sequence[int], outs: Sequence[int]) -> None:
        pointers = [(ctypes.c_void_p * max(1, len(side)))(*side) for side in (ins, outs)]
        with self._lock:
            if not self._handle or self._closing:
                raise BundleError("the session is closed")
            status = getattr(self._lib, function)(self._handle, *pointers)
        if status:
            raise self._error(status)

    def _take(self, info: TensorInfo) -> DeviceArray:
        """Memory of the GPU for an output, preferably that of an earlier run: the graph of the steps then fits again.

        It is given back when nobody uses it, if need be after the session was closed. What other libraries had is used again only when all
        their work is done: nothing says in which stream it is.
        """
        count = max(1, int(np.prod(info.shape, dtype=np.int64)) * np.dtype(info.dtype).itemsize)
        with self._lock:
            spare = self._spare.setdefault(info.name, [])
            if spare and spare[-1] in self._read and (status := self._wait_for_readers()):
                raise self._error(status)
            address = spare.pop() if spare else self._lib.spc_device_take(self._handle, count)
            if not address:
                raise DeviceError(
                    f"the GPU has no {count} bytes left for the output '{info.name}' of model '{self.name}'"
                )
            self._lent += 1

        def release(shared: bool) -> None:
            with self._lock:
                self._lent -= 1
                if shared:
                    self._read.add(address)
                if len(spare) < _SPARE:
                    spare.append(address)
                else:
                    self._wait_for_readers()
                    self._lib.spc_device_give(self._handle, address)
                if self._closing and not self._lent:
                    self._give_all()

        return DeviceArray(int(address), info.dtype, info.shape, release)

    def _wait_for_readers(self) -> int:
        """The status of waiting until no other library reads what it gave back."""
        done = set(self._read)  # more may come meanwhile
        status = int(self._lib.spc_device_wait(self._handle)) if done else 0
        if not status:
            self._read -= done
        return status

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

    def _ordered(self, inputs: Mapping[str, Any] | Sequence[Any]) -> list[Any]:
        if isinstance(inputs, Mapping):
            names = [i.name for i in self.inputs]
            missing = [n for n in names if n not in inputs]
            unknown = [str(n) for n in inputs if n not in names]
            if missing or unknown:
                parts = [f"no input named {', '.join(map(repr, unknown))}"] if unknown else []
                parts += [f"missing: {', '.join(map(repr, missing))}"] if missing else []
                raise InputError(f"{'; '.join(parts)}. {self._expected()}")
            return [inputs[n] for n in names]
        if not isinstance(inputs, list | tuple):
            raise InputError(f"inputs are a dict or a list of arrays, not {type(inputs).__name__}. {self._expected()}")
        if len(inputs) != len(self.inputs):
            raise InputError(f"{len(inputs)} arrays given, {len(self.inputs)} wanted. {self._expected()}")
        return list(inputs)

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
        """Stop the threads, free the arena, unmap the weights. Calling it again does nothing.

        Outputs that lie on the GPU stay valid; what they need of it is given back with the last of them.
        """
        with self._lock:
            self._closing = True
            if not self._lent:
                self._give_all()

    def _give_all(self) -> None:
        self._wait_for_readers()
        handle, self._handle = self._handle, ctypes.c_void_p()
        for address in (a for spare in self._spare.values() for a in spare):
            self._lib.spc_device_give(handle, address)
        self._spare.clear()
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


def _infos(infos: Any, count: int) -> tuple[TensorInfo, ...]:
    return tuple(
        TensorInfo(i.name.decode(), DTYPES[i.dtype], tuple(i.dims[d] for d in range(i.rank)))
        for i in (infos[n] for n in range(count))
    )
