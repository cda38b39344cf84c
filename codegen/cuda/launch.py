"""How a GPU kernel is started, and what is known of its machine code."""

from __future__ import annotations

from dataclasses import dataclass

Dims = tuple[int, int, int]


@dataclass(frozen=True)
class Launch:
    """Blocks of the grid, threads of a block, bytes of dynamic shared memory (`CudaBuilder.dynamic`) of a block."""

    grid: Dims
    block: Dims
    shared_bytes: int = 0

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.block[0] * self.block[1] * self.block[2]


def lines(blocks: int, threads: int, shared_bytes: int = 0) -> Launch:
    """A launch of one dimension."""
    return Launch((max(1, blocks), 1, 1), (threads, 1, 1), shared_bytes)
