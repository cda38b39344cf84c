"""Codes of at most four bits in half bytes, which a byte shuffle looks up (byte_weights.py stores them, gemv_weights.py reads them).

A half byte has one code of 4 bits, two of 2 or four of 1; each has a table of its own of what the 16 values mean for it, so that codes
need not be taken out one by one. Codes of 3 bits lie one to a half byte. Its fourth bit, elsewhere in each of three bytes, is one of a
further code's, which two operations put together (`REST`): eight quads in three bytes.

    bits 3 .. 0     A: s c2 c1 c0     B: c2 s c1 c0     C: c2 c1 s c0     REST: s of A, s of B, s of C, 0

A and B are two bytes of the plane of 2 bits, C one of the plane of 1. Quads 0 and 1 are in A, 2 and 3 in C, 4 and 5 in B (where there are
no more than four, B is left out), 6 and 7 in REST.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]

# Where the bits of a code lie in its half byte, lowest first, by table.
_PLACES: dict[int, list[tuple[int, ...]]] = {
    4: [(0, 1, 2, 3)],
    3: [(0, 1, 2), (0, 1, 3), (0, 2, 3), (3, 2, 1)],
    2: [(0, 1), (2, 3)],
    1: [(0,), (1,), (2,), (3,)],
}
# Of 3 bits: plane, byte of the plane, and the bits of a byte that belong to the rest; by table, A to C.
BYTES = [(0, 0), (0, 1), (1, 0)]
REST = [0x88, 0x44, 0x22]
# The table of each two quads of 3 bits.
_TABLES = (0, 2, 1, 3)


def table_count(bits: int) -> int:
    """Tables that codes of so many bits are looked up in."""
    return len(_PLACES[bits])


def meanings(bits: int) -> Array:
    """int [tables, 16]: the code that each value of a half byte stands for."""
    values = np.arange(16)
    return np.array([sum(((values >> at) & 1) << bit for bit, at in enumerate(places)) for places in _PLACES[bits]])


def place(bits: int, quad: int) -> tuple[int, int, int]:
    """(table, byte, half) of a quad's codes. byte: of the only plane, of 3 bits number in `BYTES` or behind them for the rest."""
    if bits == 3:
        table = _TABLES[quad // 2]
        return table, table, quad % 2
    nibble, table = divmod(quad, 4 // bits)
    return table, nibble // 2, nibble % 2


def three_bit_planes(quads: Array) -> list[Array]:
    """The planes of 2 and of 1 bits of codes of 3, [blocks, quad, ...] -> uint8 [blocks, byte of the plane, ...]."""
    blocks, count, *rest = quads.shape
    steps = ceil(count / 8)
    padded = np.zeros((blocks, steps * 8, *rest), np.uint8)
    padded[:, :count] = quads
    fields = padded.reshape(blocks, steps, 8, *rest)
    parts = []  # A, B, C and what becomes the rest
    for table in range(4):
        first = 2 * _TABLES.index(table)
        nibbles = [_spread(fields[:, :, first + half], _PLACES[3][table]) for half in range(2)]
        parts.append(nibbles[0] | nibbles[1] << 4)
    a, b, c = (part | parts[3] & mask for part, mask in zip(parts, REST, strict=False))
    both = np.stack([a, b], axis=2).reshape(blocks, 2 * steps, *rest)
    return [both[:, : ceil(count / 4)], c]


def _spread(codes: Array, places: tuple[int, ...]) -> Array:
    result = np.zeros_like(codes)
    for bit, at in enumerate(places):
        result |= ((codes >> bit) & 1) << at
    return result
