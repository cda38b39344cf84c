"""fp32 and fp16: values as they are."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from sparsec.errors import SchemeError, WeightError
from sparsec.formats.codec_base import Codec, register
from sparsec.formats.meaning import FloatValue
from sparsec.formats.row_stream import Coded, RowStream
from sparsec.formats.scales import NO_SCALES, Scales

__all__ = ["Float"]


@register
@dataclass(frozen=True)
class Float(Codec):
    """Values as they are, in fp32 or fp16."""

    width: Literal[16, 32]
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"fp(16|32)")
    forms: ClassVar[str] = "fp32 fp16"
    example: ClassVar[str] = "fp16"
    tokens: ClassVar[tuple[str, ...]] = ("fp32", "fp16")
    default_scales: ClassVar[Scales] = NO_SCALES
    legal_scales: ClassVar[tuple[str, ...]] = ("none",)

    def __post_init__(self) -> None:
        if self.width not in (16, 32):
            raise SchemeError(f"fp{self.width} is not known; fp32 and fp16 are")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls(int(match[1]))  # type: ignore[arg-type]

    @property
    def code_bits(self) -> int:
        return 0

    @property
    def meaning(self) -> FloatValue:
        return FloatValue(self.width)

    def encode(self, stream: RowStream) -> Coded:
        if self.width == 32:
            return Coded(stream.values)
        peak = float(np.abs(stream.values).max(initial=0))
        if peak > 65504.0:
            raise WeightError(f"a value of magnitude {peak:.4g} does not fit fp16 (at most 65504); use fp32")
        return Coded(stream.values.astype(np.float16))

    def __str__(self) -> str:
        return f"fp{self.width}"
