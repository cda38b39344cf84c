"""Equal arrays are one array: found by a sample and then compared, which is much cheaper than hashing every byte."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any, Generic, TypeVar

import numpy as np

Array = np.ndarray[Any, Any]
T = TypeVar("T")

_SAMPLES = 64


class Interned(Generic[T]):
    """Maps arrays, by their bytes and a `kind`, to what was stored for the first of equal ones. Arrays must not change."""

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, int, bytes], list[tuple[Array, T]]] = {}

    def find(self, array: Array, kind: Hashable = None) -> T | None:
        """What was added for an equal array of this kind, or None."""
        flat = _bytes(array)
        for other, stored in self._known.get(_key(flat, kind), ()):
            if np.array_equal(flat, other):
                return stored
        return None

    def add(self, array: Array, stored: T, kind: Hashable = None) -> None:
        """Remember `stored` for this array."""
        flat = _bytes(array)
        self._known.setdefault(_key(flat, kind), []).append((flat, stored))

    def copy(self) -> Interned[T]:
        """A copy that later additions to either do not touch."""
        made: Interned[T] = Interned()
        made._known = {key: list(entries) for key, entries in self._known.items()}
        return made


def _bytes(array: Array) -> Array:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8)


def _key(flat: Array, kind: Hashable) -> tuple[Hashable, int, bytes]:
    return kind, flat.size, flat[:: max(1, flat.size // _SAMPLES)].tobytes()
