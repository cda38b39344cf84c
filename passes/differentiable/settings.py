"""How torch runs here: the same bits every time, on however many threads."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager

import torch

__all__ = ["deterministic"]


@contextmanager
def deterministic(threads: int) -> Iterator[Executor]:
    """So many threads for calls into torch; torch as it was afterwards.

    The last bits of a sum depend on how many threads torch shares it among, so each call has one thread, and only operators that
    give the same bits every time. What is added up over calls is to be added in their order.
    """
    before, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    warn = torch.is_deterministic_algorithms_warn_only_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with ThreadPoolExecutor(threads) as pool:
            yield pool
    finally:
        torch.use_deterministic_algorithms(strict, warn_only=warn)
        torch.set_num_threads(before)
