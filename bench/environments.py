"""Where each candidate runs: rivals in virtual environments of their own, made by `bench setup`, below the cache folder.

The cache folder is $SPARSEC_BENCH, or ~/.cache/sparsec/bench. Versions are pinned in bench/rivals/*.txt.
"""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import dataclass, field
from pathlib import Path

from bench import isa

ROOT = Path(__file__).resolve().parent.parent
PINS = Path(__file__).resolve().parent / "rivals"


@dataclass(frozen=True)
class Family:
    """Candidates that share an environment and a worker (bench/rivals/<name>.py).

    python: version its environment needs, "" if this one's will do; own: False if the project's own environment has
    all it takes.
    """

    name: str
    what: str
    own: bool = True
    python: str = ""
    pip_options: tuple[str, ...] = ()


FAMILIES = {
    f.name: f
    for f in (
        Family("ort", "onnxruntime: fp32, dynamic and static int8, MatMulNBits"),
        Family("openvino", "OpenVINO fp32, NNCF int8, weight-only int8 and int4"),
        Family("litert", "LiteRT (XNNPACK) fp32 and int8"),
        Family("ggml", "ggml's matrix products, built from source"),
        Family("deepsparse", "DeepSparse 1.8", python="3.10", pip_options=("--no-deps",)),
        Family("ort_quantiser", "onnxruntime's quantisers, for their accuracy (this environment's)", own=False),
        Family("torch_int8", "torch dynamic int8, x86 engine", own=False),
        Family("openblas", "OpenBLAS through numpy", own=False),
    )
}

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


class NotSetUpError(Exception):
    """A rival's environment is not there; the message says why, or how to make it."""


@dataclass(frozen=True)
class Command:
    """How to start a worker."""

    arguments: list[str]
    environment: dict[str, str] = field(default_factory=lambda: dict(os.environ))


def cache_folder() -> Path:
    """Where environments and model files are kept."""
    given = os.environ.get("SPARSEC_BENCH")
    return Path(given) if given else Path.home() / ".cache" / "sparsec" / "bench"


def isa_folder() -> Path:
    """Where the library that hides instructions is kept, and its table."""
    return cache_folder() / "isa"


def folder(family: Family) -> Path:
    return cache_folder() / family.name


def digest(family: Family) -> str:
    """What an environment is made of: a stamp with another digest is out of date."""
    found = hashlib.sha256(repr(family).encode())
    for path in sorted((*PINS.glob(f"{family.name}.*"), *PINS.glob(f"{family.name}_*"))):
        if path.suffix in (".txt", ".c"):
            found.update(path.read_bytes())
    return found.hexdigest()


def python_of(family: Family) -> Path:
    return folder(family) / "bin" / "python"


def is_ready(family: Family, instruction_set: str) -> bool:
    if not family.own:
        return True
    stamp = folder(family) / "ready"
    built = family.name != "ggml" or isa.program(folder(family), instruction_set).is_file()
    return stamp.is_file() and stamp.read_text() == digest(family) and built


def worker_command(name: str, threads: int) -> Command:
    """The worker of a family, or of "sparsec", for the instruction set that was chosen (isa.py). Raises NotSetUpError."""
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONHOME", "VIRTUAL_ENV")}
    environment.update({variable: str(threads) for variable in _THREAD_VARIABLES})
    if (chosen := isa.chosen()) != isa.NATIVE:
        environment["GLIBC_TUNABLES"] = isa.GLIBC
    if name == "sparsec":
        return Command([sys.executable, "-m", "bench.worker"], environment)
    family = FAMILIES[name]
    if not is_ready(family, chosen):
        failed = folder(family).with_suffix(".failed")
        reason = f" ({failed.read_text().strip()})" if failed.is_file() else ""
        option = "" if chosen == isa.NATIVE else f"--isa {chosen} "
        raise NotSetUpError(f"not set up{reason}: python -m bench setup {option}{name}")
    python = sys.executable
    if family.own:
        environment["SPARSEC_BENCH_FOLDER"] = str(folder(family))
        python = str(python_of(family))
        environment["PYTHONPATH"] = str(ROOT)  # this project's own packages are not for their Python
    if chosen != isa.NATIVE:
        try:
            environment |= isa.hiding(Path(python), isa_folder())
        except isa.HidingError as error:
            raise NotSetUpError(f"instructions cannot be hidden: {error}") from error
    return Command([python, "-m", f"bench.rivals.{name}"], environment)
