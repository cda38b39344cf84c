"""Named targets and target triples -> the features code generation needs.

A target is a pure description: nothing here runs a compiler or inspects a tool chain. `cpu` alone looks at the
machine it runs on (`SPARSEC_HOST=x86-avx2` takes it for a lesser one).
"""

from __future__ import annotations

import difflib
import os
import platform
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from sparsec.errors import TargetError


@dataclass(frozen=True)
class Target:
    """What the kernels are generated for.

    `vector_bits` is the width of one vector register, `vector_registers` how many there are: tile sizes follow
    from both. `zig_triple` names the C library for the tool chain, `llvm_triple` the same machine for LLVM.
    """

    name: str
    arch: str  # "x86_64" | "aarch64"
    llvm_triple: str
    zig_triple: str
    mcpu: str
    mattr: tuple[str, ...]
    vector_bits: int
    vector_registers: int
    features: tuple[str, ...] = ()
    gpu: str = ""  # NVIDIA architecture ("sm_90") that kernels are compiled for; "": kernels run on the processor
    storage: str = ""  # element type of float values between the kernels of a GPU: "float16" or "bfloat16"

    @property
    def vnni(self) -> bool:
        """Whether x86's vpdpbusd is there: four products of bytes added to 32 bits at once."""
        return "avxvnni" in self.features or "avx512vnni" in self.features

    @property
    def lanes(self) -> int:
        """Number of float32 lanes of one vector register."""
        return self.vector_bits // 32

    def describe(self) -> dict[str, Any]:
        """JSON-able form: part of every kernel's cache key and of the bundle's manifest."""
        fields = asdict(self)
        if not self.gpu:
            del fields["gpu"], fields["storage"]
        return fields


def _x86(
    name: str, mcpu: str, bits: int, registers: int, features: tuple[str, ...], mattr: tuple[str, ...] = ()
) -> Target:
    return Target(
        name=name,
        arch="x86_64",
        llvm_triple="x86_64-linux-gnu",
        zig_triple="x86_64-linux-gnu.2.17",
        mcpu=mcpu,
        # LLVM prefers 256-bit vectors on server parts; our tiles are chosen for 512.
        mattr=(*mattr, "-prefer-256-bit") if bits == 512 else mattr,
        vector_bits=bits,
        vector_registers=registers,
        features=features,
    )


def _arm(name: str, mcpu: str, mattr: tuple[str, ...], features: tuple[str, ...]) -> Target:
    return Target(
        name=name,
        arch="aarch64",
        llvm_triple="aarch64-linux-gnu",
        zig_triple="aarch64-linux-musl",
        mcpu=mcpu,
        mattr=mattr,
        vector_bits=128,
        vector_registers=32,
        features=features,
    )


_VBMI2 = ("+avx512vbmi", "+avx512vbmi2")

NAMED: dict[str, Target] = {
    "x86-avx2": _x86("x86-avx2", "haswell", 256, 16, ("avx2", "fma")),
    "x86-avxvnni": _x86("x86-avxvnni", "haswell", 256, 16, ("avx2", "fma", "avxvnni"), ("+avxvnni",)),
    "x86-avx512": _x86("x86-avx512", "skylake-avx512", 512, 32, ("avx2", "fma", "avx512")),
    "x86-avx512vnni": _x86("x86-avx512vnni", "cascadelake", 512, 32, ("avx2", "fma", "avx512", "avx512vnni")),
    # Ice Lake, Zen 4 and later: bytes are brought together by a mask.
    "x86-avx512vbmi2": _x86(
        "x86-avx512vbmi2", "cascadelake", 512, 32, ("avx2", "fma", "avx512", "avx512vnni", "avx512vbmi2"), _VBMI2
    ),
    # Neoverse N1 is Cortex-A76 to a compiler; LLVM's schedule for the one spills less.
    "arm": _arm("arm", "neoverse-n1", ("+neon", "+dotprod"), ("neon", "dotprod")),
    # Server cores with i8mm have SVE in LLVM's eyes, Apple's lack it: so the last one without SVE, and i8mm.
    "arm-i8mm": _arm("arm-i8mm", "neoverse-n1", ("+neon", "+dotprod", "+i8mm"), ("neon", "dotprod", "i8mm")),
    "arm-v8.0": _arm("arm-v8.0", "cortex-a53", ("+neon",), ("neon",)),
}

# NVIDIA architectures with fp16 and bf16 tensor cores (mma.sync m16n8k16) that NVRTC 12.9 or 13.0 compiles for.
GPUS: dict[str, str] = {
    "sm_80": "A100, A30",
    "sm_86": "A10, A40, RTX 30",
    "sm_87": "Jetson Orin",
    "sm_89": "L4, L40, RTX 40",
    "sm_90": "H100, H200",
    "sm_100": "B200",
    "sm_101": "Jetson Thor, as CUDA 12 calls it",
    "sm_103": "B300",
    "sm_110": "Jetson Thor, as CUDA 13 calls it",
    "sm_120": "RTX 50, RTX PRO Blackwell",
    "sm_121": "GB10",
}
_DEFAULT_GPU = "sm_90"
_STORAGE = {"": "float16", "fp16": "float16", "bf16": "bfloat16"}

