"""CUDA C -> machine code (cubin) and PTX, by NVRTC from the registry's wheel or by nvcc from PATH (nvcc.py)."""

from __future__ import annotations

import ctypes
import importlib.util
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from sparsec.codegen import nvcc
from sparsec.errors import ToolchainError

DEVICE_HEADER = Path(__file__).parent / "cuda" / "device.cuh"
_OPTIONS = ("-std=c++17", "-default-device")
_LIBRARIES = ("libnvrtc.so.12", "libnvrtc.so")


@dataclass(frozen=True)
class Image:
    """A compiled kernel. registers: of a thread; spills: bytes of them that went to memory; shared: bytes the image declares."""

    cubin: bytes
    ptx: bytes
    registers: int
    spills: int
    shared: int


def compile_image(source: str, symbol: str, arch: str) -> Image:
    """Compile one kernel for `arch` ("sm_90"); the same source gives the same bytes.

    Raises ToolchainError with the compiler's messages, or when there is neither NVRTC nor nvcc.
    """
    library = _library()
    if library is not None:
        cubin, log = _nvrtc(library, source, symbol, arch, ("--ptxas-options=-v",))
        ptx, _ = _nvrtc(library, source, symbol, arch.replace("sm_", "compute_"), ())
        return _image(cubin, ptx, log)
    require_compiler()
    return _image(*nvcc.compile_source(source, symbol, arch, DEVICE_HEADER.parent))


def require_compiler() -> None:
    """Raise ToolchainError unless there is NVRTC or nvcc."""
    if not compiler_version():
        raise ToolchainError(
            "GPU kernels need a compiler, and neither NVRTC nor nvcc was found: "
            "install the wheel with `pip install sparsec[cuda]`, or put nvcc of CUDA 12 on PATH"
        )


def compiler_version() -> str:
    """Which compiler makes images here: part of the kernels' cache key; "" where there is none."""
    library = _library()
    if library is not None:
        major, minor = ctypes.c_int(), ctypes.c_int()
        _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
        return f"nvrtc {major.value}.{minor.value} {_wheel_version()}"
    return nvcc.version_text()


def _wheel_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("nvidia-cuda-nvrtc-cu12")
    except PackageNotFoundError:
        return ""


@cache
def _library() -> ctypes.CDLL | None:
    """NVRTC of the wheel, else one the system's loader finds, else None."""
    candidates = list(_LIBRARIES)
    try:
        spec = importlib.util.find_spec("nvidia.cuda_nvrtc")
    except ModuleNotFoundError:
        spec = None
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        candidates = [*(str(Path(folder) / "lib" / name) for name in _LIBRARIES[:1]), *candidates]
    for name in candidates:
        try:
            library = ctypes.CDLL(name)
        except OSError:
            continue
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
        return library
    return None


def _check(library: ctypes.CDLL, code: int, what: str) -> None:
    if code:
        raise ToolchainError(f"{what} failed: {library.nvrtcGetErrorString(code).decode()}")


def _nvrtc(library: ctypes.CDLL, source: str, symbol: str, arch: str, options: Sequence[str]) -> tuple[bytes, str]:
    """(cubin of an sm_ architecture or PTX of a compute_ one, the compiler's log)."""
    program = ctypes.c_void_p()
    headers = (ctypes.c_char_p * 1)(DEVICE_HEADER.read_bytes())
    names = (ctypes.c_char_p * 1)(DEVICE_HEADER.name.encode())
    _check(
        library,
        library.nvrtcCreateProgram(ctypes.byref(program), source.encode(), f"{symbol}.cu".encode(), 1, headers, names),
        "nvrtcCreateProgram",
    )
    try:
        given = [f"--gpu-architecture={arch}", *_OPTIONS, *options]
        code = library.nvrtcCompileProgram(
            program, len(given), (ctypes.c_char_p * len(given))(*(o.encode() for o in given))
        )
        log = _read(library, program, "ProgramLog").rstrip(b"\0").decode(errors="replace")
        if code:
            reason = library.nvrtcGetErrorString(code).decode()
            raise ToolchainError(f"NVRTC could not compile {symbol} for {arch} ({reason}):\n{log[:4000]}")
        return _read(library, program, "CUBIN" if arch.startswith("sm_") else "PTX"), log
    finally:
        library.nvrtcDestroyProgram(ctypes.byref(program))


def _read(library: ctypes.CDLL, program: ctypes.c_void_p, what: str) -> bytes:
    size = ctypes.c_size_t()
    _check(library, getattr(library, f"nvrtcGet{what}Size")(program, ctypes.byref(size)), f"nvrtcGet{what}Size")
    text = ctypes.create_string_buffer(size.value)
    _check(library, getattr(library, f"nvrtcGet{what}")(program, text), f"nvrtcGet{what}")
    return text.raw


def _image(cubin: bytes, ptx: bytes, log: str) -> Image:
    used = re.search(r"Used (\d+) registers", log)
    shared = re.search(r"(\d+) bytes smem", log)
    spills = re.search(r"(\d+) bytes spill stores, (\d+) bytes spill loads", log)
    if used is None or spills is None:
        raise ToolchainError(f"the GPU compiler's log does not say how many registers the kernel uses:\n{log[:2000]}")
    return Image(cubin, ptx, int(used[1]), max(int(spills[1]), int(spills[2])), 0 if shared is None else int(shared[1]))
