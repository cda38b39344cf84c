"""What the GPUs of an architecture have, where kernels are cut by it: multiprocessors, and what one of them holds.

Bundles are compiled without the GPU that runs them, so these are figures of a large GPU of each compute capability (NVIDIA's data
sheets, and the table of compute capabilities of its programming guide). On a smaller one the same blocks come in more rounds: slower than
blocks meant for it, and right.
"""

from __future__ import annotations

from dataclasses import dataclass

from sparsec.codegen.cuda.launch import Launch

_BIG_SHARED = frozenset(["sm_90", "sm_100", "sm_101", "sm_103", "sm_110"])
_REGISTERS = 65536  # of a multiprocessor, in all of these
_RESERVED = 1024  # bytes of shared memory that the system takes of each block


@dataclass(frozen=True)
class Capacity:
    """multiprocessors: of the GPU; threads, shared_bytes: that one of them holds at once."""

    multiprocessors: int
    threads: int
    shared_bytes: int

    def holds(self, blocks: int, shared_bytes: int) -> bool:
        """Whether so many blocks with so much shared memory each are there at once."""
        return blocks * (shared_bytes + _RESERVED) <= self.shared_bytes

    def resident(self, launch: Launch, registers: int) -> int:
        """Blocks that a multiprocessor holds at once, by estimate: their threads have so many registers each."""
        by_threads = self.threads // launch.threads
        by_registers = _REGISTERS // (launch.threads * registers)
        by_shared = self.shared_bytes // (launch.shared_bytes + _RESERVED)
        return max(1, min(by_threads, by_registers, by_shared))


CAPACITY: dict[str, Capacity] = {
    "sm_80": Capacity(108, 2048, 164 << 10),  # A100
    "sm_86": Capacity(84, 1536, 100 << 10),  # A40
    "sm_87": Capacity(16, 1536, 164 << 10),  # Orin
    "sm_89": Capacity(142, 1536, 100 << 10),  # L40
    "sm_90": Capacity(132, 2048, 228 << 10),  # H100 SXM
    "sm_100": Capacity(148, 2048, 228 << 10),  # B200
    "sm_101": Capacity(20, 1536, 228 << 10),  # Thor
    "sm_103": Capacity(148, 2048, 228 << 10),  # B300
    "sm_110": Capacity(20, 1536, 228 << 10),  # Thor, to CUDA 13
    "sm_120": Capacity(170, 1536, 100 << 10),  # RTX 5090
    "sm_121": Capacity(48, 1536, 100 << 10),  # GB10
}


def shared_limit(arch: str) -> int:
    """Bytes of shared memory a block may have on all GPUs that run machine code for `arch`.

    PTX for sm_90 or sm_100 runs on sm_120 too, which has 99 KB: the runtime refuses there what takes more."""
    return (227 if arch in _BIG_SHARED else 99) * 1024
