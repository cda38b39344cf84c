"""A sparse core between two block-diagonal factors, W = A S B: rotations and mixtures that make zeros cost less.

L. Liu et al., "ARMOR: High-Performance Semi-Structured Pruning via Adaptive Matrix Factorization", 2025: block coordinate descent on
A, B and the core, its values and its mask. Here every step but the mask's is the exact minimum of the output error in one of the
factors (least squares for A, block by block for B, conjugate gradients for the values); N:M groups exchange a kept weight for one
that would gain more, and a round of exchanges that does not pay is taken back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.formats import NM, Structure
from sparsec.passes.factor.fit import least_squares
from sparsec.passes.hessian import damped, inverse

__all__ = ["Wrapped", "after", "armor", "on_mask"]

Matrix = NDArray[np.float64]
Mask = NDArray[np.bool_]

_TINY = 1e-9
_ENOUGH = 2e-3
"""Rounds end when one lowers the error by less than this share."""


@dataclass(eq=False)
class Wrapped:
    """after: A as blocks [N / d, d, d]; core: S [N, K], zero off `mask`; before: B as blocks [K / d, d, d]."""

    after: Matrix
    core: Matrix
    before: Matrix
    mask: Mask

    def product(self) -> Matrix:
        """A S B, [N, K]."""
        return times_left(self.after, times_right(self.core, self.before))


def armor(
    weight: ArrayLike,
    mask: Mask,
    structure: Structure,
    block: int,
    second_moment: ArrayLike | None = None,
    *,
    start: ArrayLike | None = None,
    rounds: int = 12,
    steps: int = 8,
) -> Wrapped:
    """A S B near W [N, K] in tr((W - A S B) H (W - A S B)^T), from A = B = 1 and a keep-mask on.

    structure: the mask's; those of N:M change. block: d, a divisor of N and K. second_moment: H [K, K], None for the unit matrix. start:
    values on the mask, W's if None; the error never rises above theirs. rounds: at most as many; steps: of conjugate gradients in each.
    """
    w = np.asarray(weight, np.float64)
    h = np.eye(w.shape[1]) if second_moment is None else np.asarray(second_moment, np.float64)
    core = np.where(mask, w if start is None else np.asarray(start, np.float64), 0.0)
    eyes = [np.tile(np.eye(block), (size // block, 1, 1)) for size in w.shape]
    found = Wrapped(eyes[0], core, eyes[1], mask.copy())
    inverses = [inverse(damped(h[run, run], _TINY)) for run in _runs(w.shape[1], block)]
    found.core = on_mask(w, found, h, steps=steps)
    before, share = _error(w, found, h), 0.25
    for _ in range(rounds):
        found.after = after(w, found, h)[0]
        _improve_before(w, found, h, inverses)
        found.core = on_mask(w, found, h, steps=steps)
        error = _error(w, found, h)
        if isinstance(structure, NM):
            tried = _exchanged(w, found, h, structure, share, steps)
            lower = _error(w, tried, h)
            if lower < error:
                found, error = tried, lower
            else:
                share /= 2
        if error > (1 - _ENOUGH) * before and share < 0.05:
            break
        before = error
    return found


def after(weight: Matrix, found: Wrapped, second_moment: Matrix) -> tuple[Matrix, Matrix]:
    """(the best A for S B, as blocks; the second moments [N / d, d, d] of what they read)."""
    inner = times_right(found.core, found.before)
    count = len(found.after)
    pairs = [
        least_squares(part, own, second_moment)
        for part, own in zip(np.split(weight, count), np.split(inner, count), strict=True)
    ]
    return np.stack([a for a, _ in pairs]), np.stack([moment for _, moment in pairs])


def on_mask(weight: Matrix, found: Wrapped, second_moment: Matrix, *, steps: int) -> Matrix:
    """The core's values after conjugate gradients from where they are, preconditioned by the diagonal."""
    gram = found.after.transpose(0, 2, 1) @ found.after
    inner = _wrapped(second_moment, found.before)
    curvature = np.outer(_diagonal(gram), inner.diagonal())
    scale = np.where(found.mask, 1 / np.where(curvature > 0, curvature, np.inf), 0.0)
    core, rest = found.core.copy(), np.where(found.mask, _pull(weight, found, second_moment), 0.0)
    downhill = scale * rest
    direction, size = downhill, float(np.vdot(rest, downhill))
    first = size
    for _ in range(steps):
        if size <= 1e-12 * first:
            break
        moved = np.where(found.mask, times_left(gram, direction) @ inner, 0.0)
        length = size / float(np.vdot(direction, moved))
        core += length * direction
        rest -= length * moved
        downhill = scale * rest
        new = float(np.vdot(rest, downhill))
        direction = downhill + new / size * direction
        size = new
    return core


