"""Exchanges of a kept weight for a pruned one of its row, or group, that lower the error: what `swap` and `dsnot` share.

The error of a row is (w - v) H (w - v)^T with v zero off the mask. An exchange is evaluated exactly, all other weights held.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sparsec.errors import SchemeError
from sparsec.formats import NM, Structure
from sparsec.passes import hessian
from sparsec.passes.sparsify.masks import Mask

__all__ = ["Exchange", "Matrix"]

Matrix = NDArray[np.float64]
Indices = NDArray[np.intp]
Pairs = tuple[Indices, Indices, Matrix, Matrix]
"""Of each row [N]: what leaves, what enters, its value, and by how much the error changes."""

_CANDIDATES = 16
"""Of a row without groups, so many cheap kept weights are tried against so many promising pruned ones."""


@dataclass
class Exchange:
    """Rows w [N, K] with their masks, in units in which the second moment has a unit diagonal."""

    target: Matrix  # w
    hessian: Matrix
    unit: Matrix  # [K]: a value in these units / unit is a weight
    group: int  # M of N:M, 0 if a whole row is one group
    restore: bool  # weights that enter have their value in w, else their best value

    @classmethod
    def of(
        cls, weight: ArrayLike, second_moment: ArrayLike, structure: Structure, damping: float, *, restore: bool
    ) -> Exchange:
        """Raises SchemeError for structures that keep and drop weights in blocks."""
        if structure.block != (1, 1):
            raise SchemeError(
                f"weights of {structure} are kept and dropped in blocks; exchanges of single weights would break them"
            )
        h = hessian.damped(second_moment, damping)
        unit = np.sqrt(h.diagonal())
        h /= unit
        h /= unit[:, None]
        target = np.where(hessian.dead(second_moment), 0.0, np.asarray(weight, np.float64)) * unit
        return cls(target, h, unit, structure.m if isinstance(structure, NM) else 0, restore)

    def run(self, values: Matrix, keep: Mask, limit: int) -> int:
        """Change values and masks [N, K] in place by at most `limit` exchanges a row; how many were made in all."""
        slope = (self.target - values) @ self.hessian  # half of what the error loses as a weight grows
        errors = np.einsum("nk,nk->n", self.target - values, slope)
        least = 1e-7 * np.maximum(errors, np.finfo(np.float64).tiny)  # what rounding may pretend to gain
        rows, made = np.arange(len(values)), 0
        best = self._best_in_group if self.group else self._best
        for _ in range(limit):
            leave, enter, new, change = best(values[rows], slope[rows], keep[rows], self.target[rows])
            good = change < -least[rows]
            rows, leave, enter, new = rows[good], leave[good], enter[good], new[good]
            if not rows.size:
                break
            made += rows.size
            gone = values[rows, leave]
            values[rows, leave], values[rows, enter] = 0.0, new
            keep[rows, leave], keep[rows, enter] = False, True
            slope[rows] += gone[:, None] * self.hessian[leave] - new[:, None] * self.hessian[enter]
        return made

    def _change(
        self, gone: Matrix, slope_gone: Matrix, target: Matrix, slope: Matrix, coupling: Matrix
    ) -> tuple[Matrix, Matrix]:
        """(value of what enters, the error's change)."""
        free = slope + gone * coupling  # its best value
        new = target if self.restore else free
        return new, 2 * gone * slope_gone + gone**2 + new * (new - 2 * free)

    def _best(self, values: Matrix, slope: Matrix, keep: Mask, target: Matrix) -> Pairs:
        rows, cols = values.shape
        count = min(_CANDIDATES, cols)
        cost = np.where(keep, 2 * values * slope + values**2, np.inf)
        gain = np.where(keep, -np.inf, target * (2 * slope - target) if self.restore else slope**2)
        leave = np.argpartition(cost, count - 1, axis=1)[:, :count]
        enter = np.argpartition(gain, cols - count, axis=1)[:, cols - count :]
        index = np.arange(rows)[:, None]
        new, change = self._change(
            values[index, leave][:, :, None],
            slope[index, leave][:, :, None],
            target[index, enter][:, None],
            slope[index, enter][:, None],
            self.hessian[leave[:, :, None], enter[:, None]],
        )
        change = np.where(keep[index, leave][:, :, None] & ~keep[index, enter][:, None], change, np.inf)
        first, second = np.unravel_index(change.reshape(rows, -1).argmin(1), (count, count))
        every = np.arange(rows)
        new = np.broadcast_to(new, change.shape)[every, first, second]
        return leave[every, first], enter[every, second], new, change[every, first, second]

    def _best_in_group(self, values: Matrix, slope: Matrix, keep: Mask, target: Matrix) -> Pairs:
        rows, cols = values.shape
        position = np.arange(cols)
        start = position // self.group * self.group
        length = np.minimum(self.group, cols - start)  # of the group an input is in; the last may be short
        every = np.arange(rows)
        leave, enter = np.zeros(rows, np.intp), np.zeros(rows, np.intp)
        value, lowest = np.zeros(rows), np.full(rows, np.inf)
        for shift in range(1, self.group):
            partner = start + (position - start + shift) % length
            coupling = self.hessian[position, partner]
            new, change = self._change(values, slope, target[:, partner], slope[:, partner], coupling)
            change = np.where(keep & ~keep[:, partner], change, np.inf)
            chosen = change.argmin(1)
            better = change[every, chosen] < lowest
            leave[better], enter[better] = chosen[better], partner[chosen[better]]
            value[better], lowest[better] = new[every, chosen][better], change[every, chosen][better]
        return leave, enter, value, lowest
