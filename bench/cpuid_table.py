"""Where ELF files have cpuid instructions: the table that hide_cpuid.c goes by, kept in the cache folder.

The two bytes of cpuid also turn up inside of other instructions, so objdump decides: it disassembles from several places before
each, and decoding falls into step within a few instructions wherever it began.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from pathlib import Path

CPUID = b"\x0f\xa2"
_BACK, _STARTS = 64, 16
"""Disassembly begins `_STARTS` times, from so many bytes before the place on."""
_REST = b"\x90" * 16
"""Behind the place: whatever is decoded there ends before the next window."""
_PROGRAM, _EXECUTABLE = 1, 4
"""Type and flag of a section."""

Key = tuple[str, int, int]
"""Path, bytes and time of change in nanoseconds: an ELF file in one version."""


class TableError(Exception):
    """The table cannot be made; the message says what is missing."""


def update(table: Path, python: Path) -> None:
    """Add what a Python program may load, and is not in the table in this version, to it. Raises TableError."""
    known = _read(table)
    files = {key: Path(key[0]) for key in map(_key, sorted(set(_loadable(python))))}
    missing = {key: path for key, path in files.items() if key not in known}
    if not missing:
        return
    print(f"looking for cpuid in {len(missing)} files ...", file=sys.stderr, flush=True)
    known |= {key: cpuid_addresses(path.read_bytes()) for key, path in missing.items()}
    lines = [
        f"{path}\t{size}\t{time}\t{' '.join(f'{a:x}' for a in found)}" for (path, size, time), found in known.items()
    ]
    partial = table.with_name(f"{os.getpid()}-{table.name}")
    table.parent.mkdir(parents=True, exist_ok=True)
    partial.write_text("\n".join(["path, bytes, time of change, addresses of cpuid", *lines, ""]))
    partial.replace(table)


def _key(path: Path) -> Key:
    status = path.stat()
    return str(path), status.st_size, status.st_mtime_ns


def _read(table: Path) -> dict[Key, list[int]]:
    if not table.is_file():
        return {}
    rows = (line.split("\t") for line in table.read_text().splitlines()[1:])
    return {(path, int(size), int(time)): [int(a, 16) for a in found.split()] for path, size, time, found in rows}


# --- which files ---


@cache
def _loadable(python: Path) -> tuple[Path, ...]:
    """The ELF files of an environment, of the Python it was made of, of the folders of the C and C++ libraries, and what the loader
    finds by name elsewhere."""
    packages = python.parent.parent
    binary = python.resolve()
    base = binary.parent.parent / "lib"
    libraries = {
        Path(line.split()[-1]).parent for line in Path("/proc/self/maps").read_text().splitlines() if "libc.so" in line
    }
    loader = Path("/lib64/ld-linux-x86-64.so.2")
    found = [binary, loader, *base.glob("lib*.so*"), *base.glob("python*/lib-dynload/*.so")]
    for place in libraries:
        found += place.glob("*.so*")
    found += _known_to_loader()
    for folder, _, names in os.walk(packages):
        found += (Path(folder) / name for name in names if _may_be_elf(Path(folder) / name))
    return tuple({path.resolve() for path in found if path.is_file() and _is_elf(path)})


def _known_to_loader() -> list[Path]:
    """The libraries in the loader's cache: a rival may ask for one of them while it runs (LiteRT for CUDA's)."""
    try:
        listed = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=False).stdout
    except FileNotFoundError:
        return []
    return [Path(path) for path in re.findall(r"x86-64.* => (\S+)$", listed, re.M)]


def _may_be_elf(path: Path) -> bool:
    return ".so" in path.name or path.suffix == ".bin" or (path.suffix == "" and os.access(path, os.X_OK))


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(5) == b"\x7fELF\x02"  # 64 bits


# --- which places ---


def cpuid_addresses(elf: bytes) -> list[int]:
    """Virtual addresses of the cpuid instructions in the executable sections of an ELF file. Raises TableError."""
    places = [
        (at, start, at - start + address)
        for start, end, address in _sections(elf)
        for at in _occurrences(elf, start, end)
    ]
    real = _decoded([_windows(elf, at, start) for at, start, _ in places])
    return [address for (_, _, address), votes in zip(places, real, strict=True) if 2 * votes > _STARTS]


def _sections(elf: bytes) -> Iterator[tuple[int, int, int]]:
    """(file offset, end, virtual address) of the executable ones. Segments would have constants and tables of symbols too."""
    (table,) = struct.unpack_from("<Q", elf, 40)
    size, count = struct.unpack_from("<HH", elf, 58)
    for i in range(count):
        kind, flags, address, offset, length = struct.unpack_from("<IQQQQ", elf, table + i * size + 4)
        if kind == _PROGRAM and flags & _EXECUTABLE:
            yield offset, offset + length, address


def _occurrences(data: bytes, start: int, end: int) -> Iterator[int]:
    at = data.find(CPUID, start, end)
    while at >= 0:
        yield at
        at = data.find(CPUID, at + 1, end)


def _windows(elf: bytes, at: int, start: int) -> Sequence[bytes]:
    """The bytes from each start up to the end of the cpuid at `at`."""
    return [elf[max(start, at - _BACK + i) : at + len(CPUID)] for i in range(_STARTS)]


def _decoded(places: Iterable[Sequence[bytes]]) -> list[int]:
    """For each place, in how many windows an instruction cpuid is decoded at the end."""
    code = bytearray()
    ends: list[list[int]] = []
    for windows in places:
        ends.append([])
        for window in windows:
            code += window
            ends[-1].append(len(code) - len(CPUID))
            code += _REST
    if not ends:
        return []
    found = {
        int(match[1], 16) for match in re.finditer(r"^\s*([0-9a-f]+):\s.*\scpuid\b", _disassembled(bytes(code)), re.M)
    }
    return [sum(end in found for end in of_place) for of_place in ends]


def _disassembled(code: bytes) -> str:
    with tempfile.NamedTemporaryFile(prefix="sparsec-bench-") as file:
        file.write(code)
        file.flush()
        command = ["objdump", "-D", "-b", "binary", "-m", "i386:x86-64", file.name]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except FileNotFoundError:
            raise TableError("no objdump (binutils) on the PATH") from None
    if done.returncode:
        raise TableError(f"objdump failed: {done.stderr.strip()[-300:]}")
    return done.stdout
