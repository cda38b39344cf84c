"""The C side as ctypes sees it: the structures and functions of spc_runtime.h, and how a library is found and loaded."""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sparsec.errors import BundleError

ABI_VERSION = 3
"""SPC_ABI_VERSION of spc_runtime.h."""

DTYPES = {
    1: "float32", 2: "float64", 3: "float16", 4: "int8", 5: "int16", 6: "int32", 7: "int64",
    8: "uint8", 9: "uint16", 10: "uint32", 11: "uint64", 12: "bool",
}  # fmt: skip


class TensorInfoStruct(ctypes.Structure):
    """spc_tensor_info."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("dims", ctypes.POINTER(ctypes.c_int64)),
        ("bytes", ctypes.c_size_t),
    )


class StepInfoStruct(ctypes.Structure):
    """spc_step_info."""

    _fields_ = (("node", ctypes.c_char_p), ("op", ctypes.c_char_p), ("kernel", ctypes.c_char_p))


class ModelStruct(ctypes.Structure):
    """spc_model."""

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
        ("inputs", ctypes.POINTER(TensorInfoStruct)),
        ("outputs", ctypes.POINTER(TensorInfoStruct)),
        ("steps", ctypes.POINTER(StepInfoStruct)),
        ("run", ctypes.c_void_p),
        ("device", ctypes.c_void_p),
    )


class WeightsStruct(ctypes.Structure):
    """spc_weights."""

    _fields_ = (
        ("payload", ctypes.c_void_p),
        ("payload_bytes", ctypes.c_size_t),
        ("model_id", ctypes.c_uint64),
        ("mapping", ctypes.c_void_p),
        ("mapping_bytes", ctypes.c_size_t),
    )


def locate(source: Path) -> tuple[Path, Path | None, str | None]:
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


def load_library(path: Path) -> ctypes.CDLL:
    """Load a model's library. Raises BundleError."""
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


_POINTER, _SIZE, _I32 = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int32
_WEIGHTS, _MODEL, _POINTERS = (
    ctypes.POINTER(WeightsStruct),
    ctypes.POINTER(ModelStruct),
    ctypes.POINTER(ctypes.c_void_p),
)
FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "spc_status_text": (ctypes.c_char_p, [_I32]),
    "spc_weights_from_memory": (_I32, [_WEIGHTS, _MODEL, _POINTER, _SIZE]),
    "spc_weights_open": (_I32, [_WEIGHTS, _MODEL, ctypes.c_char_p]),
    "spc_weights_close": (None, [_WEIGHTS]),
    "spc_session_bytes": (_SIZE, [_MODEL, _I32]),
    "spc_session_open": (_I32, [_POINTERS, _MODEL, _WEIGHTS, _I32, _POINTER, _SIZE]),
    "spc_session_run": (_I32, [_POINTER, _POINTERS, _POINTERS]),
    "spc_session_profile": (_I32, [_POINTER, _POINTER]),
    "spc_session_close": (None, [_POINTER]),
    "spc_cpu_count": (_I32, []),
}
"""Name -> result and arguments, of every model's library."""
GPU_FUNCTIONS: dict[str, tuple[Any, list[Any]]] = {
    "spc_explain": (ctypes.c_char_p, [_MODEL, _I32]),
    "spc_session_run_device": (_I32, [_POINTER, _POINTERS, _POINTERS]),
    "spc_session_stream": (_POINTER, [_POINTER]),
    "spc_device_take": (_POINTER, [_POINTER, _SIZE]),
    "spc_device_give": (None, [_POINTER, _POINTER]),
    "spc_device_wait": (_I32, [_POINTER]),
}
"""The same of models for a GPU."""


def declare(lib: ctypes.CDLL, functions: Mapping[str, tuple[Any, list[Any]]]) -> None:
    """Tell ctypes the types; raises AttributeError when the library lacks one of the functions."""
    for name, (result, arguments) in functions.items():
        function = getattr(lib, name)
        function.restype, function.argtypes = result, arguments
