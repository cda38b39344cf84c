"""Runs one kernel on numpy arrays: compiled for this host and called in-process."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.codegen.build import build_kernels
from sparsec.codegen.program import KernelSpec, Signature
from sparsec.target import Target, host_target

_loaded: dict[Path, ctypes.CDLL] = {}


def _library(object_path: Path) -> ctypes.CDLL:
    if object_path not in _loaded:
        folder = Path(tempfile.mkdtemp(prefix="sparsec-test-"))
        lib = folder / "k.so"
        # the bare linker: a kernel needs no C library of its own, and the full driver is ten times slower
        subprocess.check_call([sys.executable, "-m", "ziglang", "ld.lld", "-shared", "-o", str(lib), str(object_path)])
        _loaded[object_path] = ctypes.CDLL(str(lib))
    return _loaded[object_path]


def run_kernel(
    family: str,
    params: Mapping[str, Any],
    ins: Sequence[np.ndarray[Any, Any]],
    *,
    target: Target | None = None,
    splits: int = 3,
    outs: Sequence[np.ndarray[Any, Any]] | None = None,
) -> list[np.ndarray[Any, Any]]:
    """Outputs (flat arrays) of the kernel. The range of units is run in `splits` pieces, in reverse order, as threads might;
    all pointers are unaligned (offset by one element) and every output and work byte starts as garbage; writing past an
    output's end fails the assertion."""

    target = target or host_target()
    module = importlib.import_module(f"sparsec.codegen.kernels.{family}")
    sig: Signature = module.signature(params, target)
    spec = KernelSpec(family, params)
    built = build_kernels([spec], target)[spec.canonical()]
    function = getattr(_library(built.object_path), built.symbol)
    function.restype = ctypes.c_int32

    pointers: list[ctypes.c_void_p] = []
    keep: list[np.ndarray[Any, Any]] = []
    results: list[np.ndarray[Any, Any]] = []
    guards: list[np.ndarray[Any, Any]] = []
    given = iter(ins)
    preset = iter(outs) if outs is not None else None
    for arg in sig.args:
        dtype = np.dtype(arg.dtype)
        raw = np.full((arg.size + 1) * dtype.itemsize + 64, 0xA5, np.uint8)
        body = raw[dtype.itemsize : dtype.itemsize * (arg.size + 1)].view(dtype)
        if arg.role == "in":
            array = np.ascontiguousarray(next(given)).reshape(-1)
            assert array.dtype == dtype, (arg.name, array.dtype, dtype)
            assert array.size == arg.size, (arg.name, array.size, arg.size)
            body[:] = array
        elif arg.role == "out":
            if preset is not None:
                body[:] = np.asarray(next(preset)).reshape(-1)
            results.append(body)
            guards.append(raw[dtype.itemsize * (arg.size + 1) :])
        keep.append(raw)
        pointers.append(ctypes.c_void_p(body.ctypes.data))
    bounds = sorted({round(i * sig.units / splits) for i in range(splits + 1)})
    for lo, hi in reversed(list(itertools.pairwise(bounds))):
        status = function(*pointers, ctypes.c_int32(lo), ctypes.c_int32(hi))
        assert status == 0, f"the kernel returned {status}"
    for guard in guards:
        assert (guard == 0xA5).all(), "the kernel wrote past the end of an output"
    return results
