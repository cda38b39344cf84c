"""CUDA C -> cubin and PTX by nvcc, where it is on PATH."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from sparsec.errors import ToolchainError


def path() -> str:
    """nvcc on PATH, "" if there is none."""
    return shutil.which("nvcc") or ""


def version_text() -> str:
    """What nvcc says of its version, "" if there is none."""
    return _version_text(path()) if path() else ""


def version() -> tuple[int, int]:
    """Its version, (0, 0) if it does not say."""
    found = re.search(r"release (\d+)\.(\d+)", version_text())
    return (int(found[1]), int(found[2])) if found else (0, 0)


def architectures() -> frozenset[str]:
    """What it compiles for ("sm_90"); empty if it does not say."""
    return _architectures(path())


@cache
def _architectures(nvcc: str) -> frozenset[str]:
    done = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)
    return frozenset(re.findall(r"^sm_\d+$", done.stdout, re.MULTILINE))


@cache
def _version_text(nvcc: str) -> str:
    return subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout


def compile_source(source: str, symbol: str, arch: str, headers: Path) -> tuple[bytes, bytes, str]:
    """(cubin for `arch`, PTX that ends with a zero byte, the log of ptxas) of the kernel `symbol`; headers: where it finds device.cuh.

    Raises ToolchainError with nvcc's messages.
    """
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"{symbol}.cu"
        file.write_text(source)
        made, log = [], ""
        for kind, machine in (("cubin", arch), ("ptx", arch.replace("sm_", "compute_"))):
            out = file.with_suffix(f".{kind}")
            command = [path(), f"-{kind}", f"-arch={machine}", "-std=c++17", "-Xptxas=-v", f"-I{headers}"]
            done = subprocess.run(
                [*command, "-o", out.name, file.name], cwd=folder, capture_output=True, text=True, check=False
            )
            if done.returncode:
                raise ToolchainError(
                    f"nvcc could not compile {symbol} for {arch} (status {done.returncode}):\n{done.stderr[:4000]}"
                )
            made.append(out.read_bytes())
            log += done.stderr
        return made[0], made[1].rstrip(b"\0") + b"\0", log
