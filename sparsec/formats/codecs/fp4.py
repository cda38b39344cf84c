"""fp4: floats of 4 bits, e2m1."""

from typing import ClassVar

from sparsec.formats.codec_base import register
from sparsec.formats.fixed_table import FixedTable

__all__ = ["FP4"]

_POSITIVE = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


@register
class FP4(FixedTable):
    """Sign, 2 bits of exponent, 1 of mantissa, no infinities (OCP Microscaling Formats, 2023)."""

    token: ClassVar[str] = "fp4"
    about: ClassVar[str] = "floats e2m1"
    levels: ClassVar[tuple[float, ...]] = (*_POSITIVE, *(-level for level in _POSITIVE))
