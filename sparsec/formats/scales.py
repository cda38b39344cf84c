"""Scales: how many stored values share one multiplier."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal

from sparsec.errors import SchemeError

__all__ = ["CHANNEL", "NO_SCALES", "TENSOR", "Scales", "group"]


@dataclass(frozen=True)
class Scales:
    """none | tensor (one) | channel (one per output row) | group (one per `group` stored values of a row).

    Group scales are fp16, the others fp32. The scale index of a stored block of rank r in its strip is `r * C //
    group`.
    """

    kind: Literal["none", "tensor", "channel", "group"]
    group: int = 0

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"t|c|g(\d+)")
    forms: ClassVar[str] = "t (tensor), c (output channel), gG (group of G stored values of a row)"

    def __post_init__(self) -> None:
        if self.kind == "group":
            if not 1 <= self.group <= 65536:
                raise SchemeError(f"group size {self.group} is out of range; 1 to 65536 is allowed")
        elif self.group:
            raise SchemeError(f"{self.kind} scales take no group size")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Scales:
        """Build from a match of `pattern`; raises SchemeError saying what is allowed."""
        if match[1] is not None:
            return cls("group", int(match[1]))
        return TENSOR if match[0] == "t" else CHANNEL

    @property
    def shared_bits(self) -> int:
        """Bits of one stored scale."""
        return {"none": 0, "tensor": 32, "channel": 32, "group": 16}[self.kind]

    def __str__(self) -> str:
        return {"none": "", "tensor": "t", "channel": "c", "group": f"g{self.group}"}[self.kind]


NO_SCALES = Scales("none")
TENSOR = Scales("tensor")
CHANNEL = Scales("channel")


def group(size: int) -> Scales:
    """Scales per group of `size` stored values."""
    return Scales("group", size)
