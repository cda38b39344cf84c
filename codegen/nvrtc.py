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
from sparsec.target import GPUS

DEVICE_HEADER = Path(__file__).parent / "cuda" / "device.cuh"
_OPTIONS = ("-std=c++17", "-default-device")
# Where the wheels of CUDA 12 and 13 have the library, and under which names the system may know it.
_WHEELS = {"nvidia.cuda_nvrtc": "libnvrtc.so.12", "nvidia.cu13": "libnvrtc.so.13"}
_LIBRARIES = ("libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so")
_DISTRIBUTIONS = {12: "nvidia-cuda-nvrtc-cu12", 13: "nvidia-cuda-nvrtc"}
_OLDEST = (12, 5)  # PTX 8.5, which has mma.sp::ordered_metadata
_RENAMED = {"sm_101": "sm_110", "sm_110": "sm_101"}  # what CUDA 12 and CUDA 13 call the same GPU


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

    Raises ToolchainError with the compiler's messages, or when there is no compiler for `arch` (`require_compiler`).
    """
    require_compiler(arch)
    library = _library()
    if library is None:
        return _image(*nvcc.compile_source(source, symbol, arch, DEVICE_HEADER.parent))
    cubin, log = _nvrtc(library, source, symbol, arch, ("--ptxas-options=-v",))
    ptx, _ = _nvrtc(library, source, symbol, arch.replace("sm_", "compute_"), ())
    return _image(cubin, ptx, log)


def require_compiler(arch: str) -> None:
    """Raise ToolchainError unless there is NVRTC or nvcc, new enough, and compiles for `arch` ("sm_90")."""
    if not compiler_version():
        raise ToolchainError(
            "GPU kernels need a compiler, and neither NVRTC nor nvcc was found: "
            "install the wheel with `pip install sparsec[cuda]`, or put nvcc of CUDA 12.5 or newer on PATH"
        )
    library = _library()
    name, version = ("nvcc", nvcc.version()) if library is None else ("NVRTC", _version(library))
    called = f"{name} {version[0]}.{version[1]}"
    if version < _OLDEST:
        raise ToolchainError(
            f"{called} is too old for GPU kernels, which need one of CUDA {_OLDEST[0]}.{_OLDEST[1]} or newer: "
            "`pip install sparsec[cuda]` installs one"
        )
    known = nvcc.architectures() if library is None else _architectures(library)
    if known and arch not in known:  # an empty set: it did not say
        allowed = ", ".join(f"cuda:{gpu}" for gpu in GPUS if gpu in known)
        other = _RENAMED.get(arch, "")
        hint = f", which it calls {other}" if other in known else ""
        raise ToolchainError(
            f"{called} does not compile for {arch}{hint}: take one of the targets {allowed}, or install another version"
        )


def compiler_version() -> str:
    """Which compiler makes images here: part of the kernels' cache key; "" where there is none."""
    library = _library()
    if library is None:
        return nvcc.version_text()
    major, minor = _version(library)
    return f"nvrtc {major}.{minor} {_wheel_version(major)}"


def _version(library: ctypes.CDLL) -> tuple[int, int]:
    major, minor = ctypes.c_int(), ctypes.c_int()
    _check(library, library.nvrtcVersion(ctypes.byref(major), ctypes.byref(minor)), "nvrtcVersion")
    return major.value, minor.value


@cache
def _architectures(library: ctypes.CDLL) -> frozenset[str]:
    count = ctypes.c_int()
    _check(library, library.nvrtcGetNumSupportedArchs(ctypes.byref(count)), "nvrtcGetNumSupportedArchs")
    found = (ctypes.c_int * count.value)()
    _check(library, library.nvrtcGetSupportedArchs(found), "nvrtcGetSupportedArchs")
    return frozenset(f"sm_{number}" for number in found)


def _wheel_version(major: int) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(_DISTRIBUTIONS.get(major, ""))
    except (PackageNotFoundError, ValueError):
        return ""


@cache
def _library() -> ctypes.CDLL | None:
    """NVRTC of a wheel, that of CUDA 12 first, else one the system's loader finds, else None."""
    for wheel in (Path(folder) / "lib" / file for package, file in _WHEELS.items() for folder in _folders(package)):
        for builtins in sorted(wheel.parent.glob("libnvrtc-builtins.so.*")):
            _open(str(builtins))  # NVRTC 13 asks for them by name, and the loader does not look for them in wheels
        if (library := _open(str(wheel))) is not None:
            return library
    return next((library for name in _LIBRARIES if (library := _open(name)) is not None), None)


def _open(path: str) -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(path)
    except OSError:
        return None
    if hasattr(library, "nvrtcGetErrorString"):
        library.nvrtcGetErrorString.restype = ctypes.c_char_p
    return library


def _folders(package: str) -> list[str]:
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        return []
    return [] if spec is None else list(spec.submodule_search_locations or ())


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
