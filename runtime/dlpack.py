"""Tensors of a GPU in and out without copies: the DLPack protocol (`__dlpack__`) of torch, cupy and others, through ctypes."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.errors import InputError

CUDA, CUDA_MANAGED = 2, 13
"""Device types of DLPack: memory of a GPU, and memory that a GPU and the host share."""

_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 6: "bool"}


class _DataType(ctypes.Structure):
    _fields_ = (("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16))


class _Tensor(ctypes.Structure):
    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("dtype", _DataType),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


_get_pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_NAME = b"dltensor"


def on_gpu(value: Any) -> bool:
    """Whether `value` is a tensor in a GPU's memory, of whichever library."""
    device = getattr(value, "__dlpack_device__", None)
    return device is not None and int(device()[0]) in (CUDA, CUDA_MANAGED)


@dataclass(frozen=True)
class View:
    """A tensor of the GPU that is looked at: address, and what keeps the memory alive."""

    address: int
    capsule: Any


def view(value: Any, name: str, dtype: str, shape: tuple[int, ...], stream: int) -> View:
    """Look at a tensor that `value` offers by DLPack; what is still being computed for it is waited for in `stream`.

    Raises InputError unless it is dense, in C order, 16-byte aligned, on the first GPU, and of this dtype and shape.
    """
    index = int(value.__dlpack_device__()[1])
    if index != 0:
        raise InputError(
            f"input '{name}' lies on GPU {index}; models run on GPU 0 of the process (CUDA_VISIBLE_DEVICES says which that is)"
        )
    try:
        capsule = value.capsule() if isinstance(value, DeviceArray) else value.__dlpack__(stream=stream)
    except (BufferError, RuntimeError) as error:  # such as one that requires a gradient
        raise InputError(f"input '{name}' is not given away by DLPack: {error}") from error
    tensor = _Tensor.from_address(_get_pointer(capsule, _NAME))  # the managed tensor starts with it
    kind = _KINDS.get(tensor.dtype.code, "unknown")
    found = f"{kind}{tensor.dtype.bits}" if kind != "bool" else "bool"
    found = found if tensor.dtype.lanes == 1 else f"{found}x{tensor.dtype.lanes}"
    if found != dtype:
        raise InputError(f"input '{name}' has dtype {found}, not {dtype}")
    given = tuple(tensor.shape[d] for d in range(tensor.ndim))
    if given != shape:
        raise InputError(f"input '{name}' has shape {given}, not {shape}")
    if tensor.strides and not _dense(shape, [tensor.strides[d] for d in range(tensor.ndim)]):
        raise InputError(f"input '{name}' is not contiguous; give {name}.contiguous()")
    address = int(tensor.data or 0) + int(tensor.byte_offset)
    if address % 16:
        raise InputError(f"input '{name}' does not start at a multiple of 16 bytes (a slice?); give a copy")
    return View(address, capsule)


def _dense(shape: tuple[int, ...], strides: list[int]) -> bool:
    if 0 in shape:
        return True
    step = 1
    for dim, stride in zip(reversed(shape), reversed(strides), strict=True):
        if dim != 1 and stride != step:
            return False
        step *= dim
    return True


class _Memory:
    """Memory of the GPU as numpy's array interface describes it: an address that numpy passes on and never follows."""

    def __init__(self, address: int, shape: tuple[int, ...], dtype: str, release: Callable[[bool], None]) -> None:
        self.shared = False
        """Whether other libraries had it."""
        self.__array_interface__ = {
            "data": (address, False),
            "shape": shape,
            "typestr": np.dtype(dtype).str,
            "version": 3,
        }
        self._release = release

    def __del__(self) -> None:
        self._release(self.shared)


class DeviceArray:
    """An output in the GPU's memory: `torch.from_dlpack(array)` or `cupy.from_dlpack(array)` use it in place.

    The memory is given back when neither it nor what was made of it is in use: release(whether other libraries had it), whose kernels
    may be pending then. It is complete when `run` returns it.
    """

    def __init__(self, address: int, dtype: str, shape: tuple[int, ...], release: Callable[[bool], None]) -> None:
        self.address, self.dtype, self.shape = address, dtype, shape
        """Where it lies in the GPU's memory; numpy's name of the type; dimensions."""
        # numpy's capsules free what they hold in C, at any moment: a destructor in Python could not, while an error is on its way.
        self._memory = _Memory(address, shape, dtype, release)
        self._array = np.asarray(self._memory)

    @property
    def nbytes(self) -> int:
        """Bytes of the data."""
        return int(self._array.nbytes)

    def __dlpack_device__(self) -> tuple[int, int]:
        return (CUDA, 0)

    def __dlpack__(self, *, stream: Any = None, **_: Any) -> Any:
        """A capsule `dltensor` for another library. Nothing is pending, so no stream has to wait."""
        self._memory.shared = True
        return self.capsule()

    def capsule(self) -> Any:
        """The same for a run, which has done with it when it returns."""
        capsule = self._array.__dlpack__()
        tensor = _Tensor.from_address(_get_pointer(capsule, _NAME))
        tensor.device_type, tensor.device_id = CUDA, 0
        return capsule

    def __repr__(self) -> str:
        return f"DeviceArray({self.dtype}[{', '.join(map(str, self.shape))}] on the GPU)"
