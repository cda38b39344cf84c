"""Structures: which positions of a weight matrix W[N, K] are stored.

A structure decides the block (R outputs x C inputs) that shares one stored-or-not bit and which keep-masks are legal.
Position storage itself is the same for all of them (one bitmap over blocks, `layout.py`), so a new structure is one
class here, listed in `STRUCTURES`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparsec.errors import SchemeError, WeightError

__all__ = ["DENSE", "NM", "STRUCTURES", "Block", "Dense", "FanIn", "Structure", "Unstructured"]


def _percent(text: str) -> float:
    value = float(text)
    if not 1.0 <= value <= 99.0:
        raise SchemeError(f"{text} percent zeros is out of range; 1 to 99 is allowed")
    return value


def _aim(percent: float) -> None:
    """What pruning may aim for in one weight, when zeros are shared out among several; tokens say 1 to 99."""
    if not 0.0 <= percent < 100.0:
        raise SchemeError(f"{percent:g} percent zeros is out of range; 0 to below 100 is allowed")


class Structure(ABC):
    """Which positions are stored. Frozen, hashable, printed as its token."""

    pattern: ClassVar[re.Pattern[str]]
    """Loose syntax of the token; `from_match` raises SchemeError for values out of range."""
    form: ClassVar[str]
    """The token's form and meaning, for error messages."""
    example: ClassVar[str]

    @classmethod
    @abstractmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        """Build from a match of `pattern`; raises SchemeError saying what is allowed."""

    @property
    def block(self) -> tuple[int, int]:
        """(R, C): outputs and inputs that share one position."""
        return (1, 1)

    @property
    def is_dense(self) -> bool:
        """True when every position is stored and no bitmap is kept."""
        return False

    def check_mask(self, block_mask: np.ndarray, cols: int) -> None:
        """Raise WeightError if the keep-mask over blocks, bool [ceil(N/R), ceil(K/C)], is not one of this structure."""
        del block_mask, cols

    def stored(self, nonzero: np.ndarray) -> np.ndarray:
        """The keep-mask of a weight that came without one, from its nonzero blocks, bool [ceil(N/R), ceil(K/C)]."""
        return nonzero


@dataclass(frozen=True)
class Dense(Structure):
    """Every position is stored."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(?!)")  # has no token: dense is the absence of one
    form: ClassVar[str] = "(nothing) dense"
    example: ClassVar[str] = "int8"

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls()

    @property
    def is_dense(self) -> bool:
        return True

    def __str__(self) -> str:
        return ""


@dataclass(frozen=True)
class _Share(Structure):
    """A structure told by its share of zeros alone."""

    percent: float

    def __post_init__(self) -> None:
        _aim(self.percent)

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls(_percent(match[1]))


@dataclass(frozen=True)
class Unstructured(_Share):
    """Any positions; `percent` of them zero (a target for pruning, the mask is what counts)."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"s(\d+(?:\.\d+)?)")
    form: ClassVar[str] = "sP (P percent zeros anywhere)"
    example: ClassVar[str] = "s90"

    def __str__(self) -> str:
        return f"s{self.percent:g}"


@dataclass(frozen=True)
class NM(Structure):
    """At most N kept of every M consecutive inputs of a row (the last group of a row may be shorter)."""

    n: int
    m: int
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"s(\d+):(\d+)")
    form: ClassVar[str] = "sN:M (N kept of every M inputs)"
    example: ClassVar[str] = "s2:4"

    def __post_init__(self) -> None:
        if not 1 <= self.n < self.m:
            raise SchemeError(f"{self.n}:{self.m} needs 1 <= N < M")
        if self.m > 1024:
            raise SchemeError(f"M = {self.m} is too large; at most 1024 is allowed")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls(int(match[1]), int(match[2]))

    def check_mask(self, block_mask: np.ndarray, cols: int) -> None:
        groups = -(-cols // self.m)
        padded = np.zeros((block_mask.shape[0], groups * self.m), bool)
        padded[:, :cols] = block_mask
        kept = padded.reshape(-1, groups, self.m).sum(2)
        if kept.max(initial=0) > self.n:
            row, group = (int(v) for v in np.unravel_index(int(kept.argmax()), kept.shape))
            raise WeightError(
                f"keep-mask is not {self.n}:{self.m}: row {row}, inputs {group * self.m} to "
                f"{min(cols, (group + 1) * self.m) - 1} keep {int(kept[row, group])} values; "
                f"at most {self.n} are allowed. Prune to {self} first"
            )

    def __str__(self) -> str:
        return f"s{self.n}:{self.m}"


@dataclass(frozen=True)
class FanIn(_Share):
    """The same number of values in every row, anywhere in it; `percent` of them zero.

    Constant fan-in: M. Lasby et al., "Dynamic Sparse Training with Structured Sparsity" (SRigL), 2023.
    """

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"sf(\d+(?:\.\d+)?)")
    form: ClassVar[str] = "sfP (constant fan-in: P percent zeros in every row)"
    example: ClassVar[str] = "sf90"

    def kept(self, cols: int) -> int:
        """Values of a row that pruning keeps, at least one."""
        return max(1, cols - round(cols * self.percent / 100))

    def check_mask(self, block_mask: np.ndarray, cols: int) -> None:
        counts = block_mask.sum(1)
        if counts.min() != counts.max():
            few, many = int(counts.argmin()), int(counts.argmax())
            raise WeightError(
                f"keep-mask has no constant fan-in: row {few} keeps {int(counts[few])} of {cols} values, row {many} "
                f"{int(counts[many])}; all rows must keep as many. Prune to {self} first"
            )

    def stored(self, nonzero: np.ndarray) -> np.ndarray:
        # Rows with fewer values than the fullest store some of their zeros.
        first = np.argsort(~nonzero, axis=1, kind="stable")[:, : int(nonzero.sum(1).max())]
        mask = np.zeros_like(nonzero)
        np.put_along_axis(mask, first, True, 1)
        return mask

    def __str__(self) -> str:
        return f"sf{self.percent:g}"


@dataclass(frozen=True)
class Block(Structure):
    """Blocks of R outputs x C inputs kept or dropped together; `percent` of the blocks zero."""

    r: int
    c: int
    percent: float
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"s(\d+)x(\d+)@(\d+(?:\.\d+)?)")
    form: ClassVar[str] = "sRxC@P (blocks of R outputs x C inputs, P percent zeros)"
    example: ClassVar[str] = "s16x1@50"

    def __post_init__(self) -> None:
        if not (1 <= self.r <= 256 and 1 <= self.c <= 256):
            raise SchemeError(f"block {self.r}x{self.c} is out of range; R and C are 1 to 256")
        if self.r == self.c == 1:
            raise SchemeError(f"blocks of 1x1 are unstructured; write s{self.percent:g}")
        _aim(self.percent)

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls(int(match[1]), int(match[2]), _percent(match[3]))

    @property
    def block(self) -> tuple[int, int]:
        return (self.r, self.c)

    def __str__(self) -> str:
        return f"s{self.r}x{self.c}@{self.percent:g}"


DENSE = Dense()
STRUCTURES: tuple[type[Structure], ...] = (Dense, Unstructured, NM, FanIn, Block)
"""Every structure the grammar knows; the parser tries them in this order."""
