"""Rounding that keeps the best beginnings of a row instead of one: where compensated rounding takes the nearest value, K-best takes the
nearest two, and of all beginnings so made the `width` with the least error.

Compensated rounding is the nearest plane algorithm (J. Chen, Y. Shabanzadeh, E. Crncevic, T. Hoefler, D. Alistarh, "The Geometry of
LLM Quantization: GPTQ as Babai's Nearest Plane Algorithm", 2025); this is what receivers use where it is not good enough (K. Wong,
C. Tsui, R. Cheng, W. Mow, "A VLSI architecture of a K-best lattice decoding algorithm for MIMO channels", 2002). It gains most where
inputs are few and depend on each other: 5 % of the error with 64 inputs, 10 % in depthwise convolutions, half a percent with 1280.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from sparsec.formats import EncodedWeight, Grid, with_codes
from sparsec.passes.hessian import Square, inverse_upper_cholesky
from sparsec.passes.quantise.compensate import Order, ordered

__all__ = ["k_best", "width_for"]

Matrix = NDArray[np.float32]
Numbers = NDArray[np.int64]

_WIDEST = 16
_WORK = 9216  # beginnings times inputs: the work stays within a small multiple of one beginning's
_BLOCK = 32  # inputs between two updates of all later ones
_HELD = 1 << 24  # numbers in memory at once: rows are worked on in portions


def width_for(cols: int) -> int:
    """How many beginnings are kept for rows of `cols` inputs; 1 where it is not worth the time."""
    return min(_WIDEST, max(1, _WORK // max(cols, 1)))


def k_best(
    weight: Matrix, hessian: Square, encoded: EncodedWeight, *, width: int = _WIDEST, order: Order = "activation"
) -> EncodedWeight:
    """Codes for W [N, K] with the positions, scales and tables of `encoded`, whose tr((W - Q) H (W - Q)^T) is small.

    hessian: damped, [K, K], or [G, K, K] for G equal parts of the rows, whose inputs go in natural order. width: beginnings kept of each
    row; 1 is compensated rounding, 2^K with a codec of two values all there are. Raises WeightError for codecs of floats and vectors.
    """
    grid = Grid.of(encoded)
    target = np.ascontiguousarray(np.asarray(weight, np.float32).T)
    if hessian.ndim == 3:
        inputs, squares = np.arange(len(target)), hessian
    else:
        inputs, _ = ordered(hessian.diagonal(), 1, order)
        squares = hessian[np.ix_(inputs, inputs)][None]
    upper = np.stack([inverse_upper_cholesky(square) for square in squares])
    values = np.empty_like(target)
    values[inputs] = _values(target[inputs], upper, grid, inputs, width)
    return with_codes(encoded, grid.codes(values.T))


def _values(weight: Matrix, upper: Square, grid: Grid, inputs: Numbers, width: int) -> Matrix:
    """`k_best` with inputs in the order in which they are rounded, [K, N]. upper: U [G, K, K] with H^-1 = U^T U."""
    rows = weight.shape[1] // len(upper)
    result = np.empty_like(weight)
    for first, last in _portions(len(upper), rows, max(1, _HELD // (len(weight) * width))):
        own = upper[first // rows : -(-last // rows)]
        result[:, first:last] = _search(weight[:, first:last], own, grid.of_rows(slice(first, last)), inputs, width)
    return result


def _portions(parts: int, rows: int, most: int) -> list[tuple[int, int]]:
    """Of `parts` times `rows` rows, at most so many: some of one part, or all of several."""
    if rows > most:
        return [(p * rows + a, p * rows + min(a + most, rows)) for p in range(parts) for a in range(0, rows, most)]
    step = most // rows * rows
    return [(first, min(first + step, parts * rows)) for first in range(0, parts * rows, step)]


def _search(weight: Matrix, upper: Square, grid: Grid, inputs: Numbers, width: int) -> Matrix:
    """`_values` in one piece: arrays [inputs, beginnings, rows] hold what is left of the weight for each beginning."""
    cols, count = weight.shape
    parts, factor = len(upper), upper.astype(np.float32)
    inverse = _by_row(np.reciprocal(np.diagonal(factor, axis1=1, axis2=2)), count)  # [K, 1, N]
    rest = np.repeat(weight[:, None], width, 1)
    cost = np.full((width, count), np.inf, np.float32)
    cost[0] = 0
    values, parents = np.empty_like(rest), np.empty(rest.shape, np.int16)
    for begin in range(0, cols, _BLOCK):
        end = min(begin + _BLOCK, cols)
        errors = np.empty((end - begin, width, count), np.float32)
        origin = np.broadcast_to(np.arange(width)[:, None], cost.shape)
        for index in range(begin, end):
            near, other = grid.two_nearest(rest[index], int(inputs[index]))
            off = np.concatenate((rest[index] - near, rest[index] - other)) * inverse[index]
            costs = np.tile(cost, (2, 1)) + np.square(off)
            costs[width:][near == other] = np.inf
            chosen = np.argpartition(costs, width - 1, 0)[:width]
            chosen.sort(0)
            parent = chosen % width
            cost, origin = _taken(costs, chosen), _taken(origin, parent)
            values[index], parents[index] = _taken(np.concatenate((near, other)), chosen), parent
            done = index - begin
            errors[:done] = _taken(errors[:done], parent)
            errors[done] = _taken(off, chosen)
            coming = slice(index + 1, end)
            rest[coming] = _taken(rest[coming], parent) - _by_row(factor[:, index, coming], count) * errors[done]
        if end < cols:
            made = errors.reshape(end - begin, width, parts, -1).transpose(2, 0, 1, 3).reshape(parts, end - begin, -1)
            made = factor[:, begin:end, end:].transpose(0, 2, 1) @ made
            made = made.reshape(parts, cols - end, width, -1).transpose(1, 2, 0, 3).reshape(cols - end, width, count)
            rest[end:] = _taken(rest[end:], origin) - made
    return _best(cost, parents, values)


def _taken(array: NDArray[Any], which: NDArray[np.integer]) -> NDArray[Any]:
    """Of beginnings [.., width, N] those with the numbers `which` [n, N]."""
    return np.take_along_axis(array, which if array.ndim == 2 else which[None], -2)


def _by_row(of_parts: Matrix, count: int) -> Matrix:
    """[k, 1, N] of one vector [G, k] for each part."""
    return np.repeat(of_parts.T, count // len(of_parts), 1)[:, None]


def _best(cost: Matrix, parents: NDArray[np.int16], values: Matrix) -> Matrix:
    """The values [K, N] that led to the least cost [width, N]."""
    each, last = np.arange(cost.shape[1]), cost.argmin(0)
    result = np.empty((len(values), len(each)), np.float32)
    for index in range(len(values) - 1, -1, -1):
        result[index] = values[index, last, each]
        last = parents[index, last, each]
    return result
