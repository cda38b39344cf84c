"""cb1..cb8: learned scalar codebooks."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np

from sparsec.errors import SchemeError
from sparsec.formats.codec_base import Codec, register
from sparsec.formats.kmeans import assign, kmeans_1d
from sparsec.formats.meaning import Scope, ScopeKind, TableValue
from sparsec.formats.row_stream import Coded, RowStream, divide
from sparsec.formats.scales import NO_SCALES, Scales

__all__ = ["Codebook"]

# Times the codebook and the scales are fitted in turn, without and with importance.
_ROUNDS, _MORE_ROUNDS = 3, 6
# Tables of two bits that are mirrored need no products with int8 activations (codegen/kernels/bit_gemv.py); weights mostly are as often
# positive as negative, so they lose next to nothing. Of the error, at most:
_MIRROR_LOSS = 0.002


@register
@dataclass(frozen=True)
class Codebook(Codec):
    """Learned scalar codebook of 2**bits fp32 entries; one per tensor, per `span` rows, or per `span` inputs."""

    bits: int
    scope: ScopeKind = "tensor"
    span: int = 0
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"cb(\d+)" + Scope.SYNTAX)
    forms: ClassVar[str] = "cb1..cb8 (codebook per tensor), cbB.rROWS (per ROWS outputs), cbB.iCOLS (per COLS inputs)"
    example: ClassVar[str] = "cb4.r16-c"
    tokens: ClassVar[tuple[str, ...]] = tuple(f"cb{b}" for b in range(1, 9))
    default_scales: ClassVar[Scales] = NO_SCALES
    legal_scales: ClassVar[tuple[str, ...]] = ("none", "tensor", "channel", "group")

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SchemeError(f"a codebook of {self.bits} bits is not supported; 1 to 8 are")
        Scope(self.scope, self.span)  # refuses a span that does not go with the scope

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        scope = Scope.parse(match[2], match[3])
        return cls(int(match[1]), scope.kind, scope.span)

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def meaning(self) -> TableValue:
        return TableValue(self.bits, None, Scope(self.scope, self.span))

    def encode(self, stream: RowStream) -> Coded:
        if stream.scales.kind == "none":
            codes, codebook, _ = self._fit(stream, stream.values, None)
            return Coded(codes, None, None, codebook)
        shared = stream.shared(stream.values)
        largest = np.abs(shared).max(2)
        if stream.importance is None:
            return self._alternated(stream, shared, largest, _ROUNDS)[0]
        # Rows with outliers want the scale of their bulk, others that of their largest value.
        typical = np.sqrt(np.square(shared, dtype=np.float64).mean(2))
        first, second = (self._alternated(stream, shared, start, _MORE_ROUNDS) for start in (largest, typical))
        return (first if first[1] <= second[1] else second)[0]

    def _alternated(self, stream: RowStream, shared: np.ndarray, start: np.ndarray, rounds: int) -> tuple[Coded, float]:
        """Codebook and scales fitted in turn from the scales `start`, and the squared error."""
        counts = None if stream.importance is None else stream.shared(stream.importance)
        scales = stream.stored_scales(start)
        best, best_error = None, np.inf
        for _ in range(rounds):
            # Values are fitted relative to their scale, so an error counts scale**2 times in the weight itself.
            square = np.square(scales.astype(np.float32) / max(float(np.abs(scales).max(initial=0)), 1e-38))
            mass = stream.unshared(np.broadcast_to(square[:, :, None], shared.shape))
            if stream.importance is not None:
                mass = mass * stream.importance
            codes, codebook, levels = self._fit(stream, stream.unshared(divide(shared, scales)), mass)
            level = stream.shared(levels).astype(np.float64)
            off = np.square(level * scales.astype(np.float64)[:, :, None] - shared)
            error = float(off.sum() if counts is None else (off * counts).sum())
            if not error < best_error and best is not None:
                break
            best, best_error = Coded(codes, scales, None, codebook), error
            # With the levels fixed, least squares gives better scales than the largest value.
            counted = level if counts is None else level * counts
            norms = np.square(level).sum(2) if counts is None else (level * counted).sum(2)
            found = np.where(norms > 0, (counted * shared).sum(2) / np.where(norms > 0, norms, 1), scales)
            scales = stream.stored_scales(np.clip(found, -65504, 65504) if stream.scales.kind == "group" else found)
        assert best is not None
        return best, best_error

    def _fit(
        self, stream: RowStream, values: np.ndarray, mass: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Codes, codebook [S, 2**bits] and levels (codebook[code], 0 where nothing is stored) of weighted values [rows, L]."""
        weights = mass if mass is not None else stream.importance
        if stream.valid is not None and stream.importance is None:
            valid = stream.valid.astype(np.float32)
            weights = valid if mass is None else mass * valid
        codes, levels = np.zeros(values.shape, np.uint8), np.zeros(values.shape, np.float32)
        count = self.scope_count(stream.rows, stream.cols)
        codebook = np.zeros((count, 1 << self.bits), np.float32)
        columns = np.broadcast_to(stream.columns, values.shape) if self.scope == "inputs" else None
        for index in range(count):
            part: tuple[slice, slice] | np.ndarray
            if self.scope == "rows":
                part = (slice(index * self.span, (index + 1) * self.span), slice(None))
            elif columns is not None:
                part = columns // self.span == index
            else:
                part = (slice(None), slice(None))
            chosen = values[part]
            codebook[index] = kmeans_1d(
                chosen.reshape(-1),
                1 << self.bits,
                None if weights is None else weights[part].reshape(-1),
                exact=stream.importance is not None,
                mirror_loss=_MIRROR_LOSS if self.bits == 2 else 0,
            )
            codes[part] = assign(chosen, codebook[index])
            levels[part] = codebook[index][codes[part]]
        if stream.valid is not None:
            levels[~stream.valid] = 0
        return codes, codebook, levels

    def __str__(self) -> str:
        return f"cb{self.bits}{Scope(self.scope, self.span)}"
