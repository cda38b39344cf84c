"""Runs one kernel on numpy arrays: in this process where the host has the target's instructions, else under qemu-user."""

from __future__ import annotations

import ctypes
import importlib
import itertools
import mmap
import struct
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sparsec.codegen import zig
from sparsec.codegen.build import build_kernels
from sparsec.codegen.program import KernelSpec, Signature
from sparsec.emulate import emulator, runs_here, why_not_runnable
from sparsec.target import Target, host_target
from tests.kernels import vnni

Array = np.ndarray[Any, Any]
_FILLER = 0xA5
_ROLES = {"in": 0, "out": 1, "work": 2}


def run_kernel(
    family: str,
    params: Mapping[str, Any],
    ins: Sequence[Array],
    *,
    target: Target | None = None,
    splits: int = 3,
    outs: Sequence[Array] | None = None,
    scratch: Mapping[str, int] | None = None,
) -> list[Array]:
    """Outputs (flat arrays) of the kernel. The range of units is run in `splits` pieces, in reverse order, as threads might;
    pointers are not aligned, every output and work byte starts as garbage (`scratch`: elements of work arguments where data
    decides); reading past the end of an input is a fault, writing past an output's end fails the assertion. Skips where the
    target can run neither here nor in an emulator that is installed."""
    target = target or host_target()
    if (reason := why_not_runnable(target)) and not vnni.can_stand_in(target):
        pytest.skip(reason)
    module = importlib.import_module(f"sparsec.codegen.kernels.{family}")
    open_sig: Signature = module.signature(params, target)
    spec = KernelSpec(family, params)
    built = build_kernels([spec], target)[spec.canonical()]
    # an argument whose size is data has that of the array given for it
    sizes, in_sizes = [], iter(a.size for a in ins)
    for arg in open_sig.args:
        if arg.role != "work":
            sizes.append(next(in_sizes) if arg.role == "in" else arg.size)
    sig = open_sig.bound(sizes, scratch or {})
    given = iter(ins)
    preset = iter(outs) if outs is not None else None
    arrays: list[Array | None] = []
    for arg in sig.args:
        source = given if arg.role == "in" else preset if arg.role == "out" else None
        array = np.ascontiguousarray(next(source)).reshape(-1) if source is not None else None
        if array is not None:
            assert (array.dtype, array.size) == (np.dtype(arg.dtype), arg.size), (arg.name, array.dtype, array.size)
        arrays.append(array)
    bounds = sorted({round(i * sig.units / splits) for i in range(splits + 1)})
    ranges = list(reversed(list(itertools.pairwise(bounds))))
    if runs_here(target):
        return _run_here(_library(built.object_path), built.symbol, sig, arrays, ranges)
    if vnni.can_stand_in(target):
        return _run_here(_library(vnni.compiled(spec, target, built.symbol)), built.symbol, sig, arrays, ranges)
    return _run_emulated(target, built.object_path, built.symbol, sig, arrays, ranges)


@cache
def _library(object_path: Path) -> ctypes.CDLL:
    with tempfile.TemporaryDirectory(prefix="sparsec-test-") as folder:
        lib = f"{folder}/k.so"
        # the bare linker: a kernel needs no C library of its own, and the full driver is ten times slower
        subprocess.check_call([*zig.command("ld.lld"), "-shared", "-o", lib, str(object_path)])
        return ctypes.CDLL(lib)  # stays mapped when the file is gone


