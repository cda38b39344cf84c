"""pow2: signed powers of two in 4 bits."""

from typing import ClassVar

from sparsec.formats.codec_base import register
from sparsec.formats.fixed_table import FixedTable

__all__ = ["Pow2"]


@register
class Pow2(FixedTable):
    """0, +-1/64, +-1/32 .. +-1 and, in place of a second zero, -1/128 (after A. Zhou et al., "Incremental Network Quantization", 2017)."""

    token: ClassVar[str] = "pow2"
    about: ClassVar[str] = "powers of two, 4 bits"
    levels: ClassVar[tuple[float, ...]] = (
        0.0, *(2.0**-e for e in range(6, -1, -1)),
        *(-(2.0**-e) for e in range(7, -1, -1)),
    )  # fmt: skip
