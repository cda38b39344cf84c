"""What this machine can do, measured once by machine.c and kept in the cache: the roof that kernels are held against.

Rates are for one thread and for all. They are what the cost model (cost.py) and `python -m bench roof` go by.
"""

from __future__ import annotations

import ctypes
import json
import os
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.cache import digest, entry, source_digest, used, writing
from sparsec.codegen.toolchain import Toolchain
from sparsec.target import Target, host_target

__all__ = [
    "Level",
    "Machine",
    "Rate",
    "core_rates",
    "cpu_count",
    "cpu_name",
    "machine_key",
    "measure",
    "nominal",
    "this_machine",
]

_SECONDS = 0.03
_ROUNDS = 5
_EXPORTS = ("spc_machine_fma", "spc_machine_int8", "spc_machine_read")
_DEFAULT_CACHES = (("L1", 32 << 10), ("L2", 1 << 20), ("L3", 16 << 20))
_LARGEST_BUFFER = 512 << 20


@dataclass(frozen=True)
class Rate:
    """Units a second: one thread alone, and all threads together."""

    one: float
    all: float

    def of(self, threads: int, most: int) -> float:
        """Of `threads` of `most`: linear between the two."""
        if most <= 1 or threads <= 1:
            return self.one
        return self.one + (self.all - self.one) * (min(threads, most) - 1) / (most - 1)


@dataclass(frozen=True)
class Level:
    """One level of the memory: its name, its size in bytes (0: main memory), bytes read a second."""

    name: str
    size: int
    read: Rate


