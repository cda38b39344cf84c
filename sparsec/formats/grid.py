"""The values a scalar codec can represent at each position of a weight, its scales, zero points and codebooks being fixed."""

from __future__ import annotations

import copy
from typing import Self

import numpy as np
from numpy.typing import NDArray

from sparsec.errors import WeightError
from sparsec.formats.encoded import EncodedWeight
from sparsec.formats.meaning import AffineValue, FloatValue, TableValue, VectorValue
from sparsec.formats.owners import kept_positions, scale_owners, table_owners

__all__ = ["Grid"]

Matrix = NDArray[np.float32]


class Grid:
    """Nearest representable values, column by column: what compensated rounding asks for.

    kept: bool [N, K], True where a value is stored; elsewhere the only value is 0. Side arrays lie transposed, because the
    methods that round a column at a time keep their weights transposed.
    """

    def __init__(self, encoded: EncodedWeight) -> None:
        meaning = encoded.scheme.codec.meaning
        if isinstance(meaning, VectorValue):
            raise WeightError(
                f"{encoded.scheme} codes {meaning.dim} inputs together: values have no grid of their own; use a scalar codec"
            )
        self.meaning: FloatValue | AffineValue | TableValue = meaning
        self.rows, self.cols = encoded.rows, encoded.cols
        self.kept = kept_positions(encoded)
        self._kept = None if self.kept.all() else np.ascontiguousarray(self.kept.T)
        owners = scale_owners(encoded)
        self._scale = self._inverse = self._zero = None
        if owners is not None:
            assert encoded.scales is not None
            scale = np.ascontiguousarray(encoded.scales.astype(np.float32).reshape(-1)[owners.T])
            # Where the scale is 0, or its inverse no float32, every value is 0.
            usable = np.abs(scale) > np.float32(1e-37)
            self._scale = scale
            self._inverse = np.where(usable, np.float32(1) / np.where(usable, scale, np.float32(1)), np.float32(0))
            if encoded.zero_points is not None:
                zeros = encoded.zero_points.astype(np.float32).reshape(-1)
                self._zero = np.ascontiguousarray(zeros[owners.T])
        if isinstance(meaning, AffineValue):
            offset = np.float32(meaning.offset or 0)
            self._zero = np.full((1, 1), offset) if self._zero is None else self._zero
            self._top = np.float32(encoded.scheme.codec.top_code)
        elif isinstance(meaning, TableValue):
            table = meaning.constant() if encoded.codebook is None else encoded.codebook
            assert table is not None
            scope = table_owners(encoded)
            self._scope = None if scope is None else np.ascontiguousarray(scope.T)
            self._sort(table)

    @classmethod
    def of(cls, encoded: EncodedWeight) -> Self:
        """The grid of a scalar codec; raises WeightError for vector codebooks."""
        return cls(encoded)

    def _sort(self, table: np.ndarray) -> None:
        """Levels ascending [S, E], their codes, and the borders between them; levels that are not numbers are never chosen."""
        finite = np.where(np.isfinite(table), table, np.float32(np.inf)).astype(np.float32)
        order = np.argsort(finite, axis=1, kind="stable")
        levels = np.take_along_axis(finite, order, 1)
        self._order = order.astype(np.uint8)
        with np.errstate(invalid="ignore", over="ignore"):
            borders = (levels[:, 1:].astype(np.float64) + levels[:, :-1]) / 2
        borders[~np.isfinite(levels[:, 1:])] = np.inf
        self._levels, self._borders = levels, borders.astype(np.float32)
        self._beside = _beside(levels)

    def round(self, values: Matrix, columns: slice | NDArray[np.integer] | None = None) -> Matrix:
        """The representable values nearest to values [N, k] of the inputs `columns` (None: all), float32 [N, k]."""
        chosen = slice(None) if columns is None else columns
        return np.ascontiguousarray(self.round_inputs(np.ascontiguousarray(values.T, np.float32), chosen).T)

    def round_inputs(self, values: Matrix, inputs: slice | NDArray[np.integer]) -> Matrix:
        """`round`, transposed: values [k, N] of k inputs, float32 [k, N]."""
        found = self._nearest(values, inputs)
        return found if self._kept is None else np.where(self._kept[inputs], found, np.float32(0))

    def of_rows(self, rows: slice) -> Self:
        """The grid of some rows alone, which shares its arrays."""
        found = copy.copy(self)
        found.kept = self.kept[rows]
        found.rows = len(found.kept)
        for name in ("_kept", "_scale", "_inverse", "_zero", "_scope"):
            array = getattr(self, name, None)
            if array is not None and array.shape[1] > 1:
                setattr(found, name, array[:, rows])
        return found

    def two_nearest(self, values: Matrix, index: int) -> tuple[Matrix, Matrix]:
        """Of one input: the representable values nearest to values [k, N] and those nearest to them on the other side (nearer to the
        middle where there is no other side), float32 [k, N] each; equal where there is but one. Raises WeightError for codecs of floats.
        """
        inputs = slice(index, index + 1)
        scale = _part(self._scale, inputs)
        if isinstance(self.meaning, FloatValue):
            raise WeightError(
                f"floats of {self.meaning.width} bits have no next value to choose; use a codec with codes"
            )
        if isinstance(self.meaning, AffineValue):
            zero, inverse = _part(self._zero, inputs), _part(self._inverse, inputs)
            assert zero is not None
            assert inverse is not None
            wanted = values * inverse + zero
            code = np.clip(np.rint(wanted), 0, self._top)
            other = code + np.where(wanted < code, np.float32(-1), np.float32(1))
            other = np.where((other < 0) | (other > self._top), 2 * code - other, other)
            pair = code - zero, other - zero
        else:
            scope, place = self._look_up(values, inputs)
            inverse = _part(self._inverse, inputs)
            below = (values if inverse is None else values * inverse) < self._levels[scope, place]
            pair = self._levels[scope, place], self._levels[scope, self._beside[np.where(below, 0, 1), scope, place]]
        first, second = pair if scale is None else (pair[0] * scale, pair[1] * scale)
        if self._kept is None:
            return first, second
        kept = self._kept[inputs]
        return np.where(kept, first, np.float32(0)), np.where(kept, second, np.float32(0))

    def _nearest(self, values: Matrix, inputs: slice | NDArray[np.integer]) -> Matrix:
        if isinstance(self.meaning, FloatValue):
            if self.meaning.width == 32:
                return values.astype(np.float32)
            return np.clip(values, -65504, 65504).astype(np.float16).astype(np.float32)
        scale = _part(self._scale, inputs)
        if isinstance(self.meaning, AffineValue):
            zero = _part(self._zero, inputs)
            inverse = _part(self._inverse, inputs)
            assert scale is not None
            assert zero is not None
            assert inverse is not None
            with np.errstate(over="ignore"):
                code: Matrix = values * inverse
            np.rint(code, out=code)
            code += zero
            np.clip(code, np.float32(0), self._top, out=code)
            code -= zero
            code *= scale
            return code
        scope, index = self._look_up(values, inputs)
        level: Matrix = self._levels[scope, index]
        return level if scale is None else level * scale

    def _look_up(
        self, values: Matrix, inputs: slice | NDArray[np.integer]
    ) -> tuple[np.ndarray | int, NDArray[np.integer]]:
        """Table and place in it of the level nearest to each value."""
        inverse = _part(self._inverse, inputs)
        ratio = values if inverse is None else values * inverse
        if self._scope is None:
            return 0, np.searchsorted(self._borders[0], ratio)
        scope = _part(self._scope, inputs)
        assert scope is not None
        index = np.zeros(values.shape, np.int64)
        step = self._levels.shape[1] // 2
        while step:
            probe = index + step
            index = np.where(ratio > self._borders[scope, probe - 1], probe, index)
            step //= 2
        return scope, index

    def codes(self, values: Matrix) -> np.ndarray:
        """Codes [N, K] nearest to values [N, K], uint8 (float codecs: the values); representable values keep theirs."""
        inputs, turned = slice(None), np.ascontiguousarray(values.T, np.float32)
        if isinstance(self.meaning, FloatValue):
            found = self._nearest(turned, inputs)
        elif isinstance(self.meaning, AffineValue):
            assert self._inverse is not None
            assert self._zero is not None
            found = np.clip(np.rint(turned * self._inverse) + self._zero, 0, self._top).astype(np.uint8)
        else:
            scope, index = self._look_up(turned, inputs)
            best, found = np.full(turned.shape, np.inf, np.float32), np.zeros(turned.shape, np.uint8)
            # Levels next to each other can be closer than the rounding of value / scale.
            for step in (0, -1, 1):
                near = np.clip(index + step, 0, self._levels.shape[1] - 1)
                level = self._levels[scope, near]
                value = level if self._scale is None else level * self._scale
                off = np.where(np.isfinite(level), np.abs(value - turned), np.float32(np.inf))
                found = np.where(off < best, self._order[scope, near], found)
                best = np.minimum(best, off)
        if self._kept is not None:
            found = np.where(self._kept, found, found.dtype.type(0))
        return np.ascontiguousarray(found.T)


