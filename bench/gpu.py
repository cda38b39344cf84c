"""`python -m bench gpu`: products on an NVIDIA GPU beside cuBLAS, torch's int4 and 2:4, bitsandbytes and Triton, in one process.

Every candidate's calls are captured in one CUDA graph that goes through copies of the weight, together several times the level-2 cache, so
that weights come from memory; CUDA events around replays give times, and the median counts. Rates are shown as shares of
the bandwidth of a copy and of torch.matmul's rate on large squares, measured first.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.gpu_products import GpuProduct, product, random_weight
from bench.gpu_rivals import RIVALS
from bench.output import markdown, write_json
from sparsec.errors import SparsecError
from sparsec.formats.encoded import EncodedWeight, decode
from sparsec.target import resolve_target

HEADERS = ("product", "candidate", "us", "MB", "of copy", "of matmul", "note")
_REPLAYS, _COLD_BYTES = 30, 512 << 20


@dataclass(frozen=True)
class Job:
    """A product and the schemes of ours that are timed on it."""

    m: int
    n: int
    k: int
    schemes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.m} x {self.n}x{self.k}"


_SPARSE = "s16x1@50-cb4-g128"
_SMALL = ("cb4-g128", "int4-g128", _SPARSE, "vq2d4", "cb2", "ternary")
JOBS = (
    Job(1, 4096, 4096, _SMALL),
    Job(1, 11008, 4096, _SMALL),
    Job(1, 8192, 28672, _SMALL),
    Job(16, 8192, 28672, ("cb4-g128",)),
    Job(64, 8192, 28672, ("cb4-g128",)),
    Job(4096, 4096, 4096, ("fp16", "cb4-g128", "s2:4-fp16")),
)


@dataclass(frozen=True)
class Bar:
    """A ratio of times that must be reached: rivals' (the best of them) over ours."""

    job: Job
    ours: str
    rivals: tuple[str, ...]
    least: float


_LARGE = JOBS[1:3]
_FOUR_BITS = ("torch int4", "bitsandbytes nf4", "triton int4")
BARS = (
    *(Bar(job, "cb4-g128", ("torch fp16",), 3.0) for job in _LARGE),
    *(Bar(job, "cb4-g128", _FOUR_BITS, 1.2) for job in JOBS[:3]),
    *(Bar(job, _SPARSE, ("cb4-g128",), 1.6) for job in JOBS[:3]),
    *(Bar(job, _SPARSE, ("cb2",), 1.0) for job in JOBS[:3]),
    *(Bar(job, scheme, ("cb4-g128",), 1.5) for job in _LARGE for scheme in ("vq2d4", "cb2", "ternary")),
    Bar(JOBS[3], "cb4-g128", ("torch fp16",), 2.5),
    Bar(JOBS[4], "cb4-g128", ("torch fp16",), 1.3),
    Bar(JOBS[5], "cb4-g128", ("torch fp16",), 0.85),
    Bar(JOBS[5], "s2:4-fp16", ("torch fp16",), 1.3),
)


@dataclass(frozen=True)
class Row:
    """A measured candidate; seconds is None where it could not run, and `note` says why."""

    job: Job
    candidate: str
    seconds: float | None
    stored_bytes: int = 0
    note: str = ""


@dataclass(frozen=True)
class Roofs:
    """Bytes a second of a copy (read and written), operations a second of a large fp16 product."""

    copy: float
    matmul: float


def run(json_path: Path | None, only: Sequence[str] = ()) -> int:
    """Measure, print the table and the bars; 1 without a GPU, or if one of our kernels is wrong."""
    if why := why_not():
        print(why)
        return 1
    import torch

    device = torch.cuda.get_device_name()
    roofs = _roofs()
    rows = [row for job in JOBS if not only or str(job) in only for row in _measure(job)]
    print(f"{device}: copy {roofs.copy / 1e9:.0f} GB/s, matmul {roofs.matmul / 1e12:.0f} TFLOP/s\n")
    print(markdown(HEADERS, [cells(row, roofs) for row in rows], left=2))
    print()
    print(markdown(("product", "ours", "over", "ratio", "bar"), judged(rows), left=3))
    kept = [
        {"product": str(r.job), "candidate": r.candidate, "seconds": r.seconds, "bytes": r.stored_bytes, "note": r.note}
        for r in rows
    ]
    write_json(json_path, {"gpu": {"device": device, "copy": roofs.copy, "matmul": roofs.matmul, "rows": kept}})
    return int(any(row.note == _WRONG for row in rows))


_WRONG = "wrong result"


def why_not() -> str:
    """Why nothing can be measured here, "" if it can."""
    try:
        import torch
    except ImportError:
        return "bench gpu needs torch with CUDA, which is not installed here"
    if not torch.cuda.is_available():
        return "bench gpu needs an NVIDIA GPU that torch can use; there is none here"
    return ""


def cells(row: Row, roofs: Roofs) -> list[str]:
    """A line of the table."""
    if row.seconds is None:
        return [str(row.job), row.candidate, "-", "-", "-", "-", row.note]
    moved = row.stored_bytes + 2 * row.job.m * (row.job.n + row.job.k)
    operations = 2 * row.job.m * row.job.n * row.job.k
    shares = (moved / row.seconds / roofs.copy, operations / row.seconds / roofs.matmul)
    numbers = (
        f"{1e6 * row.seconds:.1f}",
        f"{row.stored_bytes / 1e6:.1f}",
        *(f"{100 * share:.0f} %" for share in shares),
    )
    return [str(row.job), row.candidate, *numbers, row.note]