@dataclass(frozen=True)
class Machine:
    """A machine's rates: memory levels from the nearest on, fp32 operations and int8 operations a second."""

    cpu: str
    threads: int
    vector_bits: int
    levels: tuple[Level, ...]
    fma: Rate
    int8: Rate

    def to_json(self) -> dict[str, Any]:
        """JSON-able; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Machine:
        """Inverse of `to_json`; raises KeyError or TypeError for anything else."""
        levels = tuple(Level(lv["name"], lv["size"], Rate(**lv["read"])) for lv in data["levels"])
        return cls(data["cpu"], data["threads"], data["vector_bits"], levels, Rate(**data["fma"]), Rate(**data["int8"]))

    def read_rate(self, nbytes: float, threads: int = 1) -> float:
        """Bytes a second of reading a working set of `nbytes` again and again; caches of one core add up."""
        for level in self.levels:
            private = threads if level.name in ("L1", "L2") else 1
            if level.size == 0 or nbytes <= level.size * private:
                return level.read.of(threads, self.threads)
        return self.levels[-1].read.of(threads, self.threads)


def cpu_count() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def cpu_name() -> str:
    """The processor as the system calls it."""
    with open("/proc/cpuinfo", encoding="utf-8") as file:
        pairs = [line.partition(":") for line in file]
    facts = {name.strip(): value.strip() for name, _, value in pairs}
    return facts.get("model name") or " ".join(facts.get(k, "?") for k in ("CPU implementer", "CPU part"))


def cache_sizes() -> tuple[tuple[str, int], ...]:
    """(name, bytes) of the data caches of the first core, from the system; typical sizes where it does not tell."""
    found: dict[str, int] = {}
    for folder in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        try:
            kind, level, size = ((folder / name).read_text().strip() for name in ("type", "level", "size"))
        except OSError:
            continue
        if kind in ("Data", "Unified") and size.endswith("K"):
            found[f"L{level}"] = int(size[:-1]) << 10
    return tuple(found.items()) or _DEFAULT_CACHES


def this_machine(*, again: bool = False) -> Machine:
    """The rates of this machine, measured at the first call (seconds), or `again`, and then read from the cache.

    Raises TargetError on a machine sparsec makes no code for, ToolchainError.
    """
    sources = source_digest(Path(__file__), Path(__file__).with_suffix(".c"))
    path = entry("machines", f"{digest(machine_key(), sources)}.json")
    if not again and used(path):
        try:
            return Machine.from_json(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, KeyError, TypeError):
            pass  # damaged: measured again
    machine = measure()
    with writing(path) as made:
        made.write_text(json.dumps(machine.to_json(), sort_keys=True), encoding="utf-8")
    return machine


def machine_key() -> str:
    """What makes measurements of one machine wrong for another."""
    caches = "".join(f"{name}{size}" for name, size in cache_sizes())
    return digest(cpu_name(), str(cpu_count()), caches, *host_target().features)


def measure(seconds: float = _SECONDS, rounds: int = _ROUNDS) -> Machine:
    """Measure this machine: the best of `rounds` runs of `seconds` each, since what disturbs can only slow down."""
    target, threads = host_target(), cpu_count()
    library = _library(target)
    wide, dot = int(target.vector_bits == 512), int(target.vnni or "dotprod" in target.features)
    matrix = int("i8mm" in target.features)

    def best(work: Callable[[int], float]) -> Rate:
        one = max(work(0) for _ in range(rounds))
        if threads == 1:
            return Rate(one, one)
        return Rate(one, max(one, *(sum(_at_once(work, threads)) for _ in range(rounds))))

    caches = cache_sizes()
    levels, before = [], 0
    for name, size in caches:
        # Each thread reads a buffer of its own: half of its cache, or its part of half of the last one, which all share (with
        # others of the machine too, so four times the cache before it is enough).
        shared = name == f"L{len(caches)}"
        nbytes = size // 2 if not shared or not before else min(size // 2 // threads, 4 * before)
        before = size
        nbytes = max(512, nbytes // 512 * 512)
        levels.append(Level(name, size, best(_reader(library, wide, nbytes, threads, seconds, True))))
    memory = min(_LARGEST_BUFFER, max(64 << 20, 4 * max(size for _, size in caches)))
    levels.append(Level("memory", 0, best(_reader(library, wide, memory, threads, seconds, False))))
    return Machine(
        cpu_name(),
        threads,
        target.vector_bits,
        tuple(levels),
        best(lambda _: float(library.spc_machine_fma(wide, seconds))),
        best(lambda _: float(library.spc_machine_int8(wide or matrix, dot, seconds))),
    )


def core_rates(cores: Sequence[int], seconds: float) -> list[float]:
    """fp32 operations a second of one thread on each of these cores, all at once (Linux, where a thread can choose its core).

    Raises OSError for a core this process may not use, ToolchainError.
    """
    target = host_target()
    library, wide = _library(target), int(target.vector_bits == 512)

    def work(thread: int) -> float:
        os.sched_setaffinity(0, {cores[thread]})  # of this thread only
        return float(library.spc_machine_fma(wide, seconds))

    return _at_once(work, len(cores))


def nominal(target: Target) -> Machine:
    """Rates of a typical core for a target that is not this machine: only their ratios mean anything."""
    clock = 2.5e9
    fma = clock * 2 * 2 * target.lanes
    int8 = fma * (8 if "i8mm" in target.features else 4 if target.vnni or "dotprod" in target.features else 4 / 3)
    widths = (("L1", 32 << 10, 2.0), ("L2", 1 << 20, 0.8), ("L3", 16 << 20, 0.25), ("memory", 0, 0.15))
    levels = tuple(
        Level(name, size, Rate(clock * target.vector_bits / 8 * share, 4 * clock * target.vector_bits / 8 * share))
        for name, size, share in widths
    )
    return Machine(f"typical {target.arch}", 4, target.vector_bits, levels, Rate(fma, 4 * fma), Rate(int8, 4 * int8))


def _reader(
    library: ctypes.CDLL, wide: int, nbytes: int, threads: int, seconds: float, private: bool
) -> Callable[[int], float]:
    """Thread t reads a buffer of its own when caches are private, else its share of one buffer of `nbytes`."""
    buffer = np.ones(nbytes * threads if private else nbytes, np.uint8)
    share = nbytes if private else max(512, nbytes // threads // 512 * 512)

    def work(thread: int) -> float:
        whole = private or not threading.current_thread().name.startswith("sparsec-machine")
        size, start = (nbytes, nbytes * thread if private else 0) if whole else (share, share * thread)
        pointer = ctypes.c_void_p(buffer.ctypes.data + start)
        return float(library.spc_machine_read(wide, pointer, ctypes.c_int64(size), ctypes.c_double(seconds)))

    return work


def _at_once(work: Callable[[int], float], threads: int) -> list[float]:
    """The rates of `threads` threads that start together; ctypes lets go of the interpreter's lock."""
    barrier = threading.Barrier(threads)

    def run(index: int) -> float:
        barrier.wait()
        return work(index)

    with ThreadPoolExecutor(threads, thread_name_prefix="sparsec-machine") as pool:
        return list(pool.map(run, range(threads)))


@cache
def _library(target: Target) -> ctypes.CDLL:
    tools = Toolchain(target)
    with tempfile.TemporaryDirectory(prefix="sparsec-machine-") as scratch:
        made = Path(scratch)
        tools.compile(Path(__file__).with_suffix(".c"), made / "machine.o")
        tools.shared([made / "machine.o"], made / "machine.so", _EXPORTS, "machine.so")
        library = ctypes.CDLL(str(made / "machine.so"))
    for name in _EXPORTS:
        getattr(library, name).restype = ctypes.c_double
    library.spc_machine_fma.argtypes = [ctypes.c_int, ctypes.c_double]
    library.spc_machine_int8.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_double]
    return library
