"""Named targets and target triples -> the features code generation needs.

A target is a pure description: nothing here runs a compiler or inspects a tool chain. `cpu` alone looks at the
machine it runs on.
"""

from __future__ import annotations

import difflib
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
        return asdict(self)


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


NAMED: dict[str, Target] = {
    "x86-avx2": _x86("x86-avx2", "haswell", 256, 16, ("avx2", "fma")),
    "x86-avxvnni": _x86("x86-avxvnni", "haswell", 256, 16, ("avx2", "fma", "avxvnni"), ("+avxvnni",)),
    "x86-avx512": _x86("x86-avx512", "skylake-avx512", 512, 32, ("avx2", "fma", "avx512")),
    "x86-avx512vnni": _x86("x86-avx512vnni", "cascadelake", 512, 32, ("avx2", "fma", "avx512", "avx512vnni")),
    # Neoverse N1 is Cortex-A76 to a compiler; LLVM's schedule for the one spills less.
    "arm": _arm("arm", "neoverse-n1", ("+neon", "+dotprod"), ("neon", "dotprod")),
    # Server cores with i8mm have SVE in LLVM's eyes, Apple's lack it: so the last one without SVE, and i8mm.
    "arm-i8mm": _arm("arm-i8mm", "neoverse-n1", ("+neon", "+dotprod", "+i8mm"), ("neon", "dotprod", "i8mm")),
    "arm-v8.0": _arm("arm-v8.0", "cortex-a53", ("+neon",), ("neon",)),
}

_TRIPLES = {"x86_64": "x86-avx2", "aarch64": "arm-v8.0"}


def available_targets() -> dict[str, str]:
    """Name -> one line of description, for `sparsec targets` and for error messages."""
    lines = {"cpu": "this machine (as detected: the widest vectors it has)"}
    for name, target in NAMED.items():
        lines[name] = (
            f"{target.arch}, {target.vector_bits}-bit vectors, LLVM cpu {target.mcpu}, "
            f"features {'+'.join(target.features)}"
        )
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
    """The target of the machine this runs on.

    Raises TargetError when the machine is neither x86-64 with AVX2 and FMA nor aarch64.
    """
    machine, flags = platform.machine(), _host_flags()
    if machine == "x86_64" and {"avx2", "fma"} <= flags:
        wide = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512cd"} <= flags
        if wide:
            return replace(NAMED["x86-avx512vnni" if "avx512_vnni" in flags else "x86-avx512"], name="cpu")
        return replace(NAMED["x86-avxvnni" if "avx_vnni" in flags else "x86-avx2"], name="cpu")
    if machine in ("aarch64", "arm64"):
        if "asimddp" not in flags:
            return replace(NAMED["arm-v8.0"], name="cpu")
        return replace(NAMED["arm-i8mm" if "i8mm" in flags else "arm"], name="cpu")
    raise TargetError(
        f"this machine ({machine}) is not a supported host: x86-64 with AVX2 and FMA, or aarch64, is needed; "
        f"name a target to cross-compile for: {', '.join(NAMED)}"
    )


def resolve_target(name: str) -> Target:
    """The target called `name`: `cpu`, a named target, or a triple such as `aarch64-linux-gnu`.

    Raises TargetError for anything else, with the list of targets and the nearest name.
    """
    if name == "cpu":
        return host_target()
    if name in NAMED:
        return NAMED[name]
    parts = name.split("-")
    if len(parts) >= 3 and parts[0] in _TRIPLES and parts[1] == "linux":
        base = NAMED[_TRIPLES[parts[0]]]
        return replace(base, name=name, zig_triple=name)
    known = list(available_targets())
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else ""
    raise TargetError(
        f"unknown target '{name}'{hint or '.'} Known targets: {', '.join(known)}, or a triple such as aarch64-linux-gnu"
    )
