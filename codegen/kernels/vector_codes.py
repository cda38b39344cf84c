"""Vector codebooks as tables of words of four bytes, and the codes that index them.

A unit is one quad of inputs, or two where a code stands for eight. Its bits index words that are added byte by byte: if they
are at most eight, all at once (`lookups` = 1: entries of several codes or stages are joined when the weight is packed); else code by code
and stage by stage (a code of two inputs fills one half of a word). Words lie in the order [lookup][quad of the unit][code].

The codes of a row are a stream of bits, cut into words of 32: codes never cross from one into the next.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from sparsec.formats.encoded import Unpacked
from sparsec.formats.meaning import VectorValue

Array = np.ndarray[Any, Any]


def refusal(meaning: VectorValue) -> str:
    """Why these codes cannot be read this way ("" if they can)."""
    code = meaning.bits * meaning.stages
    if code // meaning.dim > 4 or 32 % code or meaning.bits > 8 or 8 % meaning.bits:
        return f"codes of {code} bits in {meaning.stages} stages do not lie in bytes"
    return ""


@dataclass(frozen=True)
class Form:
    """How a unit is looked up; see the module's docstring."""

    unit_quads: int
    lookups: int
    code_bits: int

    @classmethod
    def of(cls, meaning: VectorValue) -> Form:
        """The form of a codec."""
        inputs = max(4, meaning.dim)
        bits = meaning.bits * meaning.stages * (inputs // meaning.dim)
        if bits <= 8:
            return cls(inputs // 4, 1, bits)
        return cls(inputs // 4, bits // meaning.bits, meaning.bits)

    @property
    def words(self) -> int:
        """Words of one table."""
        return self.lookups * self.unit_quads << self.code_bits


def tables(meaning: VectorValue, entries: Array) -> Array:
    """Words as bytes, [S, words, 4], of entries [S, stages, 2**bits, dim]."""
    form = Form.of(meaning)
    scopes, stages, count, dim = entries.shape
    inputs = 4 * form.unit_quads
    per_unit = inputs // dim
    made = np.zeros((scopes, form.lookups, 1 << form.code_bits, inputs), entries.dtype)
    for code in range(per_unit):
        for stage in range(stages):
            number = code * stages + stage
            which = slice(dim * code, dim * (code + 1))
            if form.lookups > 1:
                made[:, number, :, which] = entries[:, stage]
                continue
            index = np.arange(1 << form.code_bits) >> (number * meaning.bits) & (count - 1)
            made[:, 0, :, which] += entries[:, stage, index]
    split = made.reshape(scopes, form.lookups, -1, form.unit_quads, 4).transpose(0, 1, 3, 2, 4)
    return np.ascontiguousarray(split).reshape(scopes, form.words, 4)


def streams(weight: Unpacked, rows: int, block: int) -> Array:
    """uint32 [rows, blocks, words]: the codes of each row, block by block of `block` inputs; zeros beyond the weight's."""
    meaning = weight.scheme.codec.meaning
    assert isinstance(meaning, VectorValue)
    bits, per_block = meaning.bits * meaning.stages, block // meaning.dim
    codes = weight.codes.reshape(weight.rows, -1)
    blocks = -(-codes.shape[1] // per_block)
    per_word = 32 // bits
    words = -(-per_block // per_word)
    padded = np.zeros((rows, blocks * per_block), np.uint32)
    padded[: weight.rows, : codes.shape[1]] = codes
    wide = np.zeros((rows, blocks, words * per_word), np.uint32)
    wide[:, :, :per_block] = padded.reshape(rows, blocks, per_block)
    shifts = (np.arange(per_word) * bits).astype(np.uint32)
    return np.asarray(np.bitwise_or.reduce(wide.reshape(rows, blocks, words, per_word) << shifts, axis=3))
