"""A GPU kernel becomes a host object with image, PTX and descriptor; the same kernel becomes the same bytes."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from sparsec.codegen import nvrtc
from sparsec.codegen.build import build_kernels, kernel_key
from sparsec.codegen.program import KernelSpec
from sparsec.codegen.toolchain import Toolchain
from sparsec.errors import ToolchainError
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES, needs_compiler

PLAIN = {"bias": False, "residual": False, "act": "", "act_params": []}
JOIN = {"m": 3, "n": 70, "parts": 4, **PLAIN, "bias": True, "act": "gelu"}
HALVES = ("float32", "float32", "float16")


class Kernel(ctypes.Structure):
    """spc_cuda_kernel of spc_cuda.h."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("cubin", ctypes.POINTER(ctypes.c_ubyte)),
        ("cubin_bytes", ctypes.c_size_t),
        ("ptx", ctypes.c_char_p),
        ("ptx_bytes", ctypes.c_size_t),
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("static_bytes", ctypes.c_uint32),
        ("arg_count", ctypes.c_uint32),
        ("sm", ctypes.c_uint32),
    )


@needs_compiler
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_descriptor(arch: str, tmp_path: Path) -> None:
    target, spec = resolve_target(f"cuda:{arch}"), KernelSpec("cuda.join", JOIN, HALVES)
    built = build_kernels([spec], target)[spec.canonical()]
    assert built.symbol.startswith("spc_cuda_join_")
    assert built.meta["spills"] == built.meta["shared"] == 0
    assert 0 < built.meta["registers"] < 64
    library = tmp_path / "k.so"
    Toolchain(target).shared([built.object_path], library, [built.symbol], "k.so")
    found = Kernel.in_dll(ctypes.CDLL(str(library)), built.symbol)
    assert found.name.decode() == built.symbol
    assert bytes(found.cubin[:4]) == b"\x7fELF"
    assert built.symbol.encode() in bytes(found.cubin[: found.cubin_bytes])
    assert len(found.ptx) == found.ptx_bytes - 1
    assert f".target {arch}".encode() in found.ptx
    assert (list(found.grid), list(found.block)) == ([1, 1, 1], [256, 1, 1])
    assert (found.shared_bytes, found.arg_count, found.sm) == (0, 3, int(arch[3:]))


@needs_compiler
def test_same_kernel_same_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, spec = resolve_target("cuda"), KernelSpec("cuda.join", JOIN, HALVES)
    made = []
    for cache in ("a", "b"):
        monkeypatch.setenv("SPARSEC_CACHE", str(tmp_path / cache))
        made.append(build_kernels([spec], target)[spec.canonical()].object_path)
    assert made[0] != made[1]
    assert made[0].read_bytes() == made[1].read_bytes()


def test_keys_differ_by_storage_and_machine() -> None:
    specs = [KernelSpec("cuda.join", JOIN), KernelSpec("cuda.join", JOIN, HALVES)]
    targets = [resolve_target(name) for name in ("cuda:sm_80", "cuda:sm_90", "cuda:sm_90:bf16")]
    assert len({kernel_key(spec, target) for spec in specs for target in targets}) == 6


@needs_compiler
def test_errors_of_the_compiler_are_shown() -> None:
    with pytest.raises(ToolchainError, match=r'(?s)could not compile kernel_x.*"nonsense" is undefined'):
        nvrtc.compile_image('extern "C" __global__ void kernel_x(int* p) { *p = nonsense; }', "kernel_x", "sm_80")


def test_without_a_compiler_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_library", lambda: None)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ToolchainError, match=r"pip install sparsec\[cuda\]"):
        nvrtc.compile_image("", "k", "sm_80")
    assert nvrtc.compiler_version() == ""


@needs_compiler
def test_architectures_that_the_compiler_does_not_know() -> None:
    with pytest.raises(ToolchainError, match=r"does not compile for sm_35: take one of the targets .*cuda:sm_90"):
        nvrtc.compile_image("", "k", "sm_35")


def test_an_old_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_library", lambda: ctypes.CDLL(None))
    monkeypatch.setattr(nvrtc, "_version", lambda library: (12, 2))
    with pytest.raises(ToolchainError, match=r"NVRTC 12\.2 is too old for GPU kernels.*12\.5"):
        nvrtc.require_compiler("sm_90")


def test_wheels_of_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """That of CUDA 12 is taken first, then that of CUDA 13, then what the system has."""
    tried: list[str] = []

    def load(name: str) -> ctypes.CDLL:
        tried.append(name)
        raise OSError

    monkeypatch.setattr(nvrtc, "_folders", lambda package: [str(tmp_path / package)])
    monkeypatch.setattr(nvrtc.ctypes, "CDLL", load)
    newer = tmp_path / "nvidia.cu13" / "lib"
    newer.mkdir(parents=True)
    (newer / "libnvrtc-builtins.so.13.0").touch()  # which NVRTC 13 does not find by itself
    assert nvrtc._library.__wrapped__() is None
    wheels = [f"{newer}/libnvrtc-builtins.so.13.0", f"{newer}/libnvrtc.so.13"]
    assert tried == [
        f"{tmp_path}/nvidia.cuda_nvrtc/lib/libnvrtc.so.12", *wheels, "libnvrtc.so.12", "libnvrtc.so.13", "libnvrtc.so"
    ]  # fmt: skip
