"""Reductions within vectors, of as many vectors at once as they have lanes: a third of the instructions of one by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from sparsec.codegen.isa.vecmath import bind


def reduce_each(k: Any, vectors: Sequence[Any], combine: Callable[[Any, Any], Any]) -> Any:
    """Lane i of the result: all lanes of vectors[i] combined. n vectors of n lanes, n a power of two of at least 4.

    Neighbours are merged in a binary tree. Two rounds work inside every quarter of 4 lanes (unpack instructions on x86, zip on
    ARM), the others halve the number of quarters.
    """
    n, found = len(vectors), list(vectors)
    rounds = [([0, n, 1, n + 1], [2, n + 2, 3, n + 3]), ([0, 1, n, n + 1], [2, 3, n + 2, n + 3])]
    orders = [[[lane + at for at in range(0, n, 4) for lane in half] for half in halves] for halves in rounds]
    across = [[at + lane for at in range(odd, 2 * n, 8) for lane in range(4)] for odd in (0, 4)]
    for low, high in (*orders, *([across] * (n.bit_length() - 3))):
        pairs = zip(found[::2], found[1::2], strict=True)
        found = [bind(k, combine(k.shuffle(a, b, low), k.shuffle(a, b, high))) for a, b in pairs]
    return found[0]
