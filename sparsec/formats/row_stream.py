"""What codecs encode: rows of stored values side by side, whatever the structure, and which of them share a scale."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sparsec.errors import WeightError
from sparsec.formats.scales import Scales

__all__ = ["Coded", "RowStream", "divide"]


@dataclass(frozen=True, eq=False)
class RowStream:
    """What a codec encodes: stored values side by side in each row.

    values: float32 [rows, L], 0 where not valid. valid: bool [rows, L] or None for all. columns: int32 input index of
    each value, broadcastable to values. rows, cols: N, K (the stream may have more rows: N rounded up to a block).
    scales: which values share a scale. importance: what a squared error of each value counts, float32 [rows, L], 0 where not
    valid; None for 1 everywhere.
    """

    values: np.ndarray
    valid: np.ndarray | None
    columns: np.ndarray
    rows: int
    cols: int
    scales: Scales
    importance: np.ndarray | None = None

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


def divide(values: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """values [A, G, n] / scales [A, G], 0 where the scale is 0."""
    wide = scales.astype(np.float32)[:, :, None]
    safe = np.where(wide == 0, np.float32(1), wide)
    return np.where(wide == 0, np.float32(0), values / safe)
