"""Codecs whose codes index a constant table: all they have to say is their name, their levels and what they are."""

from __future__ import annotations

import re
from functools import cached_property
from typing import ClassVar, Self

import numpy as np

from sparsec.formats.codec_base import Codec
from sparsec.formats.meaning import TableValue
from sparsec.formats.row_stream import Coded, RowStream, divide
from sparsec.formats.scale_search import search_scales
from sparsec.formats.scales import CHANNEL, Scales

__all__ = ["FixedTable", "encode_levels"]

_STEPS = 4096


def encode_levels(stream: RowStream, levels: np.ndarray) -> Coded:
    """Searched scales and the nearest of ascending levels, float32 with 0 among them; codes are places in `levels`, uint8."""
    values = stream.shared(stream.values)
    borders = (levels[1:] + levels[:-1]) / 2
    low, high = float(levels[0]), float(levels[-1])
    # The search reads the levels of equal steps, which is much faster; the codes are exact.
    steps = np.linspace(low, high, _STEPS, dtype=np.float32)
    near, last = levels[np.searchsorted(borders, steps)], np.float32(_STEPS - 1)

    def nearest(x: np.ndarray) -> np.ndarray:
        x -= np.float32(low)
        x *= last / np.float32(high - low)
        x += np.float32(0.5)
        return near[np.clip(x, 0, last, out=x).astype(np.intp)]

    scales = search_scales(stream, values, low, high, nearest)
    return Coded(stream.unshared(np.searchsorted(borders, divide(values, scales)).astype(np.uint8)), scales)


class FixedTable(Codec):
    """Base of the codecs with a constant table: value = levels[code] * scale.

    A subclass sets `token`, `about` and `levels`: 2, 4, .. 256 floats, of which those that are not numbers are never chosen.
    A level must be 0, so that a weight of 0 stays 0, unless `encode` is its own.
    """

    token: ClassVar[str]
    about: ClassVar[str]
    levels: ClassVar[tuple[float, ...]]
    default_scales: ClassVar[Scales] = CHANNEL
    legal_scales: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        cls.pattern = re.compile(cls.token)
        cls.forms = f"{cls.token} ({cls.about})"
        cls.example = f"{cls.token}-g32"
        cls.tokens = (cls.token,)

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls()

    @property
    def code_bits(self) -> int:
        return (len(self.levels) - 1).bit_length()

    @property
    def meaning(self) -> TableValue:
        return TableValue(self.code_bits, self.levels)

    def encode(self, stream: RowStream) -> Coded:
        levels, codes = self._sorted
        coded = encode_levels(stream, levels)
        return Coded(codes[coded.codes], coded.scales)

    @cached_property
    def _sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Levels float32 ascending, without doubles, and their codes uint8."""
        table = np.array(self.levels, np.float32)
        levels, codes = np.unique(table, return_index=True)
        finite = np.isfinite(levels)
        return levels[finite], codes[finite].astype(np.uint8)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    def __hash__(self) -> int:
        return hash(self.token)

    def __str__(self) -> str:
        return self.token