def _beside(levels: Matrix) -> NDArray[np.intp]:
    """[2, S, E]: of each of the ascending levels [S, E] the place of the next smaller and of the next larger finite one; of the other where
    there is none, its own where there is neither."""
    places = np.broadcast_to(np.arange(levels.shape[1]), levels.shape)
    rises = levels[:, 1:] > levels[:, :-1]
    ends = np.ones((len(levels), 1), bool)
    first = np.maximum.accumulate(np.where(np.concatenate((ends, rises), 1), places, 0), 1)
    from_end = np.maximum.accumulate(np.where(np.concatenate((ends, rises[:, ::-1]), 1), places, 0), 1)
    last = levels.shape[1] - 1 - from_end[:, ::-1]
    smaller, larger = first - 1, last + 1
    has_larger = larger < np.isfinite(levels).sum(1, keepdims=True)
    smaller, larger = (
        np.where(smaller >= 0, smaller, np.where(has_larger, larger, places)),
        np.where(has_larger, larger, np.where(smaller >= 0, smaller, places)),
    )
    return np.stack((smaller, larger))


def _part(array: np.ndarray | None, inputs: slice | NDArray[np.integer]) -> np.ndarray | None:
    """The rows of `inputs` of an array [K, N], or all of one that is the same for every input."""
    return array if array is None or array.shape[0] == 1 else array[inputs]
