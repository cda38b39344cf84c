"""ternary: -1, 0 or 1 times a scale."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparsec.formats.codec_base import Codec, register
from sparsec.formats.meaning import AffineValue
from sparsec.formats.row_stream import Coded, RowStream, divide
from sparsec.formats.scales import CHANNEL, Scales

__all__ = ["Ternary"]


@register
@dataclass(frozen=True)
class Ternary(Codec):
    """-1, 0 or 1 times a scale, 2-bit codes: the least squares problem of TWN (F. Li et al., "Ternary Weight Networks", 2016),
    solved exactly instead of by a threshold.
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
    def top_code(self) -> int:
        return 2

    @property
    def meaning(self) -> AffineValue:
        return AffineValue(1)

    def encode(self, stream: RowStream) -> Coded:
        values = stream.shared(stream.values)
        # Keeping the k largest magnitudes, whose sum is S, the best scale is S / k and it takes S^2 / k off the error.
        # With importance h, S is the sum of h |w| and k that of h.
        if stream.importance is None:
            size = -np.sort(-np.abs(values), axis=2)
            kept: np.ndarray = np.arange(1, size.shape[2] + 1)[None, None]
            sums = np.cumsum(size, axis=2, dtype=np.float64)
        else:
            size = np.abs(values)
            order = np.argsort(-size, axis=2, kind="stable")
            counts = np.take_along_axis(stream.shared(stream.importance), order, 2)
            kept = np.maximum(np.cumsum(counts, axis=2, dtype=np.float64), 1e-300)
            sums = np.cumsum(np.take_along_axis(size, order, 2) * counts, axis=2, dtype=np.float64)
        best = (sums * sums / kept).argmax(2)[:, :, None]
        kept = np.broadcast_to(kept, sums.shape)
        scales = stream.stored_scales((np.take_along_axis(sums, best, 2) / np.take_along_axis(kept, best, 2))[:, :, 0])
        codes = np.clip(np.rint(divide(values, scales)), -1, 1) + 1
        return Coded(stream.unshared(codes.astype(np.uint8)), scales)

    def __str__(self) -> str:
        return "ternary"
