"""Runs generated GPU kernels on the CPU: CUDA C, compiled as C++ by zig against headers of ours, every thread of a block a fiber.

`simulate` runs a kernel three times, with threads and blocks in three orders, and the results must be the same bytes. What it finds:
barriers that are missing or that some threads never reach, shared memory that is read before it is written (it holds NaN), accesses
outside of any array, vector accesses that are not aligned, copies (cp.async) that are read before they were waited for.
"""

from __future__ import annotations

import ctypes
import mmap
import re
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from sparsec.cache import digest, entry, source_digest, used, writing
from sparsec.codegen import zig
from sparsec.codegen.cuda.launch import Launch
from tests.cuda.compare import differences
from tests.cuda.device import real_gpu
from tests.cuda.simulator.device import plain_functions

HERE = Path(__file__).parent
FLAGS = (
    "-std=c++17", "-O1", "-fPIC", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics", "-fno-strict-aliasing",
    "-ffp-contract=off", "-Wno-everything", "-ftrivial-auto-var-init=pattern", "-fno-sanitize=all",
    "-fsanitize=alignment,bounds,integer-divide-by-zero", "-fsanitize-trap=all",
)  # fmt: skip
GUARD = 16
"""Alignment of arrays in `simulate`; the bytes between an array's end and the page that traps hold NaN and are checked after the run."""
_OUTSIDE = 0xFF

Array = np.ndarray[Any, Any]
OBSERVERS: list[Callable[[str, str, Launch, Sequence[Array], Sequence[Array], int], None]] = []
"""Told of every simulated kernel: CUDA C, name, launch, arguments before and after, bytes they lie off (tests/cuda/record.py)."""


class SimulationError(AssertionError):
    """A kernel did something wrong: the message says what and where."""


