"""What GPUs have: a row for every architecture, and how many blocks a multiprocessor holds."""

from __future__ import annotations

from sparsec.codegen.cuda.capacity import CAPACITY, shared_limit
from sparsec.codegen.cuda.launch import lines
from sparsec.target import GPUS


def test_every_architecture_is_there() -> None:
    assert set(CAPACITY) == set(GPUS)
    assert all(shared_limit(arch) < capacity.shared_bytes for arch, capacity in CAPACITY.items())


def test_resident_blocks() -> None:
    h100 = CAPACITY["sm_90"]
    assert h100.resident(lines(1, 512), 64) == 2  # registers
    assert h100.resident(lines(1, 1024), 16) == 2  # threads
    assert h100.resident(lines(1, 128, 75 << 10), 32) == 3  # shared memory
    assert h100.resident(lines(1, 1024), 128) == 1
