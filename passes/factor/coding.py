"""Factors in their schemes: one is coded, the next is solved for again and takes up what rounding did to it."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import EncodedWeight, Scheme, Structure, decode, encode, expand_block_mask
from sparsec.formats.scales import Scales
from sparsec.passes.factor.block_diagonal import after, armor, on_mask, times_left, times_right
from sparsec.passes.factor.fit import least_squares
from sparsec.passes.factor.form import Factor
from sparsec.passes.factor.monarch import monarch, outer
from sparsec.passes.quantise import quantise
from sparsec.recipe import Quantize

__all__ = ["Coder", "coded", "coded_armor", "coded_monarch", "coded_pair"]

Matrix = NDArray[np.float64]


_SHORT = 32
"""Rows of fewer values share their scale: 32 bits for each would cost more than a bit a value, and factors' rows are alike."""


class Coder(Protocol):
    """How a rule prunes and codes one matrix."""

    def __call__(
        self, target: NDArray[np.float32], second_moment: Matrix | None, mask: NDArray[np.bool_] | None
    ) -> EncodedWeight:
        """target [N, K] in the rule's scheme; second_moment: of its inputs or None; mask: keep-mask, None: the rule's."""
        ...


def coded(values: ArrayLike, second_moment: ArrayLike | None, scheme: Scheme, how: Quantize) -> EncodedWeight:
    """F [N, K] in its scheme, one scale for all where rows are short.

    second_moment: of its inputs, [K, K] or [G, K, K] for G equal runs of rows; None where it is not known.
    """
    matrix = np.ascontiguousarray(values, np.float32)
    if matrix.shape[1] < _SHORT and scheme.scales.kind == "channel" and "tensor" in scheme.codec.legal_scales:
        scheme = Scheme.of(scheme.codec, scheme.structure, Scales("tensor"))
    if second_moment is None or how.algorithm == "nearest":
        return encode(matrix, scheme)
    return quantise(matrix, second_moment, scheme, damping=how.damping)


def coded_pair(
    target: Matrix, left: Matrix, right: Matrix, second_moment: Matrix | None, scheme: Scheme, how: Quantize
) -> tuple[Factor, Factor]:
    """Factors v and u of U V near W: V [r, K] coded, then the best U for it coded.

    target: W [N, K]; left, right: U and V; second_moment: of the inputs [K, K], None for the unit matrix.
    """
    v = coded(right, second_moment, scheme, how)
    inner = decode(v).astype(np.float64)
    u, moment = least_squares(target, inner, second_moment)
    if not inner.any():
        u = left
    return Factor("v", v), Factor("u", coded(u, moment, scheme, how))


def coded_monarch(
    target: Matrix, blocks: int, rank: int, second_moment: Matrix | None, scheme: Scheme, how: Quantize
) -> tuple[Factor, Factor]:
    """Factors r and l of the Monarch matrix near W [N, K]: R coded, then the best L for it coded."""
    _, right = monarch(target, blocks, rank, second_moment)
    r = coded(right, _moments(second_moment, blocks), scheme, how)
    inner = decode(r).astype(np.float64).reshape(blocks, blocks, rank, -1)
    left, moments = outer(target, inner, second_moment)
    return Factor("r", r, blocks), Factor("l", coded(left, moments, scheme, how), blocks, shuffle=blocks)


def coded_armor(
    target: Matrix,
    block: int,
    second_moment: Matrix | None,
    structure: Structure,
    scheme: Scheme,
    how: Quantize,
    coder: Coder,
) -> tuple[Factor, Factor, Factor]:
    """Factors b, S and a of A S B near W [N, K]: B coded, the core solved for again and coded, then the best A for both coded."""
    rows, cols = target.shape
    metric = np.eye(cols) if second_moment is None else second_moment
    start = coder(target.astype(np.float32), second_moment, None)
    kept = start.layout().block_mask
    assert kept is not None
    mask = expand_block_mask(kept, start.scheme.block, rows, cols)
    found = armor(target, mask, structure, block, metric, start=decode(start))
    b = coded(found.before.reshape(cols, block), _moments(metric, cols // block), scheme, how)
    found.before = decode(b).astype(np.float64).reshape(-1, block, block)
    found.core = on_mask(target, found, metric, steps=16)
    inner = times_right(times_left(found.before, metric), found.before.transpose(0, 2, 1))
    core = coder(found.core.astype(np.float32), inner, found.mask)
    found.core = decode(core).astype(np.float64)
    best, moments = after(target, found, metric)
    a = coded(best.reshape(rows, block), moments, scheme, how)
    return Factor("b", b, cols // block), Factor("", core), Factor("a", a, rows // block)


def _moments(second_moment: Matrix | None, blocks: int) -> Matrix | None:
    """The blocks on the diagonal, [blocks, K / blocks, K / blocks]."""
    if second_moment is None:
        return None
    size = len(second_moment) // blocks
    every = np.arange(blocks)
    return np.ascontiguousarray(second_moment.reshape(blocks, size, blocks, size)[every, :, every])
