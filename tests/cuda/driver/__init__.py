"""A CUDA driver without a GPU (fake_driver.c): whole programs and bundles run through the C runtime, their kernels simulated."""

from __future__ import annotations

import ctypes
from pathlib import Path

import numpy as np

from sparsec.cache import digest, entry, source_digest, used, writing
from sparsec.codegen import zig
from sparsec.codegen.bundle import Compiled
from tests.cuda import simulator
from tests.cuda.programs import source_of
from tests.cuda.simulator import kernel_library

HERE = Path(__file__).parent
FLAGS = ("-std=c11", "-O1", "-g0", "-fPIC", "-shared", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror")


def fake_driver() -> Path:
    """The driver, compiled for this machine; cached by content."""
    source = HERE / "fake_driver.c"
    path = entry("simulated", f"driver-{digest(source_digest(source, simulator.HERE / 'launch.h'), *FLAGS)}.so")
    if not used(path):
        with writing(path) as made:
            done = zig.run([*zig.command("cc"), *FLAGS, "-fno-sanitize=all", "-o", str(made), str(source)])
            assert done.returncode == 0, done.stderr
    return path


class FakeGpu:
    """The fake driver, as tests look at it."""

    def __init__(self, path: Path, kernels: Path) -> None:
        self.path, self.kernels = path, kernels
        self._library = ctypes.CDLL(str(path))
        self._library.fake_count.restype = ctypes.c_long
        self._library.fake_live.restype = ctypes.c_long
        self._library.fake_problem.restype = ctypes.c_char_p
        self._library.fake_read.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self._library.fake_write.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t]
        self._library.fake_reset()

    def add(self, compiled: Compiled) -> None:
        """Make the kernels of a program known."""
        program = compiled.program
        for text, spec in {step.spec.canonical(): step.spec for step in program.steps}.items():
            link = self.kernels / f"{compiled.kernels[text].symbol}.so"
            if not link.exists():
                link.symlink_to(kernel_library(source_of(spec, program.target)[0], "kernel"))

    def calls(self, function: str) -> int:
        """How often a function of the driver was called; `cubin` and `ptx`: images loaded."""
        return int(self._library.fake_count(function.encode()))

    @property
    def live(self) -> int:
        """Objects (memory, streams, graphs, modules ...) that were made and not destroyed."""
        return int(self._library.fake_live())

    @property
    def problem(self) -> str:
        """What the driver or a kernel complained about last."""
        return bytes(self._library.fake_problem()).decode()

    def read(self, address: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array from the GPU's memory."""
        array = np.empty(shape, dtype)
        assert self._library.fake_read(array.ctypes.data, address, array.nbytes) == 0
        return array

    def write(self, address: int, array: np.ndarray) -> None:
        """Put an array into the GPU's memory."""
        assert self._library.fake_write(address, array.ctypes.data, array.nbytes) == 0