_TRIPLES = {"x86_64": "x86-avx2", "aarch64": "arm-v8.0"}


def available_targets() -> dict[str, str]:
    """Name -> one line of description, for `sparsec targets` and for error messages."""
    lines = {"cpu": "this machine (as detected: the widest vectors it has)"}
    for name, target in NAMED.items():
        lines[name] = (
            f"{target.arch}, {target.vector_bits}-bit vectors, LLVM cpu {target.mcpu}, "
            f"features {'+'.join(target.features)}"
        )
    lines["cuda"] = (
        f"NVIDIA GPU, as cuda:{_DEFAULT_GPU}; values between kernels are fp16, with the suffix :bf16 bfloat16"
    )
    for arch, devices in GPUS.items():
        lines[f"cuda:{arch}"] = f"NVIDIA GPU of compute capability {arch[3:-1]}.{arch[-1]} ({devices})"
    return lines


def _host_flags() -> frozenset[str]:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return frozenset()
    for line in text.splitlines():
        if line.startswith(("flags", "Features")):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def host_target() -> Target:
    """The target of the machine this runs on, or the one that SPARSEC_HOST names: what a lesser machine would make and run.

    Raises TargetError when the machine is neither x86-64 with AVX2 and FMA nor aarch64, and for an unknown name.
    """
    if named := os.environ.get("SPARSEC_HOST"):
        if named not in NAMED:
            raise _unknown(named, list(NAMED))
        return replace(NAMED[named], name="cpu")
    machine, flags = platform.machine(), _host_flags()
    if machine == "x86_64" and {"avx2", "fma"} <= flags:
        wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"} <= flags
        if wide:
            later = (
                ("x86-avx512vnni", {"avx512_vnni"}),
                ("x86-avx512vbmi2", {"avx512_vnni", "avx512vbmi", "avx512_vbmi2"}),
            )
            name = next((name for name, needed in reversed(later) if needed <= flags), "x86-avx512")
            return replace(NAMED[name], name="cpu")
        return replace(NAMED["x86-avxvnni" if "avx_vnni" in flags else "x86-avx2"], name="cpu")
    if machine in ("aarch64", "arm64"):
        if "asimddp" not in flags:
            return replace(NAMED["arm-v8.0"], name="cpu")
        return replace(NAMED["arm-i8mm" if "i8mm" in flags else "arm"], name="cpu")
    raise TargetError(
        f"this machine ({machine}) is not a supported host: x86-64 with AVX2 and FMA, or aarch64, is needed; "
        f"name a target to cross-compile for: {', '.join(NAMED)}"
    )


def cuda_target(name: str) -> Target:
    """The target `cuda[:sm_NN][:bf16]`. Its host part, the C runtime, is for this machine's architecture, any processor.

    Raises TargetError for an architecture or a storage type that is not known, and on a machine that is neither x86-64 nor aarch64.
    """
    parts = name.split(":")[1:]
    arch = parts.pop(0) if parts and parts[0] not in _STORAGE else _DEFAULT_GPU
    suffix = parts.pop(0) if parts else ""
    if arch not in GPUS:
        raise _unknown(name, [f"cuda:{known}" for known in GPUS], f"cuda:{arch}")
    if parts or suffix not in _STORAGE or name.endswith(":"):
        raise TargetError(
            f"unknown target '{name}': after cuda:{arch} comes nothing, ':fp16' (the default) or ':bf16', "
            "the type of values between kernels"
        )
    machine = {"arm64": "aarch64"}.get(platform.machine(), platform.machine())
    if machine not in ("x86_64", "aarch64"):
        raise TargetError(
            f"target '{name}': the host part would be for this machine, {machine}; x86_64 or aarch64 is needed"
        )
    return Target(
        name=name,
        arch=machine,
        llvm_triple=f"{machine}-linux-gnu",
        zig_triple=f"{machine}-linux-gnu.2.17",  # no static C library: the driver is loaded while the program runs
        mcpu="x86-64" if machine == "x86_64" else "generic",
        mattr=(),
        vector_bits=32,
        vector_registers=64,
        gpu=arch,
        storage=_STORAGE[suffix],
    )


def _unknown(name: str, known: list[str], wanted: str = "") -> TargetError:
    near = difflib.get_close_matches(wanted or name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    return TargetError(
        f"unknown target '{name}'{hint} Known targets: {', '.join(known)}, or a triple such as aarch64-linux-gnu"
    )


def resolve_target(name: str) -> Target:
    """The target called `name`: `cpu`, a named target, `cuda:sm_90`, or a triple such as `aarch64-linux-gnu`.

    Raises TargetError for anything else, with the list of targets and the nearest name.
    """
    if name == "cpu":
        return host_target()
    if name == "cuda" or name.startswith("cuda:"):
        return cuda_target(name)
    if name in NAMED:
        return NAMED[name]
    parts = name.split("-")
    if len(parts) >= 3 and parts[0] in _TRIPLES and parts[1] == "linux":
        base = NAMED[_TRIPLES[parts[0]]]
        return replace(base, name=name, zig_triple=name)
    raise _unknown(name, list(available_targets()))
