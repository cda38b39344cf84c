"""vq<bits>d<dim>: learned codebooks of vectors, `dim` neighbouring inputs of a row per code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar, Literal, Self

import numpy as np

from sparsec.errors import SchemeError, WeightError
from sparsec.formats.codec_base import Codec, register
from sparsec.formats.kmeans_vectors import cluster_means, kmeans_vectors, nearest_vectors
from sparsec.formats.layout import code_dtype
from sparsec.formats.meaning import WHOLE, Scope, VectorValue
from sparsec.formats.row_stream import Coded, RowStream, divide
from sparsec.formats.scales import CHANNEL, NO_SCALES, Scales

__all__ = ["Vector"]

_STAGE_BITS = 12
_ROUNDS = 3  # of fitting every stage to what the others leave


@register
@dataclass(frozen=True)
class Vector(Codec):
    """`bits` bits a weight: dims * bits bits for `dims` inputs, split into additive stages (by default the fewest of at most 8 bits).

    Every table is found by k-means on what the stages before it leave, each vector weighted by the squares of its scales; then the
    stages are fitted in turn to what all others leave. Scopes as in scalar codebooks.
    """

    bits: int
    dims: int
    stages: int
    scope: Scope = WHOLE
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"vq(\d+)d(\d+)(?:\.x(\d+))?" + Scope.SYNTAX)
    entry: ClassVar[Literal["float16", "int8"]] = "float16"
    top: ClassVar[float] = 1.0
    """The largest value after division by its scale."""
    forms: ClassVar[str] = (
        "vqBdD (codebook of vectors: B bits a weight, D = 2, 4 or 8 inputs a code), .xS (S stages), .rROWS, .iCOLS"
    )
    example: ClassVar[str] = "vq2d4"
    tokens: ClassVar[tuple[str, ...]] = (
        "vq2d4",
        "vq1d8",
        "vq2d2",
        "vq2d8",
        "vq3d4",
        "vq2d4.x2",
        "vq2d2.r4",
        "vq2d4.x2.i8",
    )
    default_scales: ClassVar[Scales] = NO_SCALES
    legal_scales: ClassVar[tuple[str, ...]] = ("none", "tensor", "channel", "group")

    def __post_init__(self) -> None:
        if self.dims not in (2, 4, 8):
            raise SchemeError(f"vectors of {self.dims} inputs are not supported; 2, 4 and 8 are")
        total = self.bits * self.dims
        if not 1 <= self.bits <= 8 or total > 32:
            raise SchemeError(f"{total} bits a code are not supported; 1 to 8 bits a weight and at most 32 a code are")
        if self.stages < 1 or total % self.stages or total // self.stages > _STAGE_BITS:
            fitting = [s for s in range(1, total + 1) if total % s == 0 and total // s <= _STAGE_BITS]
            names = ", ".join(f".x{s}" for s in fitting[:4])
            raise SchemeError(
                f"{total} bits do not split into {self.stages} equal stages of at most {_STAGE_BITS} bits; try {names}"
            )
        if self.scope.kind == "inputs" and self.scope.span % self.dims:
            raise SchemeError(f"a codebook for {self.scope.span} inputs does not hold whole vectors of {self.dims}")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        bits, dims = int(match[1]), int(match[2])
        stages = cls._default_stages(bits, dims) if match[3] is None else int(match[3])
        return cls(bits, dims, stages, Scope.parse(match[4], match[5]))

    @staticmethod
    def _default_stages(bits: int, dims: int) -> int:
        """The fewest equal stages of at most 8 bits."""
        total = max(1, bits * dims)
        return next(s for s in range(1, total + 1) if total % s == 0 and total // s <= 8)

    @property
    def code_bits(self) -> int:
        return self.bits * self.dims

    @property
    def meaning(self) -> VectorValue:
        return VectorValue(self.code_bits // self.stages, self.dims, self.stages, self.scope, self.entry)

    def encode(self, stream: RowStream) -> Coded:
        rows, length = stream.values.shape
        width = -(-length // self.dims)
        scales, values = None, stream.values
        # An error counts as often as its scale squared; a vector without stored values does not count.
        weights = np.ones((rows, length), np.float32) if stream.valid is None else stream.valid.astype(np.float32)
        if stream.importance is not None:
            weights = stream.importance
        if stream.scales.kind != "none":
            shared = stream.shared(values)
            scales = stream.stored_scales(self._size(stream, shared) / np.float32(self.top))
            values = stream.unshared(divide(shared, scales))
            square = np.square(scales.astype(np.float32) / max(float(scales.max(initial=0)), 1e-38))
            weights = weights * stream.unshared(np.broadcast_to(square[:, :, None], shared.shape))
        vectors = _padded(values, width * self.dims).reshape(rows, width, self.dims)
        mass = _padded(weights, width * self.dims).reshape(rows, width, self.dims)
        if stream.importance is None:
            mass = mass.mean(2)
        meaning = self.meaning
        count = self.scope.count(stream.rows, stream.cols)
        codebook = np.zeros((count, self.stages, 1 << meaning.bits, self.dims), self.entry)
        codes = np.zeros((rows, width), code_dtype(self.code_bits))
        for index in range(count):
            part = self._part(stream, index, rows, width)
            codebook[index], codes[part] = self._fit(vectors[part], mass[part])
        return Coded(codes, scales, None, codebook)

    def _size(self, stream: RowStream, shared: np.ndarray) -> np.ndarray:
        """What the values [A, G, n] that share a scale are divided by, [A, G]."""
        if stream.importance is None or stream.scales.kind == "group" or self.entry == "int8":
            return np.asarray(np.abs(shared).max(2))
        # Of many values the largest says little about the others.
        valid = np.ones(stream.values.shape, bool) if stream.valid is None else stream.valid
        count = np.maximum(stream.shared(valid).sum(2), 1)
        return np.asarray(np.sqrt(np.square(shared, dtype=np.float64).sum(2) / count))

    def _part(self, stream: RowStream, index: int, rows: int, width: int) -> np.ndarray:
        """Which vectors codebook `index` serves, bool [rows, width]."""
        part = np.ones((rows, width), bool)
        span = self.scope.span
        if self.scope.kind == "rows":
            last = index == self.scope.count(stream.rows, stream.cols) - 1
            number = np.arange(rows) // span
            part &= ((number >= index) if last else (number == index))[:, None]
        elif self.scope.kind == "inputs":
            part &= stream.columns[:, :: self.dims] // span == index
        return part

    def _fit(self, vectors: np.ndarray, mass: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Tables [stages, entries, dim] and codes [n] of vectors [n, dim]; mass is [n] or [n, dim]."""
        bits, stages = self.meaning.bits, self.stages
        peak = float(np.abs(vectors).max(initial=0))
        if peak > 65504.0:
            raise WeightError(f"a value of magnitude {peak:.4g} does not fit an fp16 codebook; use channel scales (c)")
        tables = np.zeros((stages, 1 << bits, self.dims), self.entry)
        labels = np.zeros((stages, len(vectors)), np.int32)

        def entries(stage: int) -> np.ndarray:
            return np.asarray(tables[stage].astype(np.float32)[labels[stage]])

        # what the other stages leave; one stage alone has all of it
        rest = vectors.copy() if stages > 1 else vectors
        for stage in range(stages):
            tables[stage] = self._rounded(kmeans_vectors(rest, 1 << bits, mass))
            labels[stage] = nearest_vectors(rest, tables[stage].astype(np.float32), mass)
            if stages > 1:
                rest -= entries(stage)
        for _ in range(_ROUNDS if stages > 1 else 1):
            for stage in range(stages):
                if stages > 1:
                    rest += entries(stage)
                tables[stage] = self._rounded(cluster_means(rest, mass, labels[stage], tables[stage]))
                labels[stage] = nearest_vectors(rest, tables[stage].astype(np.float32), mass)
                if stages > 1:
                    rest -= entries(stage)
        codes = np.zeros(len(vectors), code_dtype(self.code_bits))
        for stage in range(stages):
            codes |= labels[stage].astype(codes.dtype) << codes.dtype.type(stage * bits)
        return tables, codes

    def _rounded(self, table: np.ndarray) -> np.ndarray:
        return table.astype(np.float16)

    def _stem(self) -> str:
        stages = "" if self.stages == self._default_stages(self.bits, self.dims) else f".x{self.stages}"
        return f"vq{self.bits}d{self.dims}{stages}"

    def __str__(self) -> str:
        return f"{self._stem()}{self.scope}"


@register
@dataclass(frozen=True)
class ByteVector(Vector):
    """`Vector` with int8 entries: half the table. The scales, which it always has, are those of the entries."""

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"vq(\d+)d(\d+)(?:\.x(\d+))?\.q8" + Scope.SYNTAX)
    forms: ClassVar[str] = "vqBdD.q8 (int8 entries; .xS before, .rROWS or .iCOLS after it)"
    example: ClassVar[str] = "vq2d4.q8"
    tokens: ClassVar[tuple[str, ...]] = ("vq2d4.q8", "vq3d4.q8.r4")
    entry: ClassVar[Literal["float16", "int8"]] = "int8"
    top: ClassVar[float] = 127.0
    default_scales: ClassVar[Scales] = CHANNEL
    legal_scales: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")

    def _rounded(self, table: np.ndarray) -> np.ndarray:
        return np.asarray(np.clip(np.rint(table), -127, 127).astype(np.int8))

    def __str__(self) -> str:
        return f"{self._stem()}.q8{self.scope}"


def _padded(values: np.ndarray, length: int) -> np.ndarray:
    if values.shape[1] == length:
        return values
    result = np.zeros((len(values), length), np.float32)
    result[:, : values.shape[1]] = values
    return result
