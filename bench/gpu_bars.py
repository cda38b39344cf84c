"""What `bench gpu` times, the bars it judges, and its tables; nothing here needs a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEADERS = ("product", "candidate", "us", "MB", "of read", "of copy", "of matmul", "note")
JUDGED_HEADERS = ("product", "ours", "against", "found", "bar")


@dataclass(frozen=True)
class Job:
    """C[m, n] = A[m, k] . W[n, k]^T in halves, and the schemes of ours that are timed on it."""

    m: int
    n: int
    k: int
    schemes: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.m} x {self.n}x{self.k}"


@dataclass(frozen=True)
class ModelJob:
    """MiniLM on `batch` sentences of `tokens`, and the recipes that are timed on it (fp16: none)."""

    batch: int
    tokens: int
    schemes: tuple[str, ...]

    def __str__(self) -> str:
        return f"minilm {self.batch} x {self.tokens}"


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
MODEL_JOBS = (ModelJob(1, 128, ("fp16", "cb4-g128")), ModelJob(64, 128, ("fp16", "cb4-g128")))

FP16 = "torch fp16"
FOUR_BITS = ("torch int4", "bitsandbytes nf4", "triton int4")
TWO_OF_FOUR = ("torch 2:4 cuSPARSELt", "torch 2:4 CUTLASS")
COMPILED, EAGER = "torch.compile fp16", "torch eager fp16"
READ_ROOF = "read roof"
WRONG = "wrong result"
NO_GRAPH = "not in a CUDA graph"
"""How notes begin: of a candidate that computes something else, of a rival that is timed launch by launch."""


@dataclass(frozen=True)
class Bar:
    """What must be reached. Of `against` rivals: the time of the best of them over ours. Of the read roof: the share of it at which
    the stored bytes are read."""

    job: str
    ours: str
    against: tuple[str, ...]
    least: float


_SINGLE, _LARGE = tuple(map(str, JOBS[:3])), tuple(map(str, JOBS[1:3]))
BARS = (
    *(Bar(job, "cb4-g128", (READ_ROOF,), share) for job, share in zip(_SINGLE, (0.70, 0.75, 0.85), strict=True)),
    *(Bar(job, "cb4-g128", (FP16,), 3.0) for job in _LARGE),
    *(Bar(job, "cb4-g128", FOUR_BITS, 1.2) for job in _SINGLE),
    *(Bar(job, _SPARSE, ("cb4-g128",), 1.6) for job in _SINGLE),
    *(Bar(job, _SPARSE, TWO_OF_FOUR, 2.35) for job in _SINGLE),
    *(Bar(job, _SPARSE, ("cb2",), 1.0) for job in _SINGLE),
    *(Bar(job, scheme, ("cb4-g128",), 1.5) for job in _LARGE for scheme in ("vq2d4", "cb2", "ternary")),
    Bar(str(JOBS[3]), "cb4-g128", (FP16,), 2.5),
    Bar(str(JOBS[4]), "cb4-g128", (FP16,), 1.3),
    Bar(str(JOBS[5]), "cb4-g128", (FP16,), 0.85),
    Bar(str(JOBS[5]), "s2:4-fp16", (FP16,), 1.3),
    *(Bar(str(job), scheme, (COMPILED,), 1.0) for job in MODEL_JOBS for scheme in job.schemes),
)


@dataclass(frozen=True)
class Row:
    """A measured candidate; seconds is None where it could not run, and `note` says why. moved: bytes of weights, inputs and
    results; operations: a multiplication and an addition are two. Both are 0 of whole models."""

    job: str
    candidate: str
    seconds: float | None
    stored_bytes: int = 0
    moved: int = 0
    operations: int = 0
    note: str = ""


@dataclass(frozen=True)
class Roofs:
    """Bytes a second of reading, and of a copy (read and written); operations a second of a large fp16 product. 0: not measured."""

    read: float = 0.0
    copy: float = 0.0
    matmul: float = 0.0

    def __str__(self) -> str:
        rates = (
            ("read", self.read, 1e9, "GB/s"),
            ("copy", self.copy, 1e9, "GB/s"),
            ("matmul", self.matmul, 1e12, "TFLOP/s"),
        )
        return ", ".join(
            f"{name} {rate / unit:.0f} {of}" if rate else f"{name} not measured" for name, rate, unit, of in rates
        )


def cells(row: Row, roofs: Roofs) -> list[str]:
    """A line of the table."""
    if row.seconds is None:
        return [row.job, row.candidate, "-", "-", "-", "-", "-", row.note]
    amounts = ((row.stored_bytes, roofs.read), (row.moved, roofs.copy), (row.operations, roofs.matmul))
    shares = (f"{100 * n / row.seconds / roof:.0f} %" if n and roof else "-" for n, roof in amounts)
    size = f"{row.stored_bytes / 1e6:.1f}" if row.stored_bytes else "-"
    return [row.job, row.candidate, f"{1e6 * row.seconds:.1f}", size, *shares, row.note]


def judged(rows: Sequence[Row], roofs: Roofs) -> list[list[str]]:
    """A line for each bar of the products and models in `rows`; it says whether the bar is missed, or why it cannot be judged."""
    found = {(row.job, row.candidate): row for row in rows}
    return [_verdict(bar, found, roofs) for bar in BARS if any(job == bar.job for job, _ in found)]


def _verdict(bar: Bar, found: dict[tuple[str, str], Row], roofs: Roofs) -> list[str]:
    ours = found.get((bar.job, bar.ours))
    against = " or ".join(bar.against)
    if ours is None or ours.seconds is None:
        return _not_judged(bar, against, f"{bar.ours}: {'not timed' if ours is None else ours.note}")
    if ours.note.startswith(WRONG):
        return _not_judged(bar, against, f"{bar.ours}: {ours.note}")
    if bar.against == (READ_ROOF,):
        if not roofs.read:
            return _not_judged(bar, against, "the read roof was not measured")
        reached = ours.stored_bytes / ours.seconds / roofs.read
        return _judged(bar, against, reached, f"{100 * reached:.0f} %", f"{100 * bar.least:.0f} %")
    rivals = [found[bar.job, name] for name in bar.against if (bar.job, name) in found]
    timed = {
        f"{row.candidate}, {NO_GRAPH}" if row.note.startswith(NO_GRAPH) else row.candidate: row.seconds
        for row in rivals
        if row.seconds is not None and not row.note.startswith(WRONG)
    }
    if not timed:
        reasons = "; ".join(f"{row.candidate}: {row.note}" for row in rivals) or f"{against}: not timed"
        return _not_judged(bar, against, reasons)
    best = min(timed, key=lambda name: timed[name])
    reached = timed[best] / ours.seconds
    return _judged(bar, best, reached, f"{reached:.2f}x", f"{bar.least:g}x")


def _judged(bar: Bar, against: str, reached: float, shown: str, least: str) -> list[str]:
    return [bar.job, bar.ours, against, shown, f"{least}{'' if reached >= bar.least else ' missed'}"]


def _not_judged(bar: Bar, against: str, reason: str) -> list[str]:
    least = f"{100 * bar.least:.0f} %" if bar.against == (READ_ROOF,) else f"{bar.least:g}x"
    return [bar.job, bar.ours, against, "-", f"{least} not judged ({reason})"]
