"""Code for whole tiles and for the shorter last one."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil
from typing import Any


def with_size(k: Any, index: Any, size: int, whole: int, write: Callable[[int], None]) -> None:
    """write(elements of tile `index`): `size` elements are cut into tiles of `whole`, the last has what is left.

    k: KernelBuilder. What `write` emits is there once where all tiles are alike or there is only one, else twice.
    """
    count = ceil(size / whole)
    last = size - (count - 1) * whole
    if last == whole or count == 1:
        write(last)
        return
    with k.T.If(index < count - 1):
        with k.T.Then():
            write(whole)
        with k.T.Else():
            write(last)