def times_left(blocks: Matrix, matrix: Matrix) -> Matrix:
    """Block-diagonal [n, d, d] times a matrix [n d, K]."""
    count, size = blocks.shape[:2]
    return np.asarray((blocks @ matrix.reshape(count, size, -1)).reshape(matrix.shape))


def times_right(matrix: Matrix, blocks: Matrix) -> Matrix:
    """A matrix [N, n d] times block-diagonal [n, d, d]."""
    return times_left(blocks.transpose(0, 2, 1), np.ascontiguousarray(matrix.T)).T


def _improve_before(weight: Matrix, found: Wrapped, h: Matrix, inverses: list[Matrix]) -> None:
    """Solve for B's blocks one after the other, in place; no step raises the error."""
    rest = weight - found.product()
    wide = times_left(found.after, found.core)
    for index, run in enumerate(_runs(len(h), found.before.shape[1])):
        own = wide[:, run]
        step = np.linalg.solve(damped(own.T @ own, _TINY), own.T @ (rest @ h[:, run])) @ inverses[index]
        found.before[index] += step
        rest[:, run] -= own @ step


def _exchanged(w: Matrix, found: Wrapped, h: Matrix, structure: NM, share: float, steps: int) -> Wrapped:
    """With the most promising exchanges made in a share of the groups, one each, and the values solved for again."""
    pull = _pull(w, found, h)
    gram = _diagonal(found.after.transpose(0, 2, 1) @ found.after)
    curvature = np.maximum(np.outer(gram, _wrapped(h, found.before).diagonal()), 1e-300)
    # What a kept weight's removal costs and what another one's best value gains, all others as they are.
    cost = np.where(found.mask, np.square(found.core) * curvature, np.inf)
    gain = np.where(found.mask, -np.inf, np.square(pull) / curvature)
    rows, cols = w.shape
    groups = cols // structure.m  # a shorter last group stays
    whole = (slice(None), slice(groups * structure.m))
    cost, gain = (values[whole].reshape(rows * groups, structure.m) for values in (cost, gain))
    out, into = cost.argmin(1), gain.argmax(1)
    every = np.arange(rows * groups)
    worth = gain[every, into] - cost[every, out]
    chosen = np.argsort(-worth, kind="stable")[: round(share * len(worth))]
    chosen = chosen[worth[chosen] > 0]
    mask = found.mask.copy()
    kept = mask[whole].reshape(rows * groups, structure.m)
    kept[chosen, out[chosen]] = False
    kept[chosen, into[chosen]] = True
    mask[whole] = kept.reshape(rows, -1)
    core = np.where(mask, np.where(found.mask, found.core, pull / curvature), 0.0)
    tried = Wrapped(found.after, core, found.before.copy(), mask)
    tried.core = on_mask(w, tried, h, steps=steps)
    return tried


def _pull(w: Matrix, found: Wrapped, h: Matrix) -> Matrix:
    """Half of what the error falls by for each element of the core: A^T (W - A S B) H B^T."""
    rest = (w - found.product()) @ h
    return times_right(times_left(found.after.transpose(0, 2, 1), rest), found.before.transpose(0, 2, 1))


def _wrapped(h: Matrix, before: Matrix) -> Matrix:
    """B H B^T: the second moment of what the core reads."""
    return times_right(times_left(before, h), before.transpose(0, 2, 1))


def _diagonal(blocks: Matrix) -> Matrix:
    return np.asarray(np.diagonal(blocks, axis1=1, axis2=2).reshape(-1))


def _error(w: Matrix, found: Wrapped, h: Matrix) -> float:
    rest = w - found.product()
    return float(np.vdot(rest @ h, rest))


def _runs(size: int, block: int) -> list[slice]:
    return [slice(start, start + block) for start in range(0, size, block)]
