"""A real GPU, where there is one: its driver through ctypes, for kernels as they are and for the question whether there is one."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numpy as np
import pytest

from bench.gpu_driver import Gpu, run_kernel
from sparsec.codegen.cuda.launch import Launch
from sparsec.codegen.nvrtc import compile_image
from sparsec.target import GPUS

Array = np.ndarray[Any, Any]


class Device(Gpu):
    """The first GPU of a driver library, for kernels that are CUDA C."""

    @property
    def arch(self) -> str:
        """The newest architecture sparsec knows that this GPU runs."""
        return max(
            (name for name in GPUS if int(name[3:].rstrip("a")) <= self.sm), key=lambda n: int(n[3:].rstrip("a"))
        )

    def run(self, source: str, name: str, launch: Launch, arrays: Sequence[Array], shift: int = 0) -> list[Array]:
        """Compile a kernel and run it on copies of `arrays`, `shift` bytes off; returns the copies after the run."""
        image = compile_image(source, name, self.arch)
        code = image.cubin if f"sm_{self.sm}" == self.arch else image.ptx
        return run_kernel(self, code, name, launch.grid, launch.block, launch.shared_bytes, arrays, shift=shift)


@cache
def real_gpu() -> Device | None:
    """The GPU of this machine; None where there is none, or SPARSEC_TEST_GPU=0 says to leave it alone."""
    if os.environ.get("SPARSEC_TEST_GPU") == "0":
        return None
    try:
        return Device("libcuda.so.1")
    except OSError:
        return None


_skips = pytest.mark.skipif(real_gpu() is None, reason="no GPU here (libcuda.so.1 does not load, or finds none)")


def needs_gpu(test: Callable[..., None]) -> Callable[..., None]:
    """Decorator of tests that run on a real GPU."""
    return pytest.mark.gpu(_skips(test))
