"""What a code stands for: the small vocabulary every codec is written in, and all that decoders have to know.

    float    the code is the value                              fp32 fp16
    affine   (code - offset) * scale                            int8, uint4 (offset = the zero point), ternary
    table    table[code] * scale                                cb4 (learned, stored), nf4, fp8 (constants, cost nothing)
    vector   sum over stages of table[stage][code] * scale      vq2d4: `dim` values per code

Each word decodes itself in numpy (`decode`) and in ONNX operators (`onnx_decode`); code generators have one branch a word.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Generic, Literal, TypeVar

import numpy as np

from sparsec.errors import SchemeError

if TYPE_CHECKING:
    import onnx_ir as ir

    from sparsec.onnx_body import Body

__all__ = ["WHOLE", "AffineValue", "FloatValue", "Meaning", "Scope", "ScopeKind", "Side", "TableValue", "VectorValue"]

T = TypeVar("T")
ScopeKind = Literal["tensor", "rows", "inputs"]


@dataclass(frozen=True, eq=False)
class Side(Generic[T]):
    """What decoding needs beside the codes, as arrays or graph values; None where there is none.

    All but `codebook` broadcast to the codes. scale: float32. zero_point: uint8. codebook: float32 `[S, entries]` or
    `[S, stages, entries, dim]`. scope: index of the codebook a code refers to, None when there is only one.
    """

    scale: T | None = None
    zero_point: T | None = None
    codebook: T | None = None
    scope: T | None = None


@dataclass(frozen=True)
class Scope:
    """Which part of a weight shares a table: all of it, every `span` output rows, or every `span` inputs."""

    kind: ScopeKind = "tensor"
    span: int = 0

    def __post_init__(self) -> None:
        if (self.kind == "tensor") != (self.span == 0) or self.span < 0:
            raise SchemeError("a codebook scope of rows or inputs needs a span of at least 1")

    def count(self, rows: int, cols: int) -> int:
        """Number of tables of W[rows, cols]."""
        if self.kind == "tensor":
            return 1
        return -(-(rows if self.kind == "rows" else cols) // self.span)

    @classmethod
    def parse(cls, letter: str | None, span: str | None) -> Scope:
        """From the two groups of `SYNTAX`."""
        return cls() if letter is None else cls("rows" if letter == "r" else "inputs", int(span or 0))

    SYNTAX: ClassVar[str] = r"(?:\.([ri])(\d+))?"
    """Regular expression of the token's ending: nothing, .rROWS or .iCOLS."""

    def __str__(self) -> str:
        return {"tensor": "", "rows": f".r{self.span}", "inputs": f".i{self.span}"}[self.kind]


WHOLE = Scope()


@dataclass(frozen=True)
class FloatValue:
    """The code is the value, a float of `width` bits."""

    width: Literal[16, 32]
    dim: ClassVar[int] = 1

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        """float32 values of codes."""
        del side
        return codes.astype(np.float32)

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        """`decode` in ONNX operators."""
        del side
        return body.cast(codes, "FLOAT")


@dataclass(frozen=True)
class AffineValue:
    """(code - offset) * scale; an offset of None is a zero point stored beside every scale."""

    offset: int | None
    dim: ClassVar[int] = 1

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        """float32 values of uint8 codes."""
        assert side.scale is not None
        offset = np.float32(self.offset or 0) if side.zero_point is None else side.zero_point.astype(np.float32)
        return np.asarray((codes.astype(np.float32) - offset) * side.scale)

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        """`decode` in ONNX operators."""
        zero = side.zero_point
        offset = body.float_const(self.offset or 0) if zero is None else body.cast(zero, "FLOAT")
        return body.op("Mul", body.op("Sub", body.cast(codes, "FLOAT"), offset), side.scale)


@dataclass(frozen=True)
class TableValue:
    """table[code] of 2**bits entries, times a scale if there is one.

    levels: the constant table, None when it is learned and stored (one for each part of `scope`).
    """

    bits: int
    levels: tuple[float, ...] | None = None
    scope: Scope = WHOLE
    dim: ClassVar[int] = 1

    def constant(self) -> np.ndarray | None:
        """The constant table, float32 [1, 2**bits], or None."""
        return None if self.levels is None else np.array(self.levels, np.float32)[None]

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        """float32 values of uint8 codes."""
        table = self.constant() if side.codebook is None else side.codebook
        assert table is not None
        values: np.ndarray = table[0][codes] if side.scope is None else table[side.scope, codes]
        return values if side.scale is None else np.asarray(values * side.scale)

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        """`decode` in ONNX operators."""
        index = body.cast(codes, "INT64")
        if side.scope is not None:
            index = body.op("Add", index, body.op("Mul", side.scope, body.int_const(1 << self.bits)))
        if side.codebook is None:
            flat = body.const(np.array(self.levels, np.float32))
        else:
            flat = body.op("Reshape", side.codebook, body.ints_const([-1]))
        values = body.op("Gather", flat, index, axis=0)
        return values if side.scale is None else body.op("Mul", values, side.scale)


@dataclass(frozen=True)
class VectorValue:
    """`dim` consecutive values of a row per code: the sum over stages of an entry of a learned table of vectors.

    A code holds `bits` bits for each stage, the first stage lowest. The tables are stored as `entry`
    [S, stages, 2**bits, dim].
    """

    bits: int
    dim: int
    stages: int
    scope: Scope = WHOLE
    entry: Literal["float16", "int8"] = "float16"

    def decode(self, codes: np.ndarray, side: Side[np.ndarray]) -> np.ndarray:
        """float32 [..., dim] of codes [...] (unsigned integers)."""
        assert side.codebook is not None
        table = side.codebook.astype(np.float32)
        scope = np.zeros(1, np.int64) if side.scope is None else side.scope
        values = np.zeros((), np.float32)
        for stage in range(self.stages):
            part = (codes >> codes.dtype.type(stage * self.bits)) & codes.dtype.type((1 << self.bits) - 1)
            values = values + table[scope, stage, part]
        return values if side.scale is None else np.asarray(values * side.scale[..., None])

    def onnx_decode(self, body: Body, codes: ir.Value, side: Side[ir.Value]) -> ir.Value:
        """`decode` in ONNX operators: [rows, n] to [rows, n, dim]."""
        assert side.codebook is not None
        wide = body.cast(codes, "INT64")
        entries = 1 << self.bits
        flat = body.op("Reshape", body.cast(side.codebook, "FLOAT"), body.ints_const([-1, self.dim]))
        base = None
        if side.scope is not None:
            base = body.op("Mul", side.scope, body.int_const(entries * self.stages))
        total = None
        for stage in range(self.stages):
            part = body.op("Div", wide, body.int_const(1 << (stage * self.bits))) if stage else wide
            if stage < self.stages - 1:
                part = body.op("Mod", part, body.int_const(entries))
            if stage:
                part = body.op("Add", part, body.int_const(stage * entries))
            if base is not None:
                part = body.op("Add", part, base)
            values = body.op("Gather", flat, part, axis=0)
            total = values if total is None else body.op("Add", total, values)
        assert total is not None
        if side.scale is None:
            return total
        return body.op("Mul", total, body.op("Unsqueeze", side.scale, body.ints_const([-1])))


Meaning = FloatValue | AffineValue | TableValue | VectorValue
