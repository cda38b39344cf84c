"""A real GPU, where there is one: its driver through ctypes, for kernels as they are and for the question whether there is one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.nvrtc import compile_image
from sparsec.target import GPUS

Array = np.ndarray[Any, Any]


class Device:
    """The first GPU of a driver library, `sm` its compute capability (90 is 9.0). Raises OSError where there is none."""

    def __init__(self, path: str = "libcuda.so.1") -> None:
        self._library = ctypes.CDLL(path)
        self._call("cuInit", 0)
        device, major, minor = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(device), 0)
        self._call("cuDeviceGetAttribute", ctypes.byref(major), 75, device)
        self._call("cuDeviceGetAttribute", ctypes.byref(minor), 76, device)
        self.sm = 10 * major.value + minor.value
        self._device = device

    def _call(self, name: str, *arguments: Any) -> None:
        if code := getattr(self._library, name)(*arguments):
            raise OSError(f"{name} failed with {code}")

    @property
    def arch(self) -> str:
        """The newest architecture sparsec knows that this GPU runs."""
        return max(
            (name for name in GPUS if int(name[3:].rstrip("a")) <= self.sm), key=lambda n: int(n[3:].rstrip("a"))
        )

    def run(self, source: str, name: str, launch: Launch, arrays: Sequence[Array]) -> list[Array]:
        """Compile a kernel and run it on copies of `arrays`; returns the copies after the run."""
        image = compile_image(source, name, self.arch)
        cubin = f"sm_{self.sm}" == self.arch
        context, module, function = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._device)
        undo: list[Callable[[], None]] = [lambda: self._call("cuDevicePrimaryCtxRelease_v2", self._device)]
        try:
            self._call("cuCtxPushCurrent_v2", context)
            undo.append(lambda: self._call("cuCtxPopCurrent_v2", ctypes.byref(ctypes.c_void_p())))
            self._call("cuModuleLoadData", ctypes.byref(module), image.cubin if cubin else image.ptx)
            undo.append(lambda: self._call("cuModuleUnload", module))
            self._call("cuModuleGetFunction", ctypes.byref(function), module, name.encode())
            if launch.shared_bytes > 48 * 1024:
                self._call("cuFuncSetAttribute", function, 8, launch.shared_bytes)
            places = [self._upload(array, undo) for array in arrays]
            pointers = (ctypes.c_void_p * max(1, len(places)))(*(ctypes.addressof(p) for p in places))
            self._call(
                "cuLaunchKernel", function, *launch.grid, *launch.block, launch.shared_bytes, None, pointers, None
            )
            self._call("cuStreamSynchronize", None)
            return [self._download(array, place) for array, place in zip(arrays, places, strict=True)]
        finally:
            for step in reversed(undo):
                step()

    def _upload(self, array: Array, undo: list[Callable[[], None]]) -> ctypes.c_ulonglong:
        place = ctypes.c_ulonglong()
        self._call("cuMemAlloc_v2", ctypes.byref(place), ctypes.c_size_t(max(1, array.nbytes)))
        undo.append(lambda: self._call("cuMemFree_v2", place))
        data = np.ascontiguousarray(array)
        if array.nbytes:
            self._call("cuMemcpyHtoD_v2", place, ctypes.c_void_p(data.ctypes.data), ctypes.c_size_t(array.nbytes))
            self._call("cuStreamSynchronize", None)
        return place

    def _download(self, array: Array, place: ctypes.c_ulonglong) -> Array:
        after = np.empty(array.shape, array.dtype)
        if array.nbytes:
            self._call("cuMemcpyDtoH_v2", ctypes.c_void_p(after.ctypes.data), place, ctypes.c_size_t(array.nbytes))
        return after


@cache
def real_gpu() -> Device | None:
    """The GPU of this machine; None where there is none, or SPARSEC_TEST_GPU=0 says to leave it alone."""
    if os.environ.get("SPARSEC_TEST_GPU") == "0":
        return None
    try:
        return Device()
    except OSError:
        return None


def differences(simulated: Sequence[Array], found: Sequence[Array]) -> str:
    """What a GPU computed differently than the simulator; "" if nothing that rounding would not explain."""
    for index, (one, other) in enumerate(zip(simulated, found, strict=True)):
        if one.dtype == np.uint32 and (one != other).any():  # bits of sums that kernels hand to one another
            one, other = one.view(np.float32), other.view(np.float32)
        if one.dtype.kind in "iub":
            near = one.dtype in (np.int8, np.uint8)  # a rounded code may fall to the other side
            wrong = np.abs(one.astype(np.int64) - other.astype(np.int64)) > near
        else:
            a, b = one.astype(np.float64), other.astype(np.float64)
            size = np.abs(a[np.isfinite(a)]).max(initial=0.0)
            step = (
                2.0**-7 if str(one.dtype) == "bfloat16" else 2e-3
            )  # a rounding that turns is 2^-10 of a value in fp16
            wrong = ~np.isclose(a, b, rtol=step, atol=step * size, equal_nan=True)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            values = f"{one.flat[at]} simulated, {other.flat[at]} on the GPU"
            return f"argument {index}: {int(wrong.sum())} elements differ, element {at}: {values}"
    return ""


_skips = pytest.mark.skipif(real_gpu() is None, reason="no GPU here (libcuda.so.1 does not load, or finds none)")


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Decorator of tests that run on a real GPU."""
    return pytest.mark.gpu(_skips(test))
