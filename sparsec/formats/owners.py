"""Which scale and which table every position of an encoded weight refers to, in the coordinates of W[N, K]."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sparsec.formats.encoded import EncodedWeight, expand_block_mask
from sparsec.formats.meaning import TableValue, VectorValue

__all__ = ["kept_positions", "scale_owners", "table_owners"]

Index = NDArray[np.int32]


def kept_positions(encoded: EncodedWeight) -> NDArray[np.bool_]:
    """bool [N, K], True where a value is stored."""
    block_mask = encoded.layout().block_mask
    if block_mask is None:
        return np.ones((encoded.rows, encoded.cols), bool)
    return np.ascontiguousarray(expand_block_mask(block_mask, encoded.scheme.block, encoded.rows, encoded.cols))


def scale_owners(encoded: EncodedWeight) -> Index | None:
    """Index into `scales.reshape(-1)` of each position, broadcastable to [N, K] (0 where nothing is stored); None without scales."""
    if encoded.scales is None:
        return None
    kind = encoded.scheme.scales.kind
    if kind == "tensor":
        return np.zeros((1, 1), np.int32)
    rows = np.arange(encoded.rows, dtype=np.int32)[:, None]
    if kind == "channel":
        return rows
    layout, groups = encoded.layout(), encoded.scales.shape[1]
    group = np.arange(layout.length, dtype=np.int32) // encoded.scheme.scales.group
    found = layout.from_stream(np.broadcast_to(group, (layout.stream_rows, layout.length)))
    return np.asarray(found + rows * groups, np.int32)


def table_owners(encoded: EncodedWeight) -> Index | None:
    """Index of the codebook of each position, broadcastable to [N, K]; None where there is one table or none."""
    codec = encoded.scheme.codec
    meaning = codec.meaning
    if not isinstance(meaning, TableValue | VectorValue) or codec.scope_count(encoded.rows, encoded.cols) < 2:
        return None
    if meaning.scope.kind == "rows":
        return (np.arange(encoded.rows, dtype=np.int32) // meaning.scope.span)[:, None]
    return (np.arange(encoded.cols, dtype=np.int32) // meaning.scope.span)[None]
