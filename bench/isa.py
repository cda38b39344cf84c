"""`--isa`: measuring as on a processor with fewer instructions than this one has, ours and all rivals alike.

What was chosen is in SPARSEC_HOST, which sparsec.target goes by, so processes that are started know it too. Ours then compiles for
that target. Rivals ask the processor when they are loaded: hide_cpuid.c, which the loader runs in their processes, answers.
"""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

NATIVE = "native"
HOSTS = {"avx2": "x86-avx2"}
"""Option -> target of sparsec. An instruction set that is not this machine's, and what of it hides the rest, below."""

_HIDING = Path(__file__).resolve().parent / "hide_cpuid.c"
_BETWEEN = _HIDING.with_name("hide_cpuinfo.c")
_FLAGS = ("-std=gnu11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared", "-fno-stack-protector")

# (leaf, subleaf, register) -> bits that processors with AVX2, FMA, F16C and BMI2 of the first generation have not
_BEHIND_AVX2 = {
    (0x7, "0", "ebx"): (16, 17, 21, 26, 27, 28, 30, 31),  # AVX-512 F, DQ, IFMA, PF, ER, CD, BW, VL
    (0x7, "0", "ecx"): (1, 6, 8, 9, 10, 11, 12, 14),  # VBMI, VBMI2, GFNI, VAES, VPCLMULQDQ, VNNI, BITALG, VPOPCNTDQ
    (0x7, "0", "edx"): (
        2,
        3,
        8,
        22,
        23,
        24,
        25,
    ),  # 4VNNIW, 4FMAPS, VP2INTERSECT, AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8
    (0x7, "1", "eax"): (4, 5, 21, 23),  # AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA
    (0x7, "1", "edx"): (4, 5, 8, 10, 19),  # AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10
    (0xD, "0", "eax"): (5, 6, 7, 17, 18),  # state of masks, of 512 bits, of 32 registers, of tiles
    **{
        (leaf, "*", register): tuple(range(32))
        for leaf in (0x1D, 0x1E, 0x24)
        for register in ("eax", "ebx", "ecx", "edx")
    },
}
_BEHIND_AVX2_WORDS = ("avx512", "avx_vnni", "avx_ifma", "avx_ne_convert", "avx10", "amx", "gfni", "vaes", "vpclmulqdq")
"""How flags in /proc/cpuinfo begin that are not there then."""
GLIBC = "glibc.cpu.hwcaps=" + ",".join(f"-AVX512{part}" for part in ("F", "VL", "BW", "CD", "DQ"))
"""GLIBC_TUNABLES: the loader itself asks before anybody can hide something, so functions such as memcpy have a switch."""


class HidingError(Exception):
    """Instructions cannot be hidden here; the message says why."""


def chosen() -> str:
    """ "native", or what stands behind --isa."""
    host = os.environ.get("SPARSEC_HOST")
    return next((name for name, target in HOSTS.items() if target == host), NATIVE)


def choose(name: str) -> None:
    """For this process and those that it starts. Ends the program on another architecture."""
    if name == NATIVE:
        os.environ.pop("SPARSEC_HOST", None)
    elif platform.machine() != "x86_64":
        raise SystemExit(f"--isa {name}: this machine is {platform.machine()}, not x86_64")
    else:
        os.environ["SPARSEC_HOST"] = HOSTS[name]


def title() -> str:
    """A line for above a table; empty for this machine as it is."""
    return (
        ""
        if chosen() == NATIVE
        else f"instruction set: {chosen()}; what this machine has beyond it is hidden from all\n\n"
    )


def program(place: Path, name: str) -> Path:
    """ggml's program for an instruction set: the compiler chooses there, not the processor."""
    return place / ("ggml_bench" if name == NATIVE else f"ggml_bench-{name}")


def hiding(python: Path, folder: Path) -> dict[str, str]:
    """Variables for a process of that Python in which cpuid knows AVX2 and not what came after; `folder` keeps library and table.

    Raises HidingError.
    """
    from bench import cpuid_table

    table = folder / "cpuid.txt"
    try:
        cpuid_table.update(table, python)
    except cpuid_table.TableError as error:
        raise HidingError(str(error)) from error
    return {
        "LD_AUDIT": str(library(folder)),
        "LD_PRELOAD": str(between(folder)),
        "SPARSEC_CPUID_MASK": mask(_BEHIND_AVX2),
        "SPARSEC_CPUID_TABLE": str(table),
        "SPARSEC_CPUINFO": str(_cpuinfo(folder)),
    }


def mask(bits: dict[tuple[int, str, str], tuple[int, ...]]) -> str:
    """As hide_cpuid.c reads it: (leaf, subleaf, register) -> bits that are answered 0."""
    texts = []
    for leaf, subleaf in dict.fromkeys((leaf, subleaf) for leaf, subleaf, _ in bits):
        clear = [sum(1 << bit for bit in bits.get((leaf, subleaf, r), ())) for r in ("eax", "ebx", "ecx", "edx")]
        texts.append(f"{leaf:x}.{subleaf}:{','.join(f'{word:x}' for word in clear)}")
    return ";".join(texts)


def _cpuinfo(folder: Path) -> Path:
    """/proc/cpuinfo without the flags that are hidden."""
    path, partial = folder / "cpuinfo", folder / f"{os.getpid()}-cpuinfo"
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    folder.mkdir(parents=True, exist_ok=True)
    partial.write_text("".join(f"{without(line) if line.startswith('flags') else line}\n" for line in lines))
    partial.replace(path)
    return path


def without(flags: str) -> str:
    """A line of flags of /proc/cpuinfo without those behind AVX2."""
    name, _, words = flags.partition(": ")
    return f"{name}: {' '.join(word for word in words.split() if not word.startswith(_BEHIND_AVX2_WORDS))}"


def library(folder: Path) -> Path:
    """hide_cpuid.c, compiled once into `folder`. Raises HidingError."""
    return _compiled(_HIDING, folder)


def between(folder: Path) -> Path:
    """hide_cpuinfo.c, likewise. Raises HidingError."""
    return _compiled(_BETWEEN, folder)


def _compiled(source: Path, folder: Path) -> Path:
    path = folder / f"{source.stem}-{hashlib.sha256(source.read_bytes()).hexdigest()[:12]}.so"
    if not path.exists():
        if not (cc := shutil.which("cc")):
            raise HidingError("no C compiler (cc) on the PATH")
        folder.mkdir(parents=True, exist_ok=True)
        partial = folder / f"{os.getpid()}-{path.name}"
        command = [cc, *_FLAGS, "-o", str(partial), str(source), "-ldl", "-lrt"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise HidingError(f"{source.name}: {done.stderr.strip()[-500:]}")
        partial.replace(path)
    return path
