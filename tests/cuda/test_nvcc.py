"""Kernels compiled by nvcc, where device.cuh meets the headers of the host's C library, and what is said of an nvcc that cannot."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from sparsec.codegen import nvcc, nvrtc
from sparsec.codegen.cuda.source import cuda_source
from sparsec.codegen.program import KernelSpec
from sparsec.errors import ToolchainError
from sparsec.target import resolve_target
from tests.cuda.compiler import ARCHITECTURES

needs_nvcc = pytest.mark.skipif(not nvcc.path(), reason="nvcc is not on PATH")

LONG = """#include "device.cuh"

extern "C" __global__ void __launch_bounds__(32, 1) long_kernel(int64_t* x_p, uint64_t* y_p, int8_t* z_p) {
  static_assert(sizeof(int64_t) == 8 && sizeof(uint64_t) == 8 && sizeof(int32_t) == 4 && sizeof(int8_t) == 1, "");
  int64_t value = max(x_p[threadIdx.x], (int64_t)0);
  y_p[threadIdx.x] = (uint64_t)value + (uint64_t)z_p[threadIdx.x];
}
"""
PLAIN = {"bias": False, "residual": False, "act": "", "act_params": []}
JOIN = KernelSpec(
    "cuda.join", {"m": 3, "n": 70, "parts": 4, **PLAIN, "bias": True, "act": "gelu"}, ("float32", "float32", "float16")
)


@pytest.fixture(autouse=True)
def no_nvrtc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvrtc, "_library", lambda: None)


@needs_nvcc
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_kernel(arch: str) -> None:
    source = cuda_source(JOIN, resolve_target(f"cuda:{arch}"), "kernel_j")
    image = nvrtc.compile_image(source.text, "kernel_j", arch)
    assert image.cubin[:4] == b"\x7fELF"
    assert f".target {arch}".encode() in image.ptx
    assert b".entry kernel_j" in image.ptx
    assert image.ptx.endswith(b"\0")
    assert b"\0" not in image.ptx[:-1]
    assert (image.spills, image.shared) == (0, 0)
    assert 0 < image.registers < 64


@needs_nvcc
def test_numbers_of_fixed_width() -> None:
    assert b".entry long_kernel" in nvrtc.compile_image(LONG, "long_kernel", "sm_90").ptx


@needs_nvcc
def test_the_same_bytes_wherever_it_is_compiled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = cuda_source(JOIN, resolve_target("cuda"), "kernel_j").text
    made = []
    for name in ("a", "somewhere/else"):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        monkeypatch.setattr(tempfile, "tempdir", str(folder))
        made.append(nvrtc.compile_image(source, "kernel_j", "sm_90"))
    assert made[0] == made[1]


@needs_nvcc
def test_errors_name_the_kernel() -> None:
    with pytest.raises(ToolchainError, match=r'(?s)nvcc .*kernel_x for sm_80.*"nonsense" is undefined'):
        nvrtc.compile_image('extern "C" __global__ void kernel_x(int* p) { *p = nonsense; }', "kernel_x", "sm_80")


def stand_in(folder: Path, release: str, architectures: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An nvcc that only says what it is."""
    script = folder / "nvcc"
    script.write_text(
        f'#!/bin/sh\nif [ "$1" = --version ]; then echo "release {release}, V{release}.1"; else printf "{architectures}"; fi\n'
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


def test_an_old_nvcc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "12.4", r"sm_80\nsm_90\n", monkeypatch)
    with pytest.raises(ToolchainError, match=r"nvcc 12\.4 is too old .* CUDA 12\.5 or newer.*sparsec\[cuda\]"):
        nvrtc.compile_image("", "k", "sm_90")


def test_an_architecture_it_does_not_know(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "13.0", r"sm_75\nsm_80\nsm_110\n", monkeypatch)
    with pytest.raises(ToolchainError) as raised:
        nvrtc.compile_image("", "k", "sm_101")
    assert str(raised.value) == (
        "nvcc 13.0 does not compile for sm_101, which it calls sm_110: take one of the targets cuda:sm_80, cuda:sm_110, "
        "or install another version"
    )
    nvrtc.require_compiler("sm_80")


def test_an_nvcc_that_does_not_say_what_it_knows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(tmp_path, "12.8", "", monkeypatch)
    nvrtc.require_compiler("sm_101")
