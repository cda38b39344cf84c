"""An NVIDIA GPU through its driver's C functions: memory, kernels, graphs and times. Needs numpy and libcuda.so.1 alone."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
Dims = tuple[int, int, int]

_MAJOR, _MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
_DYNAMIC_SHARED = 8  # CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
_WITHOUT_ASKING = 48 * 1024
_NOT_READY = 600
_THREAD_LOCAL, _NON_BLOCKING = 1, 1  # CU_STREAM_CAPTURE_MODE_THREAD_LOCAL, CU_STREAM_NON_BLOCKING


class GpuError(OSError):
    """A function of the driver failed, or a kernel does not end."""


class Gpu:
    """The first GPU of a driver library; `sm` is its compute capability (90 is 9.0).

    path: of the library; by default what SPC_CUDA_DRIVER names, else libcuda.so.1. Raises OSError where there is no GPU.
    """

    def __init__(self, path: str | None = None) -> None:
        self._library = ctypes.CDLL(path or os.environ.get("SPC_CUDA_DRIVER") or "libcuda.so.1")
        self.call("cuInit", 0)
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self.call("cuDeviceGet", ctypes.byref(device), 0)
        self.call("cuDeviceGetAttribute", ctypes.byref(major), _MAJOR, device)
        self.call("cuDeviceGetAttribute", ctypes.byref(minor), _MINOR, device)
        name = ctypes.create_string_buffer(200)
        self.call("cuDeviceGetName", name, len(name), device)
        self.device, self.sm, self.name = device, 10 * major.value + minor.value, name.value.decode()

    def call(self, function: str, *arguments: Any) -> None:
        """Call a function of the driver; raises GpuError unless it answers 0."""
        if code := self.code(function, *arguments):
            raise GpuError(f"{function} failed with {code}{self._error_name(code)}")

    def code(self, function: str, *arguments: Any) -> int:
        """What a function of the driver answers."""
        return int(getattr(self._library, function)(*arguments))

    def alive(self) -> bool:
        """Whether the GPU still works for this process: a fault of a kernel ends that."""
        try:
            with Workspace(self) as work:
                work.wait()
        except GpuError:
            return False
        return True

    def _error_name(self, code: int) -> str:
        text = ctypes.c_char_p()
        known = self.code("cuGetErrorName", code, ctypes.byref(text)) == 0 and text.value
        return f" ({text.value.decode()})" if known and text.value is not None else ""


class Workspace:
    """Memory, kernels, streams and graphs on a GPU, within `with`; all of it is given back at the end.

    The context is the device's primary one, which torch uses too. Addresses are plain numbers, handles ctypes pointers.
    """

    def __init__(self, gpu: Gpu) -> None:
        self.gpu = gpu
        self._undo: list[Callable[[], Any]] = []

    def __enter__(self) -> Workspace:
        context = ctypes.c_void_p()
        self.gpu.call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self.gpu.device)
        self._undo.append(lambda: self.gpu.code("cuDevicePrimaryCtxRelease_v2", self.gpu.device))
        self.gpu.call("cuCtxPushCurrent_v2", context)
        self._undo.append(lambda: self.gpu.code("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p())))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._undo:  # after a fault every call fails, and the first error is the one to tell
            self._undo.pop()()

    def empty(self, nbytes: int) -> int:
        """Memory that holds anything."""
        place = ctypes.c_ulonglong()
        self.gpu.call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(max(1, nbytes)))
        self._undo.append(lambda: self.gpu.code("cuMemFree_v2", place))
        return place.value

    def upload(self, array: Array, shift: int = 0) -> int:
        """A copy of an array, `shift` bytes behind the start of memory of its own."""
        place = self.empty(array.nbytes + shift) + shift
        self.write(place, array)
        return place

    def write(self, place: int, array: Array) -> None:
        """Copy an array to memory that is there."""
        if array.nbytes:
            data = np.ascontiguousarray(array)
            at, nbytes = ctypes.c_ulonglong(place), ctypes.c_size_t(array.nbytes)
            self.gpu.call("cuMemcpyHtoD_v2", at, ctypes.c_void_p(data.ctypes.data), nbytes)
            self.gpu.call("cuStreamSynchronize", None)

    def read(self, place: int, like: Array) -> Array:
        """What lies at `place`, in the shape and dtype of `like`."""
        after = np.empty(like.shape, like.dtype)
        if after.nbytes:
            at, nbytes = ctypes.c_ulonglong(place), ctypes.c_size_t(after.nbytes)
            self.gpu.call("cuMemcpyDtoH_v2", ctypes.c_void_p(after.ctypes.data), at, nbytes)
        return after

    def kernel(self, image: bytes, symbol: str, shared_bytes: int = 0) -> ctypes.c_void_p:
        """A kernel of an image (cubin or PTX) that may be started with so much dynamic shared memory."""
        module, function = ctypes.c_void_p(), ctypes.c_void_p()
        self.gpu.call("cuModuleLoadData", ctypes.byref(module), image)
        self._undo.append(lambda: self.gpu.code("cuModuleUnload", module))
        self.gpu.call("cuModuleGetFunction", ctypes.byref(function), module, symbol.encode())
        if shared_bytes > _WITHOUT_ASKING:
            self.gpu.call("cuFuncSetAttribute", function, _DYNAMIC_SHARED, shared_bytes)
        return function

    def stream(self) -> ctypes.c_void_p:
        """A stream that does not wait for the default one."""
        made = ctypes.c_void_p()
        self.gpu.call("cuStreamCreate", ctypes.byref(made), _NON_BLOCKING)
        self._undo.append(lambda: self.gpu.code("cuStreamDestroy_v2", made))
        return made

    def start(
        self,
        kernel: ctypes.c_void_p,
        grid: Dims,
        block: Dims,
        shared_bytes: int,
        places: Sequence[int],
        stream: ctypes.c_void_p | None = None,
    ) -> None:
        """Start a kernel whose arguments are addresses."""
        values = (ctypes.c_ulonglong * max(1, len(places)))(*places)
        size = ctypes.sizeof(ctypes.c_ulonglong)
        first = ctypes.addressof(values)
        pointers = (ctypes.c_void_p * len(values))(*(first + size * i for i in range(len(values))))
        self.gpu.call("cuLaunchKernel", kernel, *grid, *block, shared_bytes, stream, pointers, None)

    def wait(self, stream: ctypes.c_void_p | None = None, limit: float = 60.0) -> None:
        """Wait for what was started; raises GpuError if it takes more than `limit` seconds, or failed."""
        begin = time.monotonic()
        while (code := self.gpu.code("cuStreamQuery", stream)) == _NOT_READY:
            if time.monotonic() - begin > limit:
                raise GpuError(f"does not end within {limit:g} s")
        if code:
            self.gpu.call("cuStreamSynchronize", stream)  # the same error, told by its name
            raise GpuError(f"cuStreamQuery failed with {code}")

    def graph(self, stream: ctypes.c_void_p, start: Callable[[], None]) -> ctypes.c_void_p:
        """What `start` puts into the stream, as a graph that can be replayed; its kernels must have been started before."""
        graph, made = ctypes.c_void_p(), ctypes.c_void_p()
        self.gpu.call("cuStreamBeginCapture_v2", stream, _THREAD_LOCAL)
        try:
            start()
        finally:
            code = self.gpu.code("cuStreamEndCapture", stream, ctypes.byref(graph))
        if code:
            raise GpuError(f"cuStreamEndCapture failed with {code}")
        try:
            self.gpu.call("cuGraphInstantiateWithFlags", ctypes.byref(made), graph, ctypes.c_ulonglong(0))
        finally:
            self.gpu.call("cuGraphDestroy", graph)
        self._undo.append(lambda: self.gpu.code("cuGraphExecDestroy", made))
        return made

    def replay_seconds(self, graph: ctypes.c_void_p, stream: ctypes.c_void_p, replays: int) -> list[float]:
        """Times of replays, between two events in the stream each."""
        begin, end = ctypes.c_void_p(), ctypes.c_void_p()
        for event in (begin, end):
            self.gpu.call("cuEventCreate", ctypes.byref(event), 0)
            self._undo.append(lambda event=event: self.gpu.code("cuEventDestroy_v2", event))  # type: ignore[misc]
        times = []
        for _ in range(replays):
            self.gpu.call("cuEventRecord", begin, stream)
            self.gpu.call("cuGraphLaunch", graph, stream)
            self.gpu.call("cuEventRecord", end, stream)
            self.wait(stream)
            milliseconds = ctypes.c_float()
            self.gpu.call("cuEventElapsedTime", ctypes.byref(milliseconds), begin, end)
            times.append(milliseconds.value / 1e3)
        return times


def run_kernel(
    gpu: Gpu,
    image: bytes,
    symbol: str,
    grid: Dims,
    block: Dims,
    shared_bytes: int,
    arrays: Sequence[Array],
    *,
    shift: int = 0,
) -> list[Array]:
    """Run a kernel on copies of `arrays`, its arguments in order; returns the copies after the run.

    shift: bytes by which the copies lie off the alignment of memory. Raises GpuError.
    """
    with Workspace(gpu) as work:
        kernel = work.kernel(image, symbol, shared_bytes)
        places = [work.upload(array, shift) for array in arrays]
        work.start(kernel, grid, block, shared_bytes, places)
        work.wait()
        return [work.read(place, array) for place, array in zip(places, arrays, strict=True)]
