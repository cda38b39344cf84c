"""Widths of the vectors that cover a number of elements exactly."""

from __future__ import annotations


def pieces(count: int, lanes: int) -> list[tuple[int, int]]:
    """(start, width) that cover `count` elements: whole vectors of `lanes`, then ever smaller powers of two; none for 0 or less.

    lanes: a power of two.
    """
    found, at, width = [], 0, lanes
    while at < count:
        while width > count - at:
            width //= 2
        found.append((at, width))
        at += width
    return found
