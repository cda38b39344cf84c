"""Codecs: how one stored value is represented. Each class is the whole of its codec: syntax, bits, numpy encode and
decode, ONNX body.

`encode` sees a row stream (`RowStream`) and never a structure. `decode` and `onnx_decode` are the same elementwise
formula, once in numpy and once in ONNX operators. A new codec is one class here, listed in `CODECS`.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, Self, TypeVar

import numpy as np

from sparsec.errors import SchemeError, WeightError
from sparsec.formats.kmeans import assign, kmeans_1d
from sparsec.formats.scales import CHANNEL, NO_SCALES, Scales

if TYPE_CHECKING:
    import onnx_ir as ir

    from sparsec.onnx_body import Body

__all__ = ["CODECS", "Affine", "Codebook", "Codec", "Coded", "Float", "RowStream", "Side", "Ternary"]


@dataclass(frozen=True, eq=False)
class RowStream:
    """What a codec encodes: stored values side by side in each row.

    values: float32 [rows, L], 0 where not valid. valid: bool [rows, L] or None for all. columns: int32 input index of
    each value, broadcastable to values. rows, cols: N, K (the stream may have more rows: N rounded up to a block).
    scales: which values share a scale.
    """

    values: np.ndarray
    valid: np.ndarray | None
    columns: np.ndarray
    rows: int
    cols: int
    scales: Scales

    def shared(self, array: np.ndarray) -> np.ndarray:
        """View [A, G, n]: the n values that share scale (a, g). Padded with zeros (False) to whole groups."""
        rows, length = array.shape
        if self.scales.kind in ("tensor", "none"):
            return array.reshape(1, 1, -1)
        if self.scales.kind == "channel":
            return array[:, None, :]
        groups = -(-length // self.scales.group)
        if length % self.scales.group:
            padded = np.zeros((rows, groups * self.scales.group), array.dtype)
            padded[:, :length] = array
            array = padded
        return array.reshape(rows, groups, self.scales.group)

    def unshared(self, array: np.ndarray) -> np.ndarray:
        """Inverse of `shared`: [rows, L]."""
        rows, length = self.values.shape
        if self.scales.kind in ("tensor", "none"):
            return array.reshape(rows, length)
        return array.reshape(rows, -1)[:, :length]

    def stored_scales(self, scales: np.ndarray) -> np.ndarray:
        """Scales [A, G] rounded to what is stored; codes are chosen for the rounded ones, so decoding is exact."""
        if self.scales.kind != "group":
            return scales.astype(np.float32)
        if scales.size and float(np.abs(scales).max()) > 65504.0:
            raise WeightError(
                f"a group scale of {float(np.abs(scales).max()):.4g} does not fit fp16 (at most 65504); "
                "use channel scales (c) for this weight"
            )
        return scales.astype(np.float16)


@dataclass(frozen=True, eq=False)
class Coded:
    """What a codec made of a row stream: codes [rows, L] and its side arrays."""

    codes: np.ndarray
    scales: np.ndarray | None = None
    zero_points: np.ndarray | None = None
    codebook: np.ndarray | None = None


T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Side(Generic[T]):
    """What decoding needs beside the codes, as arrays or graph values; None where there is none."""

    scale: T | None = None
    zero_point: T | None = None
    codebook: T | None = None
    scope: T | None = None
    """Index of the codebook that a code refers to; None when there is only one."""


def _divide(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """values [A, G, n] / scales [A, G], 0 where the scale is 0."""
    wide = scales.astype(np.float32)[:, :, None]
    safe = np.where(wide == 0, np.float32(1), wide)
    return np.where(wide == 0, np.float32(0), values / safe)


class Codec(ABC):
    """How a stored value is represented. Frozen, hashable, printed as its token."""

    pattern: ClassVar[re.Pattern[str]]
    """Loose syntax of the token; `from_match` raises SchemeError for values out of range."""
    forms: ClassVar[str]
    example: ClassVar[str]
    tokens: ClassVar[tuple[str, ...]]
    """Common tokens, for did-you-mean."""
    default_scales: ClassVar[Scales]
    legal_scales: ClassVar[tuple[str, ...]]
    has_codebook: ClassVar[bool] = False

    @classmethod
    @abstractmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        """Build from a match of `pattern`; raises SchemeError saying what is allowed."""

    @property
    def code_bits(self) -> int:
        """Bits of a code, or 0 when values are stored as they are (float codecs)."""
        return 0

    @property
    @abstractmethod
    def value_bits(self) -> int:
        """Bits of one stored value."""

    @property
    def has_zero_points(self) -> bool:
        """True when every scale has a zero point beside it."""
        return False

    @abstractmethod
    def encode(self, stream: RowStream) -> Coded:
        """Round the stream's values to this codec, data-free."""

    @abstractmethod
    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        """float32 values of codes; scale (float32), zero point (uint8) and scope (int) broadcast to codes."""

    @abstractmethod
    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        """`decode` in ONNX operators: codes uint8 (float codecs: their floats), scale float32, scope int64."""

    def scope_count(self, rows: int, cols: int) -> int:
        """Number of codebooks for W[rows, cols]; 0 without codebook."""
        del rows, cols
        return 0


