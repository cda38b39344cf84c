"""Programs of another architecture, run under qemu-user: tells whether they are correct, not how fast they are."""

from __future__ import annotations

import platform
import shutil
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.errors import InputError, TargetError
from sparsec.runtime import TensorInfo
from sparsec.target import Target, host_target

Array = np.ndarray[Any, Any]


def runs_here(target: Target) -> bool:
    """Whether this machine has the target's architecture and instructions."""
    host = host_target()
    return target.arch == host.arch and set(target.features) <= set(host.features)


def emulator(arch: str) -> str | None:
    """Path of qemu-user for a foreign architecture, or None."""
    return shutil.which(f"qemu-{arch}") if arch != platform.machine() else None


def why_not_runnable(target: Target) -> str | None:
    """Why programs for `target` cannot run on this machine, not even emulated; None if they can."""
    if runs_here(target) or emulator(target.arch):
        return None
    host = host_target()
    if target.arch == host.arch:
        lacking = ", ".join(f for f in target.features if f not in host.features)
        return f"target '{target.name}' needs {lacking}, which this machine lacks; run the bundle on one that has it"
    return (
        f"target '{target.name}' is {target.arch}, this machine is {host.arch}, and qemu-{target.arch} is not installed "
        "(Debian, Ubuntu: apt install qemu-user)"
    )


class EmulatedSession:
    """Runs a bundle's demo program under qemu-user, one process a run; the interface of `runtime.Session` as far as it goes.

    Args:
        program: the executable of a bundle. weights: its weights.bin.
        inputs, outputs: what the model takes and gives.

    Raises:
        TargetError: no emulator for `arch` is installed.
    """

    def __init__(
        self,
        program: Path,
        weights: Path,
        arch: str,
        inputs: Sequence[TensorInfo],
        outputs: Sequence[TensorInfo],
        threads: int = 1,
    ) -> None:
        found = emulator(arch)
        if found is None:
            raise TargetError(f"{program} is {arch} code; install qemu-{arch} (qemu-user) or run it on such a machine")
        self._command = [found, str(program), "-w", str(weights), "-t", str(threads)]
        self.inputs, self.outputs = tuple(inputs), tuple(outputs)

    def run(self, inputs: Mapping[str, Array] | Sequence[Array]) -> dict[str, Array]:
        """Arrays by name or in order -> outputs by name. Raises InputError when the program refuses the inputs."""
        arrays = self._ordered(inputs)
        with tempfile.TemporaryDirectory(prefix="sparsec-run-") as scratch:
            ins = [Path(scratch) / f"in{i}.npy" for i in range(len(arrays))]
            outs = [Path(scratch) / f"out{i}.npy" for i in range(len(self.outputs))]
            for path, array in zip(ins, arrays, strict=True):
                np.save(path, array)
            done = subprocess.run(
                [*self._command, *map(str, ins), *map(str, outs)], capture_output=True, text=True, check=False
            )
            if done.returncode:
                lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
                raise InputError(f"the emulated program failed: {lines[-1].removeprefix('error: ')}")
            return {info.name: np.load(path) for info, path in zip(self.outputs, outs, strict=True)}

    def _ordered(self, inputs: Mapping[str, Array] | Sequence[Array]) -> list[Array]:
        names = [info.name for info in self.inputs]
        takes = f"The model takes: {'; '.join(map(str, self.inputs)) or 'no inputs'}"
        if not isinstance(inputs, Mapping):
            if len(inputs) != len(names):
                raise InputError(f"{len(inputs)} arrays given, {len(names)} wanted. {takes}")
            inputs = dict(zip(names, inputs, strict=True))
        if set(inputs) != set(names):
            raise InputError(f"inputs are named {', '.join(map(repr, inputs)) or 'nothing'}. {takes}")
        for info in self.inputs:
            array = np.asarray(inputs[info.name])
            if array.dtype != np.dtype(info.dtype) or array.shape != info.shape:
                raise InputError(f"input '{info.name}' is {array.dtype}{list(array.shape)}. {takes}")
        return [np.ascontiguousarray(inputs[name]) for name in names]
