"""ternary: -1, 0 or 1 times a scale."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparsec.formats.codec_base import Codec, register
from sparsec.formats.meaning import AffineValue
from sparsec.formats.row_stream import Coded, RowStream
from sparsec.formats.scales import CHANNEL, Scales

__all__ = ["Ternary"]


@register
@dataclass(frozen=True)
class Ternary(Codec):
    """-1, 0 or 1 times a scale, 2-bit codes.

    Threshold and scale follow TWN (F. Li et al., "Ternary Weight Networks", 2016).
    """

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"ternary")
    forms: ClassVar[str] = "ternary (-1, 0, 1 times a scale)"
    example: ClassVar[str] = "ternary-g64"
    tokens: ClassVar[tuple[str, ...]] = ("ternary",)
    default_scales: ClassVar[Scales] = CHANNEL
    legal_scales: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls()

    @property
    def code_bits(self) -> int:
        return 2

    @property
    def meaning(self) -> AffineValue:
        return AffineValue(1)

    def encode(self, stream: RowStream) -> Coded:
        values = stream.shared(stream.values)
        size = np.abs(values)
        total = size.sum(2, dtype=np.float64)
        valid = np.ones(stream.values.shape, bool) if stream.valid is None else stream.valid
        count = stream.shared(valid).sum(2)
        threshold = (0.7 * total / np.maximum(count, 1)).astype(np.float32)[:, :, None]
        kept = size > threshold
        mean = np.where(kept, size, 0).sum(2, dtype=np.float64) / np.maximum(kept.sum(2), 1)
        codes = np.where(kept, np.sign(values), 0) + 1
        return Coded(stream.unshared(codes.astype(np.uint8)), stream.stored_scales(mean))

    def __str__(self) -> str:
        return "ternary"