@dataclass(frozen=True)
class Float(Codec):
    """Values as they are, in fp32 or fp16."""

    width: Literal[16, 32]
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"fp(\d+)")
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
    def value_bits(self) -> int:
        return self.width

    def encode(self, stream: RowStream) -> Coded:
        if self.width == 32:
            return Coded(stream.values)
        peak = float(np.abs(stream.values).max(initial=0))
        if peak > 65504.0:
            raise WeightError(f"a value of magnitude {peak:.4g} does not fit fp16 (at most 65504); use fp32")
        return Coded(stream.values.astype(np.float16))

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        return codes.astype(np.float32)

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        return body.cast(codes, "FLOAT")

    def __str__(self) -> str:
        return f"fp{self.width}"


@dataclass(frozen=True)
class Affine(Codec):
    """Integers times a scale: symmetric (intB, stored as q + 2**(B-1)) or with a zero point (uintB)."""

    bits: Literal[2, 4, 8]
    unsigned: bool
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"(u?)int(\d+)")
    forms: ClassVar[str] = "int8 int4 int2 (symmetric), uint8 uint4 uint2 (with zero point)"
    example: ClassVar[str] = "int4-g32"
    tokens: ClassVar[tuple[str, ...]] = ("int8", "int4", "int2", "uint8", "uint4", "uint2")
    default_scales: ClassVar[Scales] = CHANNEL
    legal_scales: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")

    def __post_init__(self) -> None:
        if self.bits not in (2, 4, 8):
            raise SchemeError(f"{self.bits} bits are not supported by affine codecs; 2, 4 and 8 are")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls(int(match[2]), match[1] == "u")  # type: ignore[arg-type]

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def value_bits(self) -> int:
        return self.bits

    @property
    def has_zero_points(self) -> bool:
        return self.unsigned

    def encode(self, stream: RowStream) -> Coded:
        values = stream.shared(stream.values)
        if not self.unsigned:
            top = (1 << (self.bits - 1)) - 1
            scales = stream.stored_scales(np.abs(values).max(2) / np.float32(top))
            q = np.clip(np.rint(_divide(values, scales)), -top - 1, top) + np.float32(top + 1)
            return Coded(stream.unshared(q.astype(np.uint8)), scales)
        levels = np.float32((1 << self.bits) - 1)
        low, high = np.minimum(values.min(2), 0), np.maximum(values.max(2), 0)
        # Divided before subtracting: the whole range of extreme weights may not fit fp32.
        scales = stream.stored_scales((high / levels) - (low / levels))
        zeros = np.clip(np.rint(-_divide(low[:, :, None], scales)), 0, levels)
        q = np.clip(np.rint(_divide(values, scales)) + zeros, 0, levels)
        return Coded(stream.unshared(q.astype(np.uint8)), scales, zeros[:, :, 0].astype(np.uint8))

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        assert side.scale is not None
        middle = np.float32(1 << (self.bits - 1))
        offset = middle if side.zero_point is None else side.zero_point.astype(np.float32)
        return np.asarray((codes.astype(np.float32) - offset) * side.scale)

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        middle = body.float_const(1 << (self.bits - 1))
        offset = middle if side.zero_point is None else body.cast(side.zero_point, "FLOAT")
        return body.op("Mul", body.op("Sub", body.cast(codes, "FLOAT"), offset), side.scale)

    def __str__(self) -> str:
        return f"{'u' if self.unsigned else ''}int{self.bits}"


