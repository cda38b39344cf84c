"""Dynamic int8 activations of a MatMul: what the attribute `activations` means, in numpy and as an ONNX body.

    ""          x stays float32
    "int8"      each row of x (each token) is rounded to whole numbers in [-127, 127] times a scale: max |x| / 127
    "int8-g32"  the same with one scale for every 32 consecutive inputs (any multiple of 4 that divides K)

Together with it the tables of codebooks are rounded to TABLE_MAX steps on either side of zero, so that a product is a whole
number of 15 bits; the additive stages of a vector codebook share the steps, so that sums of their entries keep to them.
Both roundings are part of the operator: its function body does them, and kernels multiply bytes.
Rounding is to the nearest, halves to even.

Static activations ("int8-static" in recipes) are rounded by an operator of their own, sparsec::Quantise, in front of any product: whole
numbers of `scale` between `low` and `high`, which calibration has chosen. high - low is at most 255 and zero is among them, so that a byte
with a zero point holds them and padding stays exact.
"""

from __future__ import annotations

import re

import numpy as np
import onnx_ir as ir

from sparsec.errors import ModelError
from sparsec.formats import Scheme
from sparsec.formats.meaning import AffineValue, Meaning, TableValue, VectorValue
from sparsec.onnx_body import Body

__all__ = [
    "ACTIVATION_MAX",
    "TABLE_MAX",
    "activation_group",
    "quantised",
    "quantised_body",
    "refusal",
    "rounded_static",
    "rounded_table",
    "rounded_values",
    "rounded_weight",
]

ACTIVATION_MAX = 127
TABLE_MAX = 63
# A row of zeros has no scale of its own; this keeps the division finite.
_TINY = 1e-30
_FORM = re.compile(r"int8(?:-g([1-9]\d*))?")


def activation_group(activations: str, cols: int) -> int:
    """Inputs that share a scale, 0 for a whole row.

    Raises ModelError for text that is none of the forms above, or a group that does not divide `cols` or is no multiple of 4.
    """
    match = _FORM.fullmatch(activations)
    if match is None:
        raise ModelError(
            f"activations '{activations}' are not known; allowed: int8, int8-g32 (or another multiple of 4)"
        )
    group = int(match[1] or 0)
    if group and (group % 4 or cols % group):
        raise ModelError(f"activations '{activations}': groups must be a multiple of 4 that divides the {cols} inputs")
    return group


def rounded_static(x: np.ndarray, scale: float, low: int, high: int) -> np.ndarray:
    """float32 x after rounding to whole numbers of `scale` in [low, high] and back."""
    inverse = np.float32(1) / np.float32(scale)
    return np.asarray(np.clip(np.rint(x * inverse), low, high) * np.float32(scale), np.float32)


def refusal(scheme: Scheme) -> str:
    """Why a weight in this scheme cannot meet int8 activations ("" if it can)."""
    codec, meaning = scheme.codec, scheme.codec.meaning
    if isinstance(meaning, TableValue) and meaning.bits > 4:
        return f"{codec} has more than the 16 levels a byte lookup holds"
    if not isinstance(meaning, AffineValue | TableValue | VectorValue):
        return f"{codec} is not made of codes"
    if isinstance(meaning, VectorValue) and meaning.stages > TABLE_MAX // 2:
        return f"{meaning.stages} stages leave their entries too few of the {TABLE_MAX} steps"
    return ""


def rounded_table(book: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(int8 entries, float32 [S] scales) of tables [S, entries]: steps of max |entry| / TABLE_MAX.

    Of tables of vectors [S, stages, entries, dim] the steps are the sum of the stages' largest entries over
    TABLE_MAX + 1 - stages: sums of one rounded entry of each stage are then at most TABLE_MAX.
    """
    book = np.asarray(book, np.float32)
    stages = book.shape[1] if book.ndim == 4 else 1
    largest = np.abs(book.reshape(len(book), stages, -1)).max(axis=2).sum(axis=1, dtype=np.float32)
    scale = largest / np.float32(TABLE_MAX + 1 - stages)
    safe = np.where(scale == 0, np.float32(1), scale)
    return np.rint(book / safe.reshape(-1, *[1] * (book.ndim - 1))).astype(np.int8), scale


def rounded_values(book: np.ndarray) -> np.ndarray:
    """Tables as `rounded_table` rounds them, float32."""
    table, scale = rounded_table(book)
    return np.asarray(table * scale.reshape(-1, *[1] * (table.ndim - 1)))


def quantised(x: np.ndarray, group: int) -> np.ndarray:
    """float32 x [..., K] after rounding to int8 and back."""
    parts = x.reshape(*x.shape[:-1], -1, group or x.shape[-1])
    largest = np.abs(parts).max(axis=-1, keepdims=True)
    inverse = np.float32(ACTIVATION_MAX) / np.maximum(largest, np.float32(_TINY))
    scale = largest * np.float32(1 / ACTIVATION_MAX)
    return np.asarray(np.rint(parts * inverse) * scale).reshape(x.shape)


def quantised_body(body: Body, x: ir.Value, group: int, cols: int) -> ir.Value:
    """`quantised` in standard operators."""
    parts = body.op("Reshape", x, body.ints_const([-1, group or cols]))
    largest = body.op("ReduceMax", body.op("Abs", parts), body.ints_const([-1]), keepdims=1)
    inverse = body.op("Div", body.float_const(ACTIVATION_MAX), body.op("Max", largest, body.float_const(_TINY)))
    scale = body.op("Mul", largest, body.float_const(1 / ACTIVATION_MAX))
    rounded = body.op("Mul", body.op("Round", body.op("Mul", parts, inverse)), scale)
    return body.op("Reshape", rounded, body.op("Shape", x))


def rounded_weight(body: Body, values: dict[str, ir.Value], scheme: Scheme) -> dict[str, ir.Value]:
    """The arrays of a weight with its tables, learned or constant, rounded as `rounded_table` does."""
    if "codebook" in values:
        return {**values, "codebook": _rounded_table_body(body, values["codebook"], scheme.codec.meaning)}
    meaning = scheme.codec.meaning
    if not isinstance(meaning, TableValue):
        return values
    constant = meaning.constant()
    assert constant is not None
    return {**values, "codebook": body.const(rounded_values(constant))}


def _rounded_table_body(body: Body, book: ir.Value, meaning: Meaning) -> ir.Value:
    vectors = isinstance(meaning, VectorValue)
    stages = meaning.stages if isinstance(meaning, VectorValue) else 1
    book = body.cast(book, "FLOAT") if vectors else book
    largest = body.op("ReduceMax", body.op("Abs", book), body.ints_const([-2, -1] if vectors else [-1]), keepdims=1)
    if stages > 1:
        largest = body.op("ReduceSum", largest, body.ints_const([1]), keepdims=1)
    scale = body.op("Div", largest, body.float_const(TABLE_MAX + 1 - stages))
    zero = body.op("Equal", scale, body.float_const(0))
    safe = body.op("Where", zero, body.float_const(1), scale)
    return body.op("Mul", body.op("Round", body.op("Div", book, safe)), scale)
