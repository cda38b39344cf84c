"""What a codec is: a token's syntax, how values are rounded to codes, and what the codes mean."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from typing import ClassVar, Self, TypeVar

from sparsec.formats.meaning import AffineValue, Meaning, TableValue, VectorValue
from sparsec.formats.row_stream import Coded, RowStream
from sparsec.formats.scales import Scales

__all__ = ["Codec", "register", "registered"]


class Codec(ABC):
    """How a stored value is represented. Frozen, hashable, printed as its token.

    A codec only says what its codes mean (`meaning`) and how to choose them (`encode`): decoding in numpy, in ONNX operators and
    in kernels, the arrays that are stored and their sizes all follow from the meaning.
    """

    pattern: ClassVar[re.Pattern[str]]
    """Syntax of the token, matched whole; no token may match two codecs. `from_match` raises SchemeError out of range."""
    forms: ClassVar[str]
    example: ClassVar[str]
    tokens: ClassVar[tuple[str, ...]]
    """Common tokens: for did-you-mean, and what the tests of every codec go through."""
    default_scales: ClassVar[Scales]
    legal_scales: ClassVar[tuple[str, ...]]

    @classmethod
    @abstractmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        """Build from a match of `pattern`; raises SchemeError saying what is allowed."""

    @property
    @abstractmethod
    def code_bits(self) -> int:
        """Bits of a code (at most 32), or 0 when values are stored as they are (float codecs)."""

    @property
    @abstractmethod
    def meaning(self) -> Meaning:
        """What a code stands for."""

    @abstractmethod
    def encode(self, stream: RowStream) -> Coded:
        """Round the stream's values to this codec, data-free."""

    @property
    def dim(self) -> int:
        """Consecutive stored values of a row that one code stands for."""
        return self.meaning.dim

    @property
    def top_code(self) -> int:
        """The largest code that is used; smaller ones all are."""
        return (1 << self.code_bits) - 1

    @property
    def has_zero_points(self) -> bool:
        """True when every scale has a zero point beside it."""
        meaning = self.meaning
        return isinstance(meaning, AffineValue) and meaning.offset is None

    @property
    def has_codebook(self) -> bool:
        """True when a learned table is stored with the weight."""
        meaning = self.meaning
        return isinstance(meaning, VectorValue) or (isinstance(meaning, TableValue) and meaning.levels is None)

    @property
    def free_table(self) -> bool:
        """True when the entries of a learned table may be any numbers, so that they can be fitted to data."""
        return True

    def scope_count(self, rows: int, cols: int) -> int:
        """Number of stored tables for W[rows, cols]; 0 without codebook."""
        meaning = self.meaning
        return meaning.scope.count(rows, cols) if isinstance(meaning, TableValue | VectorValue) else 0


_FOUND: list[type[Codec]] = []
C = TypeVar("C", bound=type[Codec])


def register(codec: C) -> C:
    """Class decorator: the grammar, the tests and every decoder know the codec from here on."""
    _FOUND.append(codec)
    return codec


def registered() -> tuple[type[Codec], ...]:
    """All codecs registered so far."""
    return tuple(_FOUND)