class _Guarded:
    """Bytes that end where a page without access begins."""

    def __init__(self, nbytes: int) -> None:
        page = mmap.PAGESIZE
        whole = -(-nbytes // page) * page
        self._map = mmap.mmap(-1, whole + page)
        self._end = np.frombuffer(self._map, np.uint8).ctypes.data + whole
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.mprotect(ctypes.c_void_p(self._end), ctypes.c_size_t(page), 0) == 0
        self.array = np.frombuffer(self._map, np.uint8, nbytes, whole - nbytes)

    def __del__(self) -> None:
        ctypes.CDLL(None).mprotect(ctypes.c_void_p(self._end), ctypes.c_size_t(mmap.PAGESIZE), 3)


def _run_here(
    library: ctypes.CDLL, symbol: str, sig: Signature, arrays: Sequence[Array | None], ranges: Sequence[tuple[int, int]]
) -> list[Array]:
    function = getattr(library, symbol)
    function.restype = ctypes.c_int32
    keep: list[_Guarded] = []
    pointers: list[ctypes.c_void_p] = []
    results: list[tuple[Array, Array]] = []
    for arg, array in zip(sig.args, arrays, strict=True):
        dtype = np.dtype(arg.dtype)
        size = arg.size * dtype.itemsize
        memory = _Guarded(size + (64 if arg.role == "out" else 0))
        memory.array[:] = _FILLER
        if array is not None:
            memory.array[:size] = array.view(np.uint8)
        if arg.role == "out":
            results.append((memory.array[:size].view(dtype), memory.array[size:]))
        keep.append(memory)
        pointers.append(ctypes.c_void_p(memory.array.ctypes.data))
    for lo, hi in ranges:
        status = function(*pointers, ctypes.c_int32(lo), ctypes.c_int32(hi))
        assert status == 0, f"the kernel returned {status}"
    for _, guard in results:
        assert (guard == _FILLER).all(), "the kernel wrote past the end of an output"
    return [result.copy() for result, _ in results]


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="sparsec-test-")


@cache
def _driver(triple: str, pointers: int) -> Path:
    """tests/kernels/driver.c for kernels of so many pointers."""
    made = Path(_scratch().name) / f"{triple}-{pointers}.o"
    defines = {
        "COUNT": str(pointers),
        "TYPES": "void *, " * pointers + "int32_t, int32_t",
        "POINTERS": ", ".join(f"p[{i}]" for i in range(pointers)),
    }
    flags = ["-O2", "-ffreestanding", "-fno-stack-protector", "-fno-sanitize=all", "-Wall", "-Wextra", "-Werror"]
    command = [*zig.command("cc"), "-target", triple, *flags, *(f"-D{name}={value}" for name, value in defines.items())]
    subprocess.check_call([*command, "-c", str(Path(__file__).with_name("driver.c")), "-o", str(made)])
    return made


@cache
def _program(target: Target, object_path: Path, symbol: str, pointers: int) -> Path:
    """The driver linked with the kernel."""
    made = Path(_scratch().name) / f"{object_path.stem}-{pointers}"
    driver = _driver(target.zig_triple, pointers)
    link = [*zig.command("ld.lld"), "-static", f"--defsym=kernel={symbol}", "-o", str(made)]
    subprocess.check_call([*link, str(driver), str(object_path)])
    return made


def _run_emulated(
    target: Target, kernel: Path, symbol: str, sig: Signature, arrays: Sequence[Array | None], ranges: Sequence[tuple[int, int]]
) -> list[Array]:  # fmt: skip
    found = emulator(target.arch)
    assert found is not None
    message = [struct.pack("<I", len(sig.args))]
    for arg, array in zip(sig.args, arrays, strict=True):
        size = arg.size * np.dtype(arg.dtype).itemsize
        message.append(struct.pack("<II", _ROLES[arg.role], size))
        if arg.role != "work":
            message.append(array.tobytes() if array is not None else bytes([_FILLER]) * size)
    message.append(struct.pack("<I", len(ranges)))
    message += [struct.pack("<ii", lo, hi) for lo, hi in ranges]
    program = _program(target, kernel, symbol, len(sig.args))
    done = subprocess.run([found, str(program)], input=b"".join(message), capture_output=True, check=False)
    assert done.returncode == 0, f"status {done.returncode}: {done.stderr.decode()}"
    results, at = [], 0
    for arg in sig.args:
        if arg.role == "out":
            dtype = np.dtype(arg.dtype)
            results.append(np.frombuffer(done.stdout, dtype, arg.size, at).copy())
            at += arg.size * dtype.itemsize
    return results
