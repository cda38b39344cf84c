"""One option a layer, so that a sum of costs is least and other sums stay below their limits: multiple-choice knapsack.

One limit: dynamic programming over layers that keeps the non-dominated pairs of costs (Nemhauser and Ullmann, "Discrete Dynamic
Programming and Capital Allocation", 1969), exact as long as there are at most `_STATES` of them. Several limits: every combination
where there are few, else a Lagrange multiplier on all but one of them (Everett, "Generalized Lagrange Multiplier Method", 1963) and
exchanges that use up what is left.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["choose", "pareto", "totals"]

Costs = Sequence[NDArray[np.float64]]
"""For each layer float64 [S, C]: C nonnegative costs of each of its S >= 1 options."""

_STATES = 4096
_COMBINATIONS = 1 << 16
_HALVINGS = 30


def totals(costs: Costs, choice: Sequence[int]) -> NDArray[np.float64]:
    """float64 [C]: the sums of the costs of a choice."""
    return np.asarray(np.sum([layer[index] for layer, index in zip(costs, choice, strict=True)], axis=0), np.float64)


def choose(costs: Costs, objective: int, limits: Mapping[int, float]) -> list[int] | None:
    """An option for each layer with the least sum of column `objective` whose sums of the columns in `limits` are at most these;
    None if there is none. Of equally good choices it takes one with small sums of the limited columns; the same for the same table."""
    if not costs:
        return []
    limits = {column: limit for column, limit in limits.items() if math.isfinite(limit)}
    if math.prod(len(layer) for layer in costs) <= _COMBINATIONS:
        return _enumerated(costs, objective, limits)
    if len(limits) <= 1:
        ((column, limit),) = limits.items() or ((objective, math.inf),)
        found = _fronts(costs, column, objective, limit)
        return found[-1] if found else None
    return _lagrangian(costs, objective, limits)


def pareto(costs: Costs, x: int, y: int, most: int = 32) -> list[list[int]]:
    """Choices that no other beats in both sums of the columns x and y: at most `most` of them, evenly spaced in the logarithm of x
    (which ascends), the ends included."""
    found = _fronts(costs, x, y, math.inf)
    if len(found) <= most:
        return found
    at = np.array([totals(costs, choice)[x] for choice in found])
    wanted = np.geomspace(at[0], at[-1], most) if at[0] > 0 else np.linspace(at[0], at[-1], most)
    picked = {int(np.abs(at - place).argmin()) for place in wanted}
    return [found[index] for index in sorted(picked)]


def _fronts(costs: Costs, x: int, y: int, limit: float) -> list[list[int]]:
    """All non-dominated choices with a sum of x up to `limit`; x ascends, y falls."""
    least = [float(layer[:, x].min()) for layer in costs]
    rest = sum(least)
    sums = np.zeros((1, 2))
    history: list[tuple[NDArray[np.intp], NDArray[np.intp]]] = []
    for layer, smallest in zip(costs, least, strict=True):
        rest -= smallest
        count, options = len(sums), len(layer)
        pairs = (sums[:, None, :] + layer[None, :, (x, y)]).reshape(-1, 2)
        order = np.lexsort((pairs[:, 1], pairs[:, 0]))
        order = order[pairs[order, 0] + rest <= limit * (1 + 1e-12)]
        if not len(order):
            return []
        falling = pairs[order, 1]
        better = np.ones(len(order), bool)
        better[1:] = falling[1:] < np.minimum.accumulate(falling)[:-1]
        order = _thinned(order[better], pairs)
        history.append((order // options, order % options))
        assert order.max() < count * options
        sums = pairs[order]
    return [_traced(history, end) for end in range(len(sums))]


def _thinned(order: NDArray[np.intp], pairs: NDArray[np.float64]) -> NDArray[np.intp]:
    """Of too many states the best of each of `_STATES` equal ranges of x, and the first."""
    if len(order) <= _STATES:
        return order
    at = pairs[order, 0]
    span = float(at[-1] - at[0])
    cell = np.minimum((at - at[0]) / span * _STATES, _STATES - 1).astype(np.intp)
    last = np.append(cell[1:] != cell[:-1], True)  # y falls: the last of a range is its best
    last[0] = True
    return np.asarray(order[last])


def _traced(history: Sequence[tuple[NDArray[np.intp], NDArray[np.intp]]], end: int) -> list[int]:
    choice = []
    for parents, options in reversed(history):
        choice.append(int(options[end]))
        end = int(parents[end])
    return choice[::-1]


def _enumerated(costs: Costs, objective: int, limits: Mapping[int, float]) -> list[int] | None:
    sums = np.zeros((1, costs[0].shape[1]))
    for layer in costs:
        sums = (sums[:, None, :] + layer[None, :, :]).reshape(-1, layer.shape[1])
    fits = np.ones(len(sums), bool)
    for column, limit in limits.items():
        fits &= sums[:, column] <= limit * (1 + 1e-12)
    if not fits.any():
        return None
    rows = np.flatnonzero(fits)
    keys = [sums[rows, column] for column in sorted(limits, reverse=True)]
    best = int(rows[np.lexsort((*keys, sums[rows, objective]))[0]])
    choice = []
    for layer in reversed(costs):
        best, option = divmod(best, len(layer))
        choice.append(option)
    return choice[::-1]


def _lagrangian(costs: Costs, objective: int, limits: Mapping[int, float]) -> list[int] | None:
    """Each limit in turn is kept by dynamic programming, the others by one multiplier on their sums as shares of their limits."""
    best, lowest = None, math.inf
    for kept in limits:
        others = [column for column in limits if column != kept]
        scale = {column: max(limits[column], 1e-30) for column in others}
        largest = float(sum(layer[:, objective].max() for layer in costs)) or 1.0

        def at(
            weight: float, kept: int = kept, scale: dict[int, float] = scale, largest: float = largest
        ) -> list[int] | None:
            """The choice where the sum of the shares counts `weight` times the largest objective; inf: it alone counts."""
            mixed = []
            for layer in costs:
                share = sum((layer[:, column] / size for column, size in scale.items()), np.zeros(len(layer)))
                value = share if weight == math.inf else layer[:, objective] / largest + weight * share
                mixed.append(np.column_stack([layer[:, kept], value]))
            found = _fronts(mixed, 0, 1, limits[kept])
            return found[-1] if found else None

        low, high = 1e-12, 1e6
        for step in range(_HALVINGS + 2):
            weight = (math.inf, 0.0)[step] if step < 2 else math.sqrt(low * high)
            found = at(weight)
            if found is None:
                break
            fits = _fits(totals(costs, found), limits)
            if fits:
                found = _exchanged(costs, found, objective, limits)
                if (value := float(totals(costs, found)[objective])) < lowest:
                    best, lowest = found, value
            if step >= 2:
                low, high = (low, weight) if fits else (weight, high)
    return best


def _exchanged(costs: Costs, choice: list[int], objective: int, limits: Mapping[int, float]) -> list[int]:
    """Change the option of one layer as long as that gains and the limits hold, the largest gain first."""
    choice, sums = list(choice), totals(costs, choice)
    while True:
        best = (-1e-15 * abs(float(sums[objective])), -1, -1)
        for number, layer in enumerate(costs):
            change = layer - layer[choice[number]]
            fits = np.ones(len(layer), bool)
            for column, limit in limits.items():
                fits &= sums[column] + change[:, column] <= limit
            gains = np.where(fits, change[:, objective], np.inf)
            option = int(gains.argmin())
            if gains[option] < best[0]:
                best = (float(gains[option]), number, option)
        if best[1] < 0:
            return choice
        sums = sums + costs[best[1]][best[2]] - costs[best[1]][choice[best[1]]]
        choice[best[1]] = best[2]


def _fits(sums: NDArray[np.float64], limits: Mapping[int, float]) -> bool:
    return all(sums[column] <= limit * (1 + 1e-12) for column, limit in limits.items())