def judged(rows: Sequence[Row]) -> list[list[str]]:
    """A line for each bar that was measured; a missed one is marked."""
    seconds = {(row.job, row.candidate): row.seconds for row in rows if row.seconds is not None}
    lines = []
    for bar in BARS:
        ours = seconds.get((bar.job, bar.ours))
        rivals = {name: seconds[bar.job, name] for name in bar.rivals if (bar.job, name) in seconds}
        if ours is None or not rivals:
            continue
        best = min(rivals, key=lambda name: rivals[name])
        ratio = rivals[best] / ours
        mark = "" if ratio >= bar.least else " missed"
        lines.append([str(bar.job), bar.ours, best, f"{ratio:.2f}", f"{bar.least:g}{mark}"])
    return lines


def copies_of(nbytes: int) -> int:
    """How many copies of a weight go round, at least two."""
    return max(2, min(64, -(-_COLD_BYTES // max(1, nbytes))))


# --- on the GPU ---------------------------------------------------------------------------------------------------------


def _roofs() -> Roofs:
    import torch

    source = torch.empty(1 << 30, device="cuda", dtype=torch.uint8)
    dest = torch.empty_like(source)
    copied = _seconds(lambda _: dest.copy_(source), 1)
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.float16) for _ in range(2))
    return Roofs(2 * source.nbytes / copied, 2 * 8192**3 / _seconds(lambda _: a @ b, 1))


def _seconds(call: Callable[[int], Any], copies: int) -> float:
    """Median time of one call, over replays of a graph that calls with every copy in turn."""
    import torch

    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for i in range(copies):
            call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for i in range(copies):
            call(i)
    times = []
    for _ in range(_REPLAYS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / 1e3 / copies)
    return median(times)


def _measure(job: Job) -> list[Row]:
    rows = [_ours(job, scheme) for scheme in job.schemes]
    for name, make in RIVALS.items():
        try:
            size = make(job.m, job.n, job.k, 1)[0]
            copies = copies_of(size)
            rows.append(Row(job, name, _seconds(make(job.m, job.n, job.k, copies)[1], copies), size))
        except ImportError as missing:
            rows.append(Row(job, name, None, note=f"not installed: {missing.name}"))
        except (RuntimeError, NotImplementedError) as error:
            rows.append(Row(job, name, None, note=str(error).splitlines()[0][:80]))
    return rows


def _ours(job: Job, scheme: str) -> Row:
    import torch

    major, minor = torch.cuda.get_device_capability()
    weight = random_weight(scheme, job.n, job.k, np.random.default_rng(0))
    try:
        made = product(weight, job.m, resolve_target(f"cuda:sm_{major}{minor}"))
    except SparsecError as error:
        return Row(job, scheme, None, note=str(error).splitlines()[0][:80])
    loaded = _Loaded(made, copies_of(made.stored_bytes))
    loaded.call(0)
    wanted = (
        loaded.inputs.float()
        @ torch.from_numpy(decode(weight) if isinstance(weight, EncodedWeight) else weight).cuda().T
    )
    off = float((loaded.result().float() - wanted).abs().max() / wanted.abs().max())
    note = f"{len(made.calls)} kernels" if len(made.calls) > 1 else ""
    return Row(job, scheme, _seconds(loaded.call, loaded.copies), made.stored_bytes, note if off < 0.01 else _WRONG)


class _Loaded:
    """A product on the GPU, started through the driver on torch's stream."""

    def __init__(self, made: GpuProduct, copies: int) -> None:
        import torch

        self.made, self.copies = made, copies
        self.driver = ctypes.CDLL("libcuda.so.1")
        self.scratch = {name: torch.zeros(size, device="cuda", dtype=torch.uint8) for name, size in made.sizes.items()}
        a = self.scratch[made.a].view(torch.float16)
        a.copy_(torch.randn(a.numel(), device="cuda"))
        self.weights = [
            {name: torch.from_numpy(array.reshape(-1).view(np.uint8)).cuda() for name, array in made.weights.items()}
            for _ in range(copies)
        ]
        self.functions = []
        for call in made.calls:
            module, function = ctypes.c_void_p(), ctypes.c_void_p()
            self._check(self.driver.cuModuleLoadData(ctypes.byref(module), call.image.cubin))
            self._check(self.driver.cuModuleGetFunction(ctypes.byref(function), module, call.symbol.encode()))
            self._check(self.driver.cuFuncSetAttribute(function, 8, call.launch.shared_bytes))
            self.functions.append(function)

    def _check(self, code: int) -> None:
        if code:
            raise RuntimeError(f"the CUDA driver answered {code}")

    @property
    def inputs(self) -> Any:
        """A, fp16 [M, K]."""
        import torch

        return self.scratch[self.made.a].view(torch.float16).view(self.made.m, -1)

    def result(self) -> Any:
        """C, fp16 [M, N]."""
        import torch

        torch.cuda.synchronize()
        return self.scratch[self.made.c].view(torch.float16).view(self.made.m, -1)

    def call(self, copy: int) -> None:
        """Start all kernels with one copy of the weight."""
        import torch

        stream = ctypes.c_void_p(torch.cuda.current_stream().cuda_stream)
        for call, function in zip(self.made.calls, self.functions, strict=True):
            tensors = [self.weights[copy].get(name, self.scratch.get(name)) for name in call.buffers]
            pointers = [ctypes.c_uint64(t.data_ptr()) for t in tensors if t is not None]
            arguments = (ctypes.c_void_p * len(pointers))(*(ctypes.addressof(p) for p in pointers))
            launch = call.launch
            self._check(
                self.driver.cuLaunchKernel(
                    function, *launch.grid, *launch.block, launch.shared_bytes, stream, arguments, None
                )
            )
