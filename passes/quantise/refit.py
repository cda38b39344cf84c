"""Scales and codebooks that are best for the codes as they are, in the output error: linear least squares.

With codes fixed a weight is linear in its scales, and linear in its codebook entries, so the error tr((W - Q) H (W - Q)^T) is
quadratic in either. The normal equations are never formed: conjugate gradients (M. Hestenes and E. Stiefel, 1952) need one
product with H a step, for scalar and vector codebooks with any stages and scopes alike. What was found is rounded to what is
stored and kept where the error falls. The codebook update of GPTVQ (M. van Baalen et al., 2024), for all stages at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import WeightError
from sparsec.formats import (
    EncodedWeight,
    codes_of,
    decode,
    kept_positions,
    scale_owners,
    table_owners,
    with_side,
)
from sparsec.formats.kmeans import is_mirrored_1d
from sparsec.formats.kmeans_vectors import is_mirrored
from sparsec.formats.meaning import VectorValue
from sparsec.passes.hessian import Square, diagonals
from sparsec.passes.quantise.products import damped, row_errors, times

__all__ = ["refit", "refit_codebook", "refit_scales"]

Matrix = NDArray[np.float32]

_STEPS = 12
_ENOUGH = 1e-4  # of the first squared gradient


def refit(weight: Matrix, second_moment: ArrayLike, encoded: EncodedWeight, *, damping: float = 0.01) -> EncodedWeight:
    """Scales, then codebooks fitted to W [N, K] under the damped second moment, [K, K] or [G, K, K]; codes stay.

    The error never rises. A scheme with neither comes back as it is.
    """
    hessian = damped(second_moment, damping, *weight.shape)
    return refit_codebook(weight, hessian, refit_scales(weight, hessian, encoded))


@dataclass(frozen=True)
class _Linear:
    """W as a linear function of parameters [parts, n], the parts independent of each other."""

    apply: Callable[[NDArray[np.float64]], Matrix]
    """Parameters to W [N, K]."""
    adjoint: Callable[[Matrix], NDArray[np.float64]]
    """The transpose of `apply`."""
    squares: NDArray[np.float64]
    """Squared size [parts, n] of what each parameter does, inputs weighted by their second moments."""


def refit_scales(weight: Matrix, hessian: Square, encoded: EncodedWeight) -> EncodedWeight:
    """Best scales for the codes; each output's change only where it lowers that output's error."""
    owners, scales = scale_owners(encoded), encoded.scales
    if owners is None or scales is None:
        return encoded
    one = with_side(encoded, scales=np.ones(scales.shape))
    level = decode(one)
    parts, n = scales.shape
    flat = np.broadcast_to(owners, level.shape)

    def apply(scale: NDArray[np.float64]) -> Matrix:
        return level * scale.astype(np.float32).reshape(-1)[owners]

    def adjoint(gradient: Matrix) -> NDArray[np.float64]:
        if encoded.scheme.scales.kind == "channel":
            return np.asarray(np.einsum("nk,nk->n", gradient, level, dtype=np.float64), np.float64)[:, None]
        return _sums(flat, gradient * level, parts * n).reshape(parts, n)

    squares = adjoint(level * diagonals(hessian, encoded.rows).astype(np.float32))
    start = scales.astype(np.float64)
    pull, before = _gradient(weight, encoded, hessian)
    found = start + _solved(_Linear(apply, adjoint, squares), pull, hessian)
    if encoded.scheme.scales.kind == "group":
        found = np.clip(found, -65504, 65504)
    changed = with_side(encoded, scales=found)
    after = row_errors(weight, decode(changed), hessian)
    if encoded.scheme.scales.kind == "tensor":
        return changed if after.sum() < before.sum() else encoded
    kept = np.where((after < before)[:, None], found, start)
    return with_side(encoded, scales=kept)


def refit_codebook(weight: Matrix, hessian: Square, encoded: EncodedWeight) -> EncodedWeight:
    """Best codebook entries for the codes, if they lower the error once rounded to what is stored; mirrored tables stay so."""
    if encoded.codebook is None or not encoded.scheme.codec.free_table:
        return encoded
    linear = _tables(encoded, hessian)
    found = encoded.codebook.astype(np.float64)
    pull, before = _gradient(weight, encoded, hessian)
    if _is_mirrored(found):
        step = _whole(_solved(_mirrored(linear, found.shape), pull, hessian), found.shape)
    else:
        step = _solved(linear, pull, hessian).reshape(found.shape)
    if encoded.codebook.dtype.kind == "f":
        limit = float(np.finfo(encoded.codebook.dtype).max)
        changed = with_side(encoded, codebook=np.clip(found + step, -limit, limit))
    else:
        changed = with_side(encoded, codebook=np.clip(np.rint(found + step), -127, 127))
    return changed if row_errors(weight, decode(changed), hessian).sum() < before.sum() else encoded


def _is_mirrored(tables: NDArray[np.float64]) -> bool:
    """Whether the second halves of tables [S, entries] or [S, stages, entries, dim] are the negatives of the first; of scalars,
    which ascend, in reverse order."""
    if tables.ndim == 2:
        return is_mirrored_1d(tables)
    return all(is_mirrored(table) for table in tables.reshape(-1, *tables.shape[2:]))


def _turned(half: NDArray[np.float64]) -> NDArray[np.float64]:
    """Half of a table in the order that the other half has."""
    return half[:, ::-1] if half.ndim == 2 else half


def _whole(parameters: NDArray[np.float64], shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Mirrored tables of a shape from their first halves."""
    axis = len(shape) // 2
    first = parameters.reshape(*shape[:axis], shape[axis] // 2, *shape[axis + 1 :])
    return np.concatenate([first, -_turned(first)], axis)


def _mirrored(linear: _Linear, shape: tuple[int, ...]) -> _Linear:
    """The same for mirrored tables: parameters are their first halves."""
    parts = len(linear.squares)

    def folded(values: NDArray[np.float64], sign: float) -> NDArray[np.float64]:
        first, second = np.split(values.reshape(shape), 2, len(shape) // 2)
        return np.asarray(first + sign * _turned(second)).reshape(parts, -1)

    return _Linear(
        lambda parameters: linear.apply(_whole(parameters, shape).reshape(parts, -1)),
        lambda gradient: folded(linear.adjoint(gradient), -1.0),
        folded(linear.squares, 1.0),
    )


def _tables(encoded: EncodedWeight, hessian: Square) -> _Linear:
    """W as a function of its codebooks, flattened; one part unless every part has rows of its own."""
    book = encoded.codebook
    assert book is not None
    meaning = encoded.scheme.codec.meaning
    dim, stages, bits = (
        (meaning.dim, meaning.stages, meaning.bits)
        if isinstance(meaning, VectorValue)
        else (1, 1, encoded.scheme.codec.code_bits)
    )
    rows, cols = encoded.rows, encoded.cols
    codes = codes_of(encoded).astype(np.int64)
    factor = kept_positions(encoded).astype(np.float32)
    owners = scale_owners(encoded)
    if owners is not None:
        assert encoded.scales is not None
        factor *= encoded.scales.astype(np.float32).reshape(-1)[owners]
    width = codes.shape[1] * dim
    if width != cols:  # the last vector may reach past K
        factor = np.pad(factor, ((0, 0), (0, width - cols)))
    scope = table_owners(encoded)
    table = np.zeros((1, 1), np.int64) if scope is None else scope[:, ::dim].astype(np.int64)
    entries, parts = 1 << bits, len(book)
    # Where the entries of each stage lie in the flattened tables, in units of vectors.
    places = [
        (table * stages + stage) * entries + ((codes >> (stage * bits)) & (entries - 1)) for stage in range(stages)
    ]
    if scope is not None and scope.shape[0] == 1:
        parts = 1  # inputs of one table act together with those of others

    def apply(parameters: NDArray[np.float64]) -> Matrix:
        flat = parameters.astype(np.float32).reshape(-1, dim)
        total = flat[places[0]]
        for place in places[1:]:
            total = total + flat[place]
        return np.ascontiguousarray((total.reshape(rows, width) * factor)[:, :cols])

    def adjoint(gradient: Matrix) -> NDArray[np.float64]:
        if width != cols:
            gradient = np.pad(gradient, ((0, 0), (0, width - cols)))
        return spread((gradient * factor).reshape(rows, -1, dim))

    def spread(counted: Matrix) -> NDArray[np.float64]:
        found = np.zeros((book.size // dim, dim))
        for place in places:
            for i in range(dim):
                found[:, i] += _sums(place, counted[:, :, i], len(found))
        return found.reshape(parts, -1)

    counts = np.square(factor)
    counts[:, :cols] *= diagonals(hessian, rows).astype(np.float32)
    squares = spread(counts.reshape(rows, -1, dim))
    return _Linear(apply, adjoint, squares)


def _sums(index: NDArray[np.integer], values: Matrix, count: int) -> NDArray[np.float64]:
    found = np.bincount(np.broadcast_to(index, values.shape).reshape(-1), values.reshape(-1), count)
    return np.asarray(found, np.float64)


def _gradient(weight: Matrix, encoded: EncodedWeight, hessian: Square) -> tuple[Matrix, NDArray[np.float64]]:
    """(W - Q) H, float32 [N, K], and the error of each output, float64 [N]."""
    off = np.asarray(weight, np.float32) - decode(encoded)
    pull = times(off, hessian.astype(np.float32))
    return pull, np.asarray(np.einsum("nk,nk->n", pull, off, dtype=np.float64), np.float64)


def _solved(linear: _Linear, pull: Matrix, hessian: Square) -> NDArray[np.float64]:
    """The change of the parameters that takes the error with gradient `pull` [N, K] to its smallest, float64 [parts, n].

    Preconditioned conjugate gradients, every part with step sizes of its own. Parameters that nothing refers to stay.
    """
    wide = hessian.astype(np.float32)
    used = linear.squares > 0
    inverse = np.where(used, 1 / np.where(used, linear.squares, 1), 0)

    def dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.asarray((a * b).sum(1, keepdims=True))

    residual = linear.adjoint(pull)
    if not np.isfinite(residual).all():
        raise WeightError("values this large overflow the output error; scale the weight or its inputs down")
    change = np.zeros_like(residual)
    downhill = inverse * residual
    direction = downhill
    size = first = dot(residual, downhill)
    for _ in range(_STEPS):
        moved = linear.adjoint(times(linear.apply(direction), wide))
        curvature = dot(direction, moved)
        going = (curvature > 0) & (size > _ENOUGH * first)
        if not going.any():
            break
        length = np.where(going, size / np.where(going, curvature, 1), 0)
        change += length * direction
        residual = residual - length * moved
        downhill = inverse * residual
        new = dot(residual, downhill)
        direction = downhill + np.where(going, new / np.where(size > 0, size, 1), 0) * direction
        size = np.where(going, new, size)
    return change
