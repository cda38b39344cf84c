"""Kernel families of the processor on a GPU: a thread computes a unit, then the next one that far on as there are threads.

What a thread uses as scratch is a column of an array in memory, [elements][threads], so that neighbouring threads use neighbouring
elements.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sparsec.codegen.cuda.launch import Launch, lines
from sparsec.codegen.program import ITEMSIZE, Arg, Signature

STATUS = "status"
"""The argument of a kernel that may fail (`Signature.may_fail`): int32[1], the host's zero until a thread finds an error."""
COUNTERS = "counters"
"""The argument of a `CountingSignature`: int32, zero before the kernel and after it."""

_BLOCK = 128
# Threads at most: of kernels with scratch fewer, since every thread has its own.
_THREADS, _SCRATCH_THREADS, _SCRATCH_BYTES = 1 << 20, 1 << 14, 64 << 20


@dataclass(frozen=True)
class CountingSignature(Signature):
    """Of a GPU kernel whose blocks count one another: so many counters."""

    counters: int = 0


def counters_of(signature: Signature) -> int:
    """Counters of a kernel of any family."""
    return signature.counters if isinstance(signature, CountingSignature) else 0


def unit_launch(signature: Signature) -> Launch:
    """Blocks of threads for all units of a family's signature (with every size known)."""
    threads = max(1, min(signature.units, _THREADS))
    if scratch := sum(a.size * ITEMSIZE[a.dtype] for a in signature.args if a.role == "work"):
        threads = max(1, min(threads, _SCRATCH_THREADS, _SCRATCH_BYTES // scratch))
    block = min(_BLOCK, -(-threads // 32) * 32)
    return lines(-(-threads // block), block)


def thread_count(launch: Launch) -> int:
    """Threads of all blocks."""
    return launch.grid[0] * launch.block[0]


def device_signature(signature: Signature) -> Signature:
    """The signature of the GPU kernel: scratch becomes an output that holds that of all threads, an error code and counters are more."""
    threads = thread_count(unit_launch(signature))
    args = [replace(a, role="out", size=a.size * threads) if a.role == "work" else a for a in signature.args]
    if signature.may_fail:
        args.append(Arg(STATUS, "int32", 1, "out"))
    if count := counters_of(signature):
        args.append(Arg(COUNTERS, "int32", count, "out"))
    return replace(signature, args=tuple(args))