class _Launch(ctypes.Structure):
    _fields_ = (
        ("grid", ctypes.c_uint32 * 3),
        ("block", ctypes.c_uint32 * 3),
        ("shared_bytes", ctypes.c_uint32),
        ("order", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        ("fault", ctypes.c_void_p),
        ("message", ctypes.c_char * 1000),
    )


ORDERS = {"ascending": 0, "descending": 1, "shuffled": 2}


def simulate(
    source: str,
    name: str,
    launch: Launch,
    arrays: Sequence[Array],
    *,
    orders: Sequence[str] = tuple(ORDERS),
    align: int = GUARD,
) -> list[Array]:
    """Run the kernel `name` of the CUDA C `source` on copies of `arrays` (its arguments, in order); returns the copies after the run.

    Where there is a GPU the kernel runs there too, and must compute the same but for rounding.

    orders: of threads and blocks; where there are several, all must give the same bytes. align: of the arrays, in bytes.
    Raises SimulationError.
    """
    library = compile_kernel(source, name)
    count = library.sim_argument_count()
    if count != len(arrays):
        raise SimulationError(f"{name} takes {count} arguments, {len(arrays)} given")
    first: list[Array] = []
    for order in orders:
        after = _run(library, name, launch, arrays, order, align)
        for index, (one, other) in enumerate(zip(first, after, strict=False)):
            if one.tobytes() != other.tobytes():
                differ = np.flatnonzero(
                    (_bytes(one).reshape(one.size, -1) != _bytes(other).reshape(one.size, -1)).any(1)
                )
                at = int(differ[0])
                raise SimulationError(
                    f"{name}: results depend on the order of threads: argument {index} differs in {differ.size} elements, first in "
                    f"element {at}: {one.flat[at]} {orders[0]}, {other.flat[at]} {order}"
                )
        first = first or after
    shift = align % GUARD
    for told in OBSERVERS:
        told(source, name, launch, arrays, first, shift)
    real = real_gpu()
    if real is not None and (differ := differences(first, real.run(source, name, launch, arrays, shift))):
        raise SimulationError(f"{name}: {differ}")
    return first


def compile_kernel(source: str, name: str) -> ctypes.CDLL:
    """The kernel as a shared library with `sim_run(pointers, launch)`; cached by content."""
    library = ctypes.CDLL(str(kernel_library(source, name)))
    library.sim_run.argtypes = [ctypes.POINTER(ctypes.c_void_p), ctypes.POINTER(_Launch)]
    return library


def kernel_library(source: str, name: str) -> Path:
    """Path of the kernel compiled for this machine."""
    text = translate(source, name)
    path = entry("simulated", f"{digest(text, _headers(), *FLAGS)}.so")
    if not used(path):
        with writing(path) as made:
            code = made.with_suffix(".cpp")
            code.write_text(text)
            command = [*zig.command("cc"), *FLAGS, f"-I{HERE}", "-shared", "-o", str(made), str(code), "-lm"]
            done = zig.run(command)
            code.unlink()
            if done.returncode:
                raise SimulationError(f"{name} does not compile as C++:\n{done.stderr[:4000]}")
    return path


@cache
def _headers() -> str:
    return source_digest(*sorted(HERE.glob("*.h")))


def translate(source: str, name: str) -> str:
    """C++ of the kernel: our headers, device.cuh's functions without assembly, the kernel itself with its shared arrays rewritten."""
    start = source.find('extern "C" __global__')
    if start < 0:
        raise SimulationError(f'{name}: the source has no extern "C" __global__')
    body = source[start:]
    alignment = r"(?:(?:alignas|__align__)\s*\(\s*\d+\s*\)\s*)?"
    body = re.sub(
        rf"extern\s+__shared__\s+{alignment}([\w ]+?)\s*(\w+)\s*\[\s*\]\s*;", r"SIM_SHARED_DYNAMIC(\1, \2);", body
    )
    declared = re.findall(rf"__shared__\s+{alignment}([\w ]+?)\s*\w+\s*\[([^\]]+)\]\s*;", body)
    body = re.sub(rf"__shared__\s+{alignment}([\w ]+?)\s*(\w+)\s*\[([^\]]+)\]\s*;", r"SIM_SHARED(\1, \2, \3);", body)
    if "__shared__" in body:
        line = next(line for line in body.splitlines() if "__shared__" in line)
        raise SimulationError(f"{name}: the simulator does not know this form of shared memory: {line.strip()}")
    return "\n".join(
        [
            '#include "helpers.h"',
            plain_functions(),
            "#line 1",
            body,
            f"static void sim_call(void **args) {{ sim::call_kernel({name}, args); }}",
            'extern "C" int sim_run(void **args, sim_launch *how) { return sim::run(sim_call, args, how); }',
            f'extern "C" int sim_argument_count() {{ return sim::count_arguments({name}); }}',
            *_shared_bytes(declared),
            "",
        ]
    )


def _shared_bytes(declared: Sequence[tuple[str, str]]) -> list[str]:
    """A function that says how many bytes the shared arrays have, (type, count) each; none where there are none."""
    total = " + ".join(f"sizeof({kind}) * ({count})" for kind, count in declared)
    return [f'extern "C" int sim_shared_bytes() {{ return {total}; }}'] if declared else []


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


class _Guarded:
    """Copies of arrays in memory of their own: each lies at the start or the end of its pages, a page that traps in front and behind."""

    def __init__(self, arrays: Sequence[Array], align: int, at_start: bool) -> None:
        self.maps: list[mmap.mmap] = []
        self.places: list[tuple[int, int, int, int]] = []  # first byte of pages, their bytes, of the array, its bytes
        protect = ctypes.CDLL(None).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        page = mmap.PAGESIZE
        for array in arrays:
            room = -(-(array.nbytes + align) // page) * page
            memory = mmap.mmap(-1, room + 2 * page)
            base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
            start = base + page + (0 if at_start else (room - array.nbytes) // align * align)
            ctypes.memset(base + page, _OUTSIDE, room)
            ctypes.memmove(start, np.ascontiguousarray(array).ctypes.data, array.nbytes)
            protect(base, page, 0)
            protect(base + page + room, page, 0)
            self.maps.append(memory)
            self.places.append((base + page, room, start, array.nbytes))

    def contents(self, arrays: Sequence[Array]) -> list[Array]:
        """The arrays now."""
        return [
            np.frombuffer(ctypes.string_at(start, size), array.dtype).reshape(array.shape).copy()
            for array, (_, _, start, size) in zip(arrays, self.places, strict=True)
        ]

    def strays(self) -> str:
        """What was written just outside of an array; "" if nothing."""
        for index, (base, room, start, size) in enumerate(self.places):
            around = np.frombuffer(ctypes.string_at(base, room), np.uint8)
            wrong = np.flatnonzero(around != _OUTSIDE) + base - start
            wrong = wrong[(wrong < 0) | (wrong >= size)]
            if wrong.size:
                return f"argument {index} of {size} bytes was written {wrong[0]} bytes from its start"
        return ""

    def near(self, address: int) -> str:
        """Which argument's guard pages an address is in; "" if none's."""
        for index, (base, room, start, size) in enumerate(self.places):
            if base - mmap.PAGESIZE <= address < base + room + mmap.PAGESIZE:
                return f"; argument {index} of {size} bytes was touched {address - start} bytes from its start"
        return ""


def _run(
    library: ctypes.CDLL, name: str, launch: Launch, arrays: Sequence[Array], order: str, align: int
) -> list[Array]:
    guarded = _Guarded(arrays, align, at_start=order == "descending")
    how = _Launch(
        (ctypes.c_uint32 * 3)(*launch.grid), (ctypes.c_uint32 * 3)(*launch.block), launch.shared_bytes, ORDERS[order], 1
    )
    pointers = (ctypes.c_void_p * max(1, len(arrays)))(*(start for _, _, start, _ in guarded.places))
    if library.sim_run(pointers, ctypes.byref(how)):
        where = guarded.near(how.fault) if how.fault else ""
        raise SimulationError(f"{name}, {order}: {how.message.decode()}{where}")
    if strays := guarded.strays():
        raise SimulationError(f"{name}, {order}: {strays}")
    return guarded.contents(arrays)
