"""int2..int8 and uint2..uint8: integers times a scale, symmetric or with a zero point."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparsec.errors import SchemeError
from sparsec.formats.codec_base import Codec, register
from sparsec.formats.meaning import AffineValue
from sparsec.formats.row_stream import Coded, RowStream, divide
from sparsec.formats.scale_search import best_fit, search_scales
from sparsec.formats.scales import CHANNEL, Scales

__all__ = ["Affine"]


@register
@dataclass(frozen=True)
class Affine(Codec):
    """Integers times a scale: symmetric (intB, stored as q + 2**(B-1)) or with a zero point (uintB)."""

    bits: int
    unsigned: bool
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(u?)int(\d+)")
    forms: ClassVar[str] = "int2..int8 (symmetric), uint2..uint8 (with zero point)"
    example: ClassVar[str] = "int4-g32"
    tokens: ClassVar[tuple[str, ...]] = (*(f"int{b}" for b in range(2, 9)), *(f"uint{b}" for b in range(2, 9)))
    default_scales: ClassVar[Scales] = CHANNEL
    legal_scales: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise SchemeError(f"{self.bits} bits are not supported by affine codecs; 2 to 8 are")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls(int(match[2]), match[1] == "u")

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def meaning(self) -> AffineValue:
        return AffineValue(None if self.unsigned else 1 << (self.bits - 1))

    def encode(self, stream: RowStream) -> Coded:
        values = stream.shared(stream.values)
        if not self.unsigned:
            top = (1 << (self.bits - 1)) - 1
            # With many levels one more at the lower end is worth nothing.
            low = -top - 1 if self.bits < 6 else -top
            scales = search_scales(stream, values, low, top, lambda x: _rounded(x, -top - 1, top))
            q = _rounded(divide(values, scales), -top - 1, top) + np.float32(top + 1)
            return Coded(stream.unshared(q.astype(np.uint8)), scales)
        levels = (1 << self.bits) - 1
        low, high = np.minimum(values.min(2), 0), np.maximum(values.max(2), 0)
        # Divided before subtracting: the whole range of extreme weights may not fit fp32.
        plain = (high / np.float32(levels)) - (low / np.float32(levels))

        def candidates(ratio: float) -> list[tuple[np.ndarray, np.ndarray]]:
            scales = stream.stored_scales(plain * np.float32(ratio))
            zeros = _rounded(-divide(low[:, :, None] * np.float32(ratio), scales), 0, levels)
            return [(scales, zeros[:, :, 0])]

        fit = best_fit(stream, values, lambda x, zero: np.clip(np.rint(x), -zero, levels - zero), candidates)
        for step in (-1, 1):
            fit.offer(fit.scales, np.clip(fit.zeros + np.float32(step), 0, levels))
        zeros = fit.zeros[:, :, None]
        q = np.clip(np.rint(divide(values, fit.scales)) + zeros, 0, levels)
        return Coded(stream.unshared(q.astype(np.uint8)), fit.scales, fit.zeros.astype(np.uint8))

    def __str__(self) -> str:
        return f"{'u' if self.unsigned else ''}int{self.bits}"


def _rounded(x: np.ndarray, low: int, high: int) -> np.ndarray:
    """Whole numbers in [low, high], float32; works in place."""
    np.rint(x, out=x)
    return np.clip(x, low, high, out=x)