@dataclass(frozen=True)
class Codebook(Codec):
    """Learned scalar codebook of 2**bits fp32 entries; one per tensor, per `span` rows, or per `span` inputs."""

    bits: int
    scope: Literal["tensor", "rows", "inputs"] = "tensor"
    span: int = 0
    pattern: ClassVar[re.Pattern[str]] = re.compile(r"cb(\d+)(?:\.([ri])(\d+))?")
    forms: ClassVar[str] = "cb1..cb8 (codebook per tensor), cbB.rROWS (per ROWS outputs), cbB.iCOLS (per COLS inputs)"
    example: ClassVar[str] = "cb4.r16-c"
    tokens: ClassVar[tuple[str, ...]] = tuple(f"cb{b}" for b in range(1, 9))
    default_scales: ClassVar[Scales] = NO_SCALES
    legal_scales: ClassVar[tuple[str, ...]] = ("none", "tensor", "channel", "group")
    has_codebook: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 8:
            raise SchemeError(f"a codebook of {self.bits} bits is not supported; 1 to 8 are")
        if (self.scope == "tensor") != (self.span == 0) or self.span < 0:
            raise SchemeError("a codebook scope of rows or inputs needs a span of at least 1")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        if match[2] is None:
            return cls(int(match[1]))
        return cls(int(match[1]), "rows" if match[2] == "r" else "inputs", int(match[3]))

    @property
    def code_bits(self) -> int:
        return self.bits

    @property
    def value_bits(self) -> int:
        return self.bits

    def scope_count(self, rows: int, cols: int) -> int:
        return {"tensor": 1, "rows": -(-rows // max(self.span, 1)), "inputs": -(-cols // max(self.span, 1))}[self.scope]

    def encode(self, stream: RowStream) -> Coded:
        scales, values = None, stream.values
        weights: np.ndarray | None = None if stream.valid is None else stream.valid.astype(np.float32)
        if stream.scales.kind != "none":
            # Values are fitted relative to their scale, so an error counts scale**2 times in the weight itself.
            shared = stream.shared(values)
            scales = stream.stored_scales(np.abs(shared).max(2))
            values = stream.unshared(_divide(shared, scales))
            if stream.scales.kind != "tensor":
                square = np.square(scales.astype(np.float32) / max(float(scales.max(initial=0)), 1e-38))
                spread = stream.unshared(np.broadcast_to(square[:, :, None], shared.shape))
                weights = spread if weights is None else spread * weights
        codes = np.zeros(values.shape, np.uint8)
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
                chosen.reshape(-1), 1 << self.bits, None if weights is None else weights[part].reshape(-1)
            )
            codes[part] = assign(chosen, codebook[index])
        return Coded(codes, scales, None, codebook)

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        assert side.codebook is not None
        values: np.ndarray = side.codebook[0][codes] if side.scope is None else side.codebook[side.scope, codes]
        return values if side.scale is None else np.asarray(values * side.scale)

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        index = body.cast(codes, "INT64")
        if side.scope is not None:
            index = body.op("Add", index, body.op("Mul", side.scope, body.int_const(1 << self.bits)))
        flat = body.op("Reshape", side.codebook, body.ints_const([-1]))
        values = body.op("Gather", flat, index, axis=0)
        return values if side.scale is None else body.op("Mul", values, side.scale)

    def __str__(self) -> str:
        suffix = {"tensor": "", "rows": f".r{self.span}", "inputs": f".i{self.span}"}[self.scope]
        return f"cb{self.bits}{suffix}"


@dataclass(frozen=True)
class Ternary(Codec):
    """-1, 0 or 1 times a scale, 2-bit codes.

    Threshold and scale follow TWN (F. Li et al., "Ternary Weight Networks", 2016).
    """

    pattern: ClassVar[re.Pattern[str]] = re.compile(r"ternary")
    forms: ClassVar[str] = "ternary (-1, 0, 1 times a scale)"
    example: ClassVar[str] = "ternary-g64"
    tokens: ClassVar[tuple[str, ...]] = ("ternary",)
    default_scales: ClassVar[Scales] = CHANNEL
    legal_scales: ClassVar[tuple[str, ...]] = ("tensor", "channel", "group")

    @classmethod
    def from_match(cls, match: re.Match[str]) -> Self:
        return cls()

    @property
    def code_bits(self) -> int:
        return 2

    @property
    def value_bits(self) -> int:
        return 2

    def encode(self, stream: RowStream) -> Coded:
        values = stream.shared(stream.values)
        size = np.abs(values)
        total = size.sum(2, dtype=np.float64)
        valid = np.ones(stream.values.shape, bool) if stream.valid is None else stream.valid
        count = stream.shared(valid).sum(2)
        threshold = (0.7 * total / np.maximum(count, 1)).astype(np.float32)[:, :, None]
        kept = size > threshold
        mean = np.where(kept, size, 0).sum(2, dtype=np.float64) / np.maximum(kept.sum(2), 1)
        codes = np.where(kept, np.sign(values), 0) + 1
        return Coded(stream.unshared(codes.astype(np.uint8)), stream.stored_scales(mean))

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        assert side.scale is not None
        return np.asarray((codes.astype(np.float32) - np.float32(1)) * side.scale)

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        return body.op("Mul", body.op("Sub", body.cast(codes, "FLOAT"), body.float_const(1)), side.scale)

    def __str__(self) -> str:
        return "ternary"


CODECS: tuple[type[Codec], ...] = (Float, Affine, Codebook, Ternary)
"""Every codec the grammar knows; the parser tries them in this order."""
