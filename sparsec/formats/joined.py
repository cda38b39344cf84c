"""Joining encoded weights row after row: [W0; W1; ...] as one weight, every stored value as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import numpy as np

from sparsec.formats.codec_base import Codec
from sparsec.formats.codecs.codebook import Codebook
from sparsec.formats.encoded import EncodedWeight
from sparsec.formats.layout import pack_bits, pack_planes, unpack_planes

__all__ = ["join_rows"]

# Codebooks that change in the middle of a vector of rows would cost kernels their byte lookups.
_LEAST_SPAN = 32


def join_rows(weights: Sequence[EncodedWeight]) -> EncodedWeight | None:
    """The weight [sum of rows, K], or None where these are not one weight of a scheme.

    They must agree in K and scheme, and blocks must not cross from one to the next. Codebooks for a whole tensor become
    codebooks for runs of rows (`cb4-g32` -> `cb4.r384-g32`), unless they are equal.
    """
    first = weights[0]
    scheme, r = first.scheme, first.scheme.block[0]
    if any(w.scheme != scheme or w.cols != first.cols for w in weights) or any(w.rows % r for w in weights[:-1]):
        return None
    rows = sum(w.rows for w in weights)
    codec, codebook = scheme.codec, first.codebook
    if codebook is not None:
        found = _codebooks(weights, codec)
        if found is None:
            return None
        codec, codebook = found
    scales = _shared(weights, [w.scales for w in weights])
    zeros = _shared(weights, [w.zero_points for w in weights])
    if (scales is None) != (first.scales is None) or (zeros is None) != (first.zero_points is None):
        return None
    positions = None
    if first.positions is not None:
        positions = pack_bits(np.concatenate([_mask(w) for w in weights]))
    bits = scheme.codec.code_bits
    if bits:
        codes = pack_planes(np.concatenate([unpack_planes(w.codes, bits, _codes(w)) for w in weights]), bits)
    else:
        codes = (np.concatenate([w.codes[0] for w in weights]),)
    return EncodedWeight(replace(scheme, codec=codec), rows, first.cols, codes, positions, codebook, scales, zeros)


def _codebooks(weights: Sequence[EncodedWeight], codec: Codec) -> tuple[Codec, np.ndarray] | None:
    """The codec of the joined weight and its codebooks, None where they cannot be told apart by rows."""
    books = [w.codebook for w in weights if w.codebook is not None]
    scope = codec.scope if isinstance(codec, Codebook) else ""
    if scope == "rows":
        assert isinstance(codec, Codebook)
        return (codec, np.concatenate(books)) if all(w.rows % codec.span == 0 for w in weights[:-1]) else None
    if all(np.array_equal(book, books[0]) for book in books) and codec.scope_count(1, 1) == len(books[0]):
        return codec, books[0]
    if scope != "tensor":
        return None
    assert isinstance(codec, Codebook)
    span = gcd(*(w.rows for w in weights))
    if span % _LEAST_SPAN:
        return None
    repeated = [np.repeat(book, w.rows // span, axis=0) for book, w in zip(books, weights, strict=True)]
    return replace(codec, scope="rows", span=span), np.concatenate(repeated)


def _codes(weight: EncodedWeight) -> int:
    layout = weight.code_layout()
    return layout.stored_blocks * layout.block[0] * layout.block[1]


def _mask(weight: EncodedWeight) -> np.ndarray:
    mask = weight.layout().block_mask
    assert mask is not None
    return mask


def _shared(weights: Sequence[EncodedWeight], parts: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Scales or zero points of all rows; None if there are none, or different ones for whole tensors."""
    arrays = [part for part in parts if part is not None]
    if len(arrays) < len(parts):
        return None
    if weights[0].scheme.scales.kind == "tensor":
        return arrays[0] if all(np.array_equal(a, arrays[0]) for a in arrays) else None
    groups = max(array.shape[1] for array in arrays)  # of the fullest strip
    return np.concatenate([np.pad(a, ((0, 0), (0, groups - a.shape[1]))) for a in arrays])
