"""pg2..pg8: power grids, integers raised to a power that is searched for each weight."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import ClassVar, Self

import numpy as np

from sparsec.errors import SchemeError
from sparsec.formats.codec_base import Codec, register
from sparsec.formats.fixed_table import encode_levels
from sparsec.formats.meaning import TableValue
from sparsec.formats.row_stream import Coded, RowStream
from sparsec.formats.scales import CHANNEL, Scales

__all__ = ["PowerGrid", "power_levels"]

_FIRST = tuple(step / 4 for step in range(3, 13))
"""Exponents tried first; then an eighth and a sixteenth up and down from the best."""
_SEARCHED = 1 << 15
"""Values that the exponent is searched on, whole rows spread over the weight."""


def power_levels(bits: int, exponent: float) -> np.ndarray:
    """Ascending levels float32 [2**bits]: sign(q) |q / 2**(bits - 1)| ** exponent for q from -2**(bits - 1) up."""
    half = 1 << (bits - 1)
    q = np.arange(-half, half) / half
    return np.asarray(np.sign(q) * np.abs(q) ** exponent, np.float32)


@register
@dataclass(frozen=True)
class PowerGrid(Codec):
    """sign(q) |q|^a times the scale, a searched for each weight and stored as the table of its levels.

    Levels lie densely around zero for a > 1, as most weights do (E. Yvinec, A. Dapogny, K. Bailly, "NUPES: Non-Uniform Post-Training
    Quantization via Power Exponent Search", 2023); a = 1 is `int`.
    """

    bits: int
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"pg(\d+)")
    forms: ClassVar[str] = "pg2..pg8 (power grid: integers to a power searched for each weight)"
    example: ClassVar[str] = "pg4-g32"
    tokens: ClassVar[tuple[str, ...]] = ("pg3", "pg4")
    default_scales: ClassVar[Scales] = CHANNEL
    legal_scales: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise SchemeError(f"a power grid of {self.bits} bits is not supported; 2 to 8 are")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls(int(match[1]))

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def meaning(self) -> TableValue:
        return TableValue(self.bits)

    @property
    def free_table(self) -> bool:
        return False

    def encode(self, stream: RowStream) -> Coded:
        part = _some_rows(stream)
        errors: dict[float, float] = {}

        def best() -> float:
            return min(errors, key=errors.__getitem__)

        for exponent in _FIRST:
            errors[exponent] = self._error(part, exponent)
        for step in (0.125, 0.0625):
            around = best()
            for exponent in (around - step, around + step):
                errors[exponent] = self._error(part, exponent)
        levels = power_levels(self.bits, best())
        return replace(encode_levels(stream, levels), codebook=levels[None])

    def _error(self, stream: RowStream, exponent: float) -> float:
        levels = power_levels(self.bits, exponent)
        coded = encode_levels(stream, levels)
        assert coded.scales is not None
        scales = np.broadcast_to(coded.scales.astype(np.float64)[:, :, None], stream.shared(stream.values).shape)
        off = np.square(levels.astype(np.float64)[coded.codes] * stream.unshared(scales) - stream.values)
        if stream.importance is not None:
            off *= stream.importance
        elif stream.valid is not None:
            off *= stream.valid
        return float(off.sum())

    def __str__(self) -> str:
        return f"pg{self.bits}"


def _some_rows(stream: RowStream) -> RowStream:
    rows, length = stream.values.shape
    step = max(1, rows * length // _SEARCHED)

    def thin(array: np.ndarray | None) -> np.ndarray | None:
        return array if array is None or len(array) != rows or step == 1 else np.ascontiguousarray(array[::step])

    values, columns = thin(stream.values), thin(stream.columns)
    assert values is not None
    assert columns is not None
    return replace(stream, values=values, columns=columns, valid=thin(stream.valid), importance=thin(stream.importance))
