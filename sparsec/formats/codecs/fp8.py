"""fp8: floats of 8 bits, e4m3fn."""

from typing import ClassVar

from sparsec.formats.codec_base import register
from sparsec.formats.fixed_table import FixedTable

__all__ = ["FP8"]


def _level(code: int) -> float:
    sign = -1.0 if code & 128 else 1.0
    exponent, mantissa = (code >> 3) & 15, code & 7
    if exponent == 15 and mantissa == 7:
        return float("nan")
    return sign * (2.0**-9 * mantissa if exponent == 0 else 2.0 ** (exponent - 10) * (8 + mantissa))


@register
class FP8(FixedTable):
    """Sign, 4 bits of exponent, 3 of mantissa, no infinities (P. Micikevicius et al., "FP8 Formats for Deep Learning", 2022)."""

    token: ClassVar[str] = "fp8"
    about: ClassVar[str] = "floats e4m3fn"
    levels: ClassVar[tuple[float, ...]] = tuple(_level(code) for code in range(256))
